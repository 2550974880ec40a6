//! The load generator: one process, one thread of its own for the work, one
//! that keeps the pace. It is told what to do as JSON in its argument, and
//! prints what happened as JSON.

mod http1;
mod http2;
mod idle;
mod pace;
mod stalls;
mod tcp;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use stalls::Watches;

pub(crate) use pace::Pace;
pub(crate) use stalls::{Answered, watch};

/// What one run of the generator does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    /// `HOST:PORT`; the name is resolved by the lab's resolver, once.
    pub(crate) target: String,
    pub(crate) kind: Kind,
    /// Connections open at the same time.
    pub(crate) connections: usize,
    /// Requests, connections, or (for [`Kind::Bulk`]) bytes of each connection.
    pub(crate) work: u64,
    /// Requests a second of an open loop; none: as fast as answers come.
    pub(crate) rate: Option<u32>,
    /// Bytes of an answer.
    pub(crate) size: usize,
    /// CPUs to watch for stalls; latencies leave out what one touched.
    pub(crate) watched: Vec<usize>,
    /// When to give up.
    pub(crate) deadline: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// `GET /SIZE` over HTTP/1.1, connections kept.
    Http1,
    /// The same, and the server closes its connection after each answer.
    Http1UpstreamCloses,
    /// `GET /SIZE` over HTTP/2 without TLS, four requests on a connection.
    Http2,
    /// The server sends `work` bytes on each connection.
    Bulk,
    /// `size` bytes there and back on a kept connection.
    Echo,
    /// Connect, `size` bytes there and back, close.
    Connect,
    /// Opens connections, waits for the end of standard input.
    Idle,
    /// The same, after one HTTP/1.1 request on each.
    IdleHttp1,
}

impl Kind {
    /// Whether the work is HTTP requests.
    pub(crate) const fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http1UpstreamCloses | Self::Http2)
    }
}

/// What one run did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Requests answered, connections carried to their end, or bytes received.
    pub(crate) done: u64,
    /// Those that failed.
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// Connections that were opened.
    pub(crate) connections: u64,
    pub(crate) seconds: f64,
    pub(crate) latency: Latency,
    /// The part of the requests that latencies leave out, for the machine stood
    /// still.
    pub(crate) stalled: f64,
}

/// Microseconds, from when a request was due to its whole answer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Latency {
    fn of(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let at = |share: f64| -> f64 {
            let last = samples.len().saturating_sub(1);
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index below the length"
            )]
            let index = (share * last as f64).round() as usize;
            samples
                .get(index)
                .map_or(0.0, |sample| sample.as_secs_f64() * 1e6)
        };
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

/// What the tasks of one run write to.
#[derive(Default)]
pub(crate) struct Tally {
    done: u64,
    errors: u64,
    first_error: Option<String>,
    connections: u64,
    answered: Vec<Answered>,
}

impl Tally {
    fn failed(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(format!("{error:#}"));
        }
    }
}

/// Does the work and prints the outcome.
pub(crate) fn run(json: &str) -> Result<()> {
    let load: Load = serde_json::from_str(json).context("the load's description")?;
    crate::limits::raise_open_files()?;
    let address = load
        .target
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {}", load.target))?
        .find(SocketAddr::is_ipv4)
        .with_context(|| format!("{} has no IPv4 address", load.target))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let watches = Watches::start(&load.watched)?;
    let started = Instant::now();
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, async {
        let work = async {
            match load.kind {
                Kind::Http1 | Kind::Http1UpstreamCloses => http1::run(&load, address).await,
                Kind::Http2 => http2::run(&load, address).await,
                Kind::Bulk | Kind::Echo | Kind::Connect => tcp::run(&load, address).await,
                Kind::Idle | Kind::IdleHttp1 => idle::run(&load, address).await,
            }
        };
        tokio::time::timeout(load.deadline, work)
            .await
            .with_context(|| format!("not done after {:?}", load.deadline))?
    });
    let (tally, since) = outcome?;
    let seconds = since.unwrap_or(started).elapsed().as_secs_f64();
    let stalls = watches.end()?;
    let all = tally.answered.len();
    let samples: Vec<Duration> = tally
        .answered
        .iter()
        .filter(|answered| !stalls.touched(answered))
        .map(|answered| answered.took)
        .collect();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let stalled = 1.0 - samples.len() as f64 / all.max(1) as f64;
    let outcome = Outcome {
        done: tally.done,
        errors: tally.errors,
        first_error: tally.first_error,
        connections: tally.connections,
        seconds,
        latency: Latency::of(samples),
        stalled,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Says that all is open and warm, and waits for a line before the work, so
/// that what reads the proxy's accounts can do so in between.
pub(crate) fn begin() -> Result<()> {
    println!("warm");
    // Nothing is under way that this would hold up.
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// The counts, and when the work itself began (connections may be opened
/// before).
type Done = Result<(Tally, Option<Instant>)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_samples() {
        let samples = (1..=1001).rev().map(Duration::from_micros).collect();
        let latency = Latency::of(samples);
        assert!((latency.p50 - 501.0).abs() < 0.01);
        assert!((latency.p99 - 991.0).abs() < 0.01);
        assert!((latency.max - 1001.0).abs() < 0.01);
        assert!(Latency::of(Vec::new()).max.abs() < f64::EPSILON);
    }
}
