//! The agent as a guard: started in the namespace of the clients, attached to
//! their cgroup, stopped on drop.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{DEADLINE, Finished, Process, Spawn, wait_for};
use crate::record::Record;
use crate::{Context, Group, Lab, RESOLVER, Result, bail, ensure};
use rustix::process::Signal;

/// How long the agent may take from start to `ready`.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// Where it serves metrics, inside the clients' namespace.
const METRICS: &str = "127.0.0.1:15020";

/// An agent about to be started.
#[must_use]
pub struct Builder<'lab> {
    lab: &'lab Lab,
    group: Group,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Program and arguments that become the agent.
    wrapper: Vec<String>,
    /// The agent of another build.
    build: Option<PathBuf>,
    /// Set for a second agent of one lab: its files have other names.
    suffix: &'static str,
    log: String,
}

impl Lab {
    /// An agent with no policy yet.
    pub fn agent(&self) -> Builder<'_> {
        Builder {
            lab: self,
            group: Group::Outside,
            arguments: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            build: None,
            suffix: "",
            log: env::var("EGRESS_LOG").unwrap_or_else(|_| "info".to_owned()),
        }
    }

    /// Starts a second agent with no policy on the same cgroup, in a network
    /// namespace that is the first one's too, with files and ports of its own.
    pub fn second_agent(&self) -> Result<Agent> {
        let mut builder = self.agent();
        // No dot: the bpf file system takes none in a name.
        builder.suffix = "-second";
        builder.setting("--metrics", "off").start()
    }

    /// Folder of the policy files that [`Builder::policy`] writes, which the
    /// agent watches.
    pub fn policy_directory(&self) -> PathBuf {
        self.directory().join("policy")
    }

    /// Writes the policy file `NAME.yaml`.
    pub fn write_policy(&self, name: &str, yaml: &str) -> Result<PathBuf> {
        let directory = self.policy_directory();
        fs::create_dir_all(&directory)?;
        let file = directory.join(format!("{name}.yaml"));
        fs::write(&file, yaml)?;
        Ok(file)
    }

    /// `egressctl` with `arguments`, speaking to this lab's agent.
    pub fn egressctl(&self, arguments: &[&str]) -> Result<Spawn> {
        Ok(self
            .outsider(program("egressctl")?)
            .env("EGRESS_ADMIN", self.admin())
            .args(arguments))
    }

    /// Removes what a stopped agent has left in force.
    pub fn clean_up(&self) -> Result<()> {
        let cleaned = self
            .outsider(program("egress-agent")?)
            .args(["--cleanup", "--bpffs"])
            .arg(self.bpffs()?.join("egress"))
            .text()?;
        ensure!(cleaned.starts_with("removed "), "{cleaned}");
        Ok(())
    }

    /// A bpf file system of this lab's own.
    fn bpffs(&self) -> Result<PathBuf> {
        let directory = self.directory().join("bpffs");
        if !directory.exists() {
            fs::create_dir(&directory)?;
            rustix::mount::mount(
                "bpf",
                &directory,
                "bpf",
                rustix::mount::MountFlags::empty(),
                None,
            )
            .context("cannot mount a bpf file system")?;
        }
        Ok(directory)
    }

    fn admin(&self) -> String {
        format!("unix:{}", self.directory().join("admin.sock").display())
    }
}

impl Builder<'_> {
    /// Adds a policy file of this name and content.
    pub fn policy(self, name: &str, yaml: &str) -> Result<Self> {
        self.lab.write_policy(name, yaml)?;
        Ok(self)
    }

    /// Logs by this filter, rather than by `EGRESS_LOG`.
    pub fn log_filter(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log);
        self
    }

    /// Adds a flag and its value.
    pub fn setting(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.arguments.push(flag.to_owned());
        self.arguments.push(value.into());
        self
    }

    /// Sets an environment variable.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it by another program, such as `setpriv`, that becomes it.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
        self
    }

    /// Runs this program, an agent of another build.
    pub fn build(mut self, agent: PathBuf) -> Self {
        self.build = Some(agent);
        self
    }

    /// Runs the agent inside the captured cgroup, as on a host where that is
    /// the root: only its own marking keeps it from capturing itself.
    pub fn inside_the_cgroup(mut self) -> Self {
        self.group = Group::Clients;
        self
    }

    /// Starts it and waits for its line `ready`.
    ///
    /// # Errors
    /// When it ends or is silent for [`READY_DEADLINE`]; with all it printed.
    pub fn start(self) -> Result<Agent> {
        let lab = self.lab;
        let directory = lab.directory();
        fs::create_dir_all(lab.policy_directory())?;
        // Apart from the folder of the policy, which the agent watches.
        let logs = directory.join("logs");
        fs::create_dir_all(&logs)?;
        let log = |name: &str| logs.join(format!("{name}{}", self.suffix));
        let (access_log, error_log) = (log("access.log"), log("agent.log"));
        let file = |name: &str| directory.join(format!("{name}{}", self.suffix));
        let stderr = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&error_log)?;
        let policy = if self.suffix.is_empty() {
            lab.policy_directory()
        } else {
            let empty = file("policy");
            fs::create_dir_all(&empty)?;
            empty
        };
        let agent = match self.build {
            Some(agent) => agent,
            None => program("egress-agent")?,
        };
        let spawn = match self.wrapper.split_first() {
            Some((wrapper, arguments)) => lab.spawn(self.group, wrapper).args(arguments).arg(agent),
            None => lab.spawn(self.group, agent),
        };
        let mut spawn = spawn
            .arg("--policy")
            .arg(policy)
            .arg("--cgroup")
            .arg(lab.client_cgroup())
            .args(["--admin", &format!("{}{}", lab.admin(), self.suffix)])
            .arg("--state-dir")
            .arg(file("state"))
            .arg("--bpffs")
            .arg(lab.bpffs()?.join(format!("egress{}", self.suffix)))
            .args(["--log", &self.log])
            .args(&self.arguments)
            .env("RUST_BACKTRACE", "1")
            .stdout(std::process::Stdio::piped())
            .stderr(stderr);
        if !self.arguments.iter().any(|flag| flag == "--access-log") {
            spawn = spawn.arg("--access-log").arg(&access_log);
        }
        if !self
            .arguments
            .iter()
            .any(|flag| flag == "--access-log-linger")
        {
            // A test looks for the line of what has just ended.
            spawn = spawn.args(["--access-log-linger", "0"]);
        }
        if !self.arguments.iter().any(|flag| flag == "--metrics") {
            spawn = spawn.args(["--metrics", METRICS]);
        }
        if !self.arguments.iter().any(|flag| flag == "--dns-upstream") {
            spawn = spawn.args(["--dns-upstream", &format!("{RESOLVER}:53")]);
        }
        for (name, value) in &self.environment {
            spawn = spawn.env(name, value);
        }
        let mut process = spawn.start()?;
        let stdout = process.take_stdout().context("the agent has no output")?;
        let (lines, received) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout)
                .lines()
                .map_while(std::result::Result::ok)
            {
                // The test may have ended: the pipe is still emptied.
                let _ = lines.send(line);
            }
        });
        let mut printed = String::new();
        let until = Instant::now() + READY_DEADLINE;
        loop {
            match received.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.trim() == "ready" => break,
                Ok(line) => {
                    printed.push_str(&line);
                    printed.push('\n');
                }
                Err(reason) => {
                    let why = match reason {
                        RecvTimeoutError::Timeout => "did not get ready",
                        RecvTimeoutError::Disconnected => "ended",
                    };
                    process.kill();
                    bail!(
                        "the agent {why}; it printed:\n{printed}{}",
                        fs::read_to_string(&error_log)?
                    );
                }
            }
        }
        Ok(Agent {
            process,
            access_log,
            error_log,
        })
    }

    /// Runs it where it must fail, and returns how it ended.
    pub fn fail(self) -> Result<Finished> {
        let lab = self.lab;
        fs::create_dir_all(lab.policy_directory())?;
        lab.spawn(self.group, program("egress-agent")?)
            .arg("--policy")
            .arg(lab.policy_directory())
            .arg("--state-dir")
            .arg(lab.directory().join("state"))
            .args(&self.arguments)
            .output()
    }
}

/// A running agent; killed on drop.
pub struct Agent {
    process: Process,
    access_log: PathBuf,
    error_log: PathBuf,
}

impl Agent {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Everything that it has logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.error_log)?)
    }

    /// The records of its access log so far.
    pub fn records(&self) -> Result<Vec<Record>> {
        if !self.access_log.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&self.access_log)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(Record::parse).collect()
    }

    /// Waits for a record that `matches`: it is written when a connection has
    /// ended, which a client may see earlier.
    pub fn record(&self, what: &str, matches: impl Fn(&Record) -> bool) -> Result<Record> {
        wait_for(what, Duration::from_secs(5), || {
            Ok(self.records()?.into_iter().find(|record| matches(record)))
        })
        .with_context(|| {
            format!(
                "records: {}\nlog: {}",
                fs::read_to_string(&self.access_log).unwrap_or_default(),
                self.log().unwrap_or_default()
            )
        })
    }

    /// Waits until there are `count` records, and returns them.
    pub fn wait_records(&self, count: usize) -> Result<Vec<Record>> {
        wait_for("records in the access log", Duration::from_secs(5), || {
            Ok(Some(self.records()?).filter(|records| records.len() >= count))
        })
        .with_context(|| {
            format!(
                "records: {}\nlog: {}",
                fs::read_to_string(&self.access_log).unwrap_or_default(),
                self.log().unwrap_or_default()
            )
        })
    }

    /// Its metrics, as Prometheus would read them.
    pub fn metrics(&self, lab: &Lab) -> Result<String> {
        lab.curl_in(
            Group::Outside,
            &["--fail", &format!("http://{METRICS}/metrics")],
        )
        .text()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// SIGTERM; it must drain and end with exit code 0.
    pub fn stop(self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        self.finish()
    }

    /// Waits for the end of an agent that was told to stop: exit code 0.
    pub fn finish(mut self) -> Result<()> {
        let status = self.process.wait(DEADLINE)?;
        ensure!(
            status.code() == Some(0),
            "the agent ended with {status}: {}",
            self.log()?
        );
        Ok(())
    }

    /// Makes it crash (SIGABRT), and tells how the kernel saw it end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn crash(mut self) -> Result<std::process::ExitStatus> {
        self.process.signal(Signal::ABORT)?;
        self.process.wait(DEADLINE)
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}

/// A program of ours: from `EGRESS_BIN_DIR`, else from the folder that the
/// tests were built to.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = env::current_exe()?;
    let built = own
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps"));
    let file = env::var_os("EGRESS_BIN_DIR")
        .map(PathBuf::from)
        .or_else(|| built.map(Path::to_owned))
        .context("no folder of programs")?
        .join(name);
    ensure!(
        file.exists(),
        "{} is not built; run `cargo xtask build`",
        file.display()
    );
    Ok(file)
}
