//! Load on a service: the program `load` as a client whose connections are
//! captured, and what it saw.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::process::{Process, wait_for};
use crate::{Context, Lab, Result, ensure};

/// One connection or request of the load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Try {
    /// When it began, in microseconds since 1970.
    pub began: u64,
    /// How long it took, in microseconds.
    pub took: u64,
    /// What came of it: status (HTTP; 0 else) and the name of the server, or
    /// what failed.
    pub outcome: std::result::Result<(u16, String), String>,
}

impl Try {
    /// As the program prints it.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { began, took, .. } = self;
        let one_line = |text: &str| text.replace(['\n', '\t'], " ");
        match &self.outcome {
            Ok((status, text)) => format!("{began}\t{took}\tok\t{status}\t{}", one_line(text)),
            Err(error) => format!("{began}\t{took}\tfailed\t0\t{}", one_line(error)),
        }
    }

    fn parse(line: &str) -> Result<Self> {
        let mut fields = line.splitn(5, '\t');
        let mut next = || fields.next().with_context(|| line.to_owned());
        let (began, took, how) = (next()?.parse()?, next()?.parse()?, next()?);
        let (status, text) = (next()?.parse()?, next()?.to_owned());
        Ok(Self {
            began,
            took,
            outcome: if how == "ok" {
                Ok((status, text))
            } else {
                Err(text)
            },
        })
    }

    /// Whether it failed, or was answered with an error of a server.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.outcome
            .as_ref()
            .is_ok_and(|(status, _)| *status >= 500)
            || self.outcome.is_err()
    }

    /// Name of the server that answered well.
    #[must_use]
    pub fn server(&self) -> Option<&str> {
        match &self.outcome {
            Ok((status, name)) if *status < 500 => Some(name),
            _ => None,
        }
    }
}

/// Microseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// Load that runs.
pub struct Load {
    process: Process,
    output: PathBuf,
}

/// What clients speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// HTTP/1.1 requests, on connections that stay open.
    Http,
    /// A connection each time, which must bring a line.
    Tcp,
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

/// Begins `rate` requests in each second, for so long. `program` is
/// `env!("CARGO_BIN_EXE_load")`.
pub fn steady(
    lab: &Lab,
    program: &str,
    (mode, host, port): (Mode, &str, u16),
    rate: u32,
    time: Duration,
) -> Result<Load> {
    let arguments = [
        "steady".to_owned(),
        rate.to_string(),
        time.as_millis().to_string(),
    ];
    start(lab, program, (mode, host, port), &arguments)
}

/// Begins `clients` requests at once. With TCP, those that are served keep
/// their connection until all have their answer.
pub fn burst(
    lab: &Lab,
    program: &str,
    (mode, host, port): (Mode, &str, u16),
    clients: u32,
) -> Result<Load> {
    start(
        lab,
        program,
        (mode, host, port),
        &["burst".to_owned(), clients.to_string()],
    )
}

fn start(
    lab: &Lab,
    program: &str,
    (mode, host, port): (Mode, &str, u16),
    arguments: &[String],
) -> Result<Load> {
    let output = lab.directory().join(format!("load.{}", now()));
    let process = lab
        .client(program)
        .args([mode.word(), host, &port.to_string()])
        .args(arguments)
        .stdout(fs::File::create(&output)?)
        .start()?;
    Ok(Load { process, output })
}

impl Load {
    /// What has ended so far.
    pub fn so_far(&self) -> Result<Vec<Try>> {
        let text = fs::read_to_string(&self.output)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(Try::parse).collect()
    }

    /// Waits until `count` of the ended tries are so.
    pub fn wait_for(&self, what: &str, count: usize, so: impl Fn(&Try) -> bool) -> Result<()> {
        wait_for(what, Duration::from_secs(20), || {
            let ended = self.so_far()?;
            Ok((ended.iter().filter(|one| so(one)).count() >= count).then_some(()))
        })
        .with_context(|| format!("{:?}", self.so_far()))
    }

    /// Waits for the end and returns all of it, in the order of their begin.
    pub fn finish(mut self, deadline: Duration) -> Result<Vec<Try>> {
        let status = self.process.wait(deadline)?;
        ensure!(status.success(), "load ended with {status}");
        let mut tries = self.so_far()?;
        tries.sort_by_key(|one| one.began);
        Ok(tries)
    }
}

/// Where `host` leads, as a program of the lab's clients sees it; the program
/// calls this for itself.
///
/// # Errors
/// When the name has no address.
pub fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    let mut addresses = (host, port).to_socket_addrs()?;
    let first = addresses.next();
    first.with_context(|| format!("{host} has no address"))
}
