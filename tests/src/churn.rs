//! Soak load: many short connections to several services at a steady rate,
//! each with a lookup of its own, by the program `churn`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::load::now;
use crate::process::Process;
use crate::{Context, Error, Group, Lab, Result, ensure};

/// A service that the load uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// `tcp`, `http` or `dns`.
    pub kind: String,
    /// Name that is looked up.
    pub host: String,
    /// Port that is dialled.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.kind, self.host, self.port)
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().with_context(|| text.to_owned());
        Ok(Self {
            kind: next()?.to_owned(),
            host: next()?.to_owned(),
            port: next()?.parse()?,
        })
    }
}

/// A connection that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it was begun, in microseconds since 1970.
    pub began: u64,
    /// When it failed.
    pub ended: u64,
    /// To where.
    pub target: Target,
    /// How far it had come: `lookup`, `connect`, `peer` or `exchange`.
    pub step: String,
    /// What failed.
    pub error: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "failed {} {} {} {} {}",
            self.began,
            self.ended,
            self.target,
            self.step,
            self.error.replace('\n', " ")
        )
    }
}

impl Failure {
    fn parse(line: &str) -> Result<Self> {
        let mut fields = line.splitn(6, ' ').skip(1);
        let mut next = || fields.next().with_context(|| line.to_owned());
        Ok(Self {
            began: next()?.parse()?,
            ended: next()?.parse()?,
            target: next()?.parse()?,
            step: next()?.to_owned(),
            error: next()?.to_owned(),
        })
    }
}

/// What a load saw.
#[derive(Debug)]
pub struct Seen {
    /// Connections that did what they should, by service.
    pub good: BTreeMap<String, u64>,
    /// All others.
    pub failures: Vec<Failure>,
}

impl Seen {
    /// Connections that did what they should.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.good.values().sum()
    }
}

/// A load that runs.
pub struct Churn {
    process: Process,
    output: PathBuf,
}

/// Begins `rate` connections a second to `targets`, each in its turn, until
/// [`Churn::finish`]. `program` is `env!("CARGO_BIN_EXE_churn")`.
pub fn start(lab: &Lab, program: &str, rate: u32, targets: &[&str]) -> Result<Churn> {
    let output = lab.directory().join(format!("churn.{}", now()));
    let process = lab
        .client(program)
        .arg(rate.to_string())
        .args(targets)
        .interactive()
        .stdout(fs::File::create(&output)?)
        .start()?;
    Ok(Churn { process, output })
}

impl Churn {
    /// Ends it as SIGKILL does: whatever it had open is the kernel's to end.
    pub fn kill(mut self) {
        self.process.kill();
        let _ = fs::remove_file(&self.output);
    }

    /// What has failed so far.
    pub fn failures(&self) -> Result<Vec<Failure>> {
        let text = fs::read_to_string(&self.output)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let failed = whole.lines().filter(|line| line.starts_with("failed "));
        failed.map(Failure::parse).collect()
    }

    /// Begins no more, waits for what is under way, and returns what it saw.
    pub fn finish(mut self) -> Result<Seen> {
        self.process.send_line("stop")?;
        let status = self.process.wait(Duration::from_mins(1))?;
        ensure!(status.success(), "churn ended with {status}");
        let failures = self.failures()?;
        let text = fs::read_to_string(&self.output)?;
        let mut good = BTreeMap::new();
        for line in text.lines() {
            if let Some((service, count)) = line
                .strip_prefix("done ")
                .and_then(|rest| rest.rsplit_once(' '))
            {
                good.insert(service.to_owned(), count.parse()?);
            }
        }
        Ok(Seen { good, failures })
    }
}

/// Servers of the world on `addresses` that can bear such a load.
pub fn serve(lab: &Lab, program: &str, addresses: &[&str]) -> Result<Process> {
    let mut server = lab
        .spawn(Group::Servers, program)
        .arg("serve")
        .args(addresses)
        .interactive()
        .start()?;
    server.expect_line("serving")?;
    Ok(server)
}

/// Lets a client have more connections a second: each leaves its port in
/// TIME-WAIT for a minute.
pub fn widen_ports(lab: &Lab) -> Result<()> {
    // The thread is in the namespace whose settings `/proc/sys/net` shows.
    let written = lab
        .app()
        .run(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", "2000 65000"))?;
    written.context("cannot widen the range of local ports")
}
