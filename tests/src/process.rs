//! Processes of the lab: started in a namespace and a cgroup, with the lab's
//! own `/etc/resolv.conf`, and never outliving their guard.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::netns::Namespace;
use crate::{Context, Result, anyhow, bail};

/// How long a process may take unless said otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Joins the cgroup, mounts the lab's name service files over the host's in a
/// mount namespace of its own (`$1` cgroup, `$2` folder of the files), hides a
/// name service cache daemon of the host, and becomes the program. It dies
/// with the thread that started it (`PR_SET_PDEATHSIG`).
const WRAPPER: &str = r#"
set -e
echo 0 >"$1/cgroup.procs"
for file in resolv.conf hosts nsswitch.conf; do
    if [ -e "/etc/$file" ]; then mount --bind "$2/$file" "/etc/$file"; fi
done
if [ -d /run/nscd ]; then mount -t tmpfs none /run/nscd; fi
shift 2
exec setpriv --pdeathsig KILL -- "$@"
"#;

/// A process about to be started.
#[must_use]
pub struct Spawn {
    command: Command,
    program: PathBuf,
    cgroup: PathBuf,
    input: Option<Vec<u8>>,
    deadline: Duration,
}

impl Spawn {
    pub(crate) fn new(namespace: &Namespace, etc: &Path, cgroup: &Path, program: &Path) -> Self {
        let mut net = OsString::from("--net=");
        net.push(namespace.path());
        let mut command = Command::new("nsenter");
        command
            .arg(net)
            .args(["unshare", "--mount", "sh", "-c", WRAPPER, "lab"])
            .arg(cgroup)
            .arg(etc)
            .arg(program)
            .stdin(Stdio::null())
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .env_remove("HTTP_PROXY")
            .env_remove("HTTPS_PROXY")
            .env_remove("ALL_PROXY")
            .env_remove("all_proxy");
        Self {
            command,
            program: program.to_owned(),
            cgroup: cgroup.to_owned(),
            input: None,
            deadline: DEADLINE,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it this on standard input.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Ends it after this long instead of [`DEADLINE`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Lets a test talk with it, by [`Process::send_line`] and
    /// [`Process::expect_line`].
    pub fn interactive(mut self) -> Self {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped());
        self
    }

    /// Where its standard output goes.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    /// Where its standard error goes.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.command.stderr(stderr);
        self
    }

    /// Starts it, and returns once it is in its cgroup (or has ended). It is
    /// killed when the thread that calls this ends.
    pub fn start(mut self) -> Result<Process> {
        if self.input.is_some() {
            self.command.stdin(Stdio::piped());
        }
        let name = self.program.display().to_string();
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        if let Some(input) = self.input
            && let Some(mut stdin) = child.stdin.take()
        {
            // A thread: a process that reads late must not hold this one up,
            // and one that never reads ends with its guard.
            thread::spawn(move || stdin.write_all(&input));
        }
        let mut process = Process { name, child };
        let members = self.cgroup.join("cgroup.procs");
        let id = process.id().to_string();
        wait_for("a process to enter its cgroup", DEADLINE, || {
            let entered = fs::read_to_string(&members)?.lines().any(|line| line == id);
            Ok((entered || !process.is_running()).then_some(()))
        })?;
        Ok(process)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started, or has not ended by the deadline. An exit
    /// code is not an error here.
    pub fn output(mut self) -> Result<Finished> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let deadline = self.deadline;
        let mut process = self.start()?;
        let stdout = read_all(process.child.stdout.take());
        let stderr = read_all(process.child.stderr.take());
        let started = Instant::now();
        let status = process.wait(deadline);
        if status.is_err() {
            process.kill();
        }
        let collect = |thread: thread::JoinHandle<String>| thread.join().unwrap_or_default();
        let (stdout, stderr) = (collect(stdout), collect(stderr));
        let status =
            status.with_context(|| format!("it had printed:\n{stdout}\nand:\n{stderr}"))?;
        Ok(Finished {
            name: process.name.clone(),
            status,
            stdout,
            stderr,
            elapsed: started.elapsed(),
        })
    }

    /// Runs it to its end and returns what it printed.
    ///
    /// # Errors
    /// As [`Self::output`], and when the exit code is not zero.
    pub fn text(self) -> Result<String> {
        self.output()?.text()
    }
}

fn read_all(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Finished {
    /// Its exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Its output, if it ended well.
    pub fn text(self) -> Result<String> {
        if !self.status.success() {
            bail!(
                "{} failed ({}):\n{}\n{}",
                self.name,
                self.status,
                self.stdout,
                self.stderr
            );
        }
        Ok(self.stdout)
    }
}

/// A running process, killed on drop.
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, once, when it was started with a pipe.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Writes a line to its standard input.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("not interactive")?;
        stdin.write_all(line.as_bytes())?;
        stdin.write_all(b"\n")?;
        Ok(())
    }

    /// Reads its standard output until a line is `expected`.
    ///
    /// # Errors
    /// When it ends first, or at [`DEADLINE`].
    pub fn expect_line(&mut self, expected: &str) -> Result<()> {
        self.expect(expected, |line, wanted| line == wanted)
    }

    /// The same, for a line that begins so.
    ///
    /// # Errors
    /// As [`Self::expect_line`].
    pub fn expect_line_beginning(&mut self, expected: &str) -> Result<()> {
        self.expect(expected, |line, wanted| line.starts_with(wanted))
    }

    fn expect(&mut self, expected: &str, is_it: fn(&str, &str) -> bool) -> Result<()> {
        let stdout = self.child.stdout.take().context("not interactive")?;
        let wanted = expected.to_owned();
        let (found, result) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut others = String::new();
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
                if is_it(line.trim_end(), &wanted) {
                    let _ = found.send(Ok(reader.into_inner()));
                    return;
                }
                others.push_str(&line);
                line.clear();
            }
            let _ = found.send(Err(others));
        });
        let stdout = result
            .recv_timeout(DEADLINE)
            .with_context(|| format!("{} did not print {expected:?} in time", self.name))?
            .map_err(|others| {
                anyhow!(
                    "{} ended without {expected:?}, it printed:\n{others}",
                    self.name
                )
            })?;
        self.child.stdout = Some(stdout);
        Ok(())
    }

    /// Reads one line of its standard output. It must be one that answers at
    /// once.
    pub fn read_line(&mut self) -> Result<String> {
        let stdout = self.child.stdout.as_mut().context("not interactive")?;
        let mut line = Vec::new();
        let mut byte = [0];
        while stdout.read(&mut byte)? > 0 {
            if byte[0] == b'\n' {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
        }
        bail!("{} ended", self.name)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no such process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When it is still running after `deadline`; it goes on then.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                bail!("{} is still running after {deadline:?}", self.name);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls `attempt` until it returns a value, or the deadline passes.
///
/// # Errors
/// At the deadline, with `what` as the thing that did not come.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        if Instant::now() >= until {
            bail!("waited {deadline:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(3));
    }
}
