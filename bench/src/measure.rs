//! One workload over every path, in interleaved rounds.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use crate::account;
use crate::arena::Arena;
use crate::load::{Kind, Load, Outcome};
use crate::peer::{Counters, Name, Peer};
use crate::progress::Progress;
use crate::workloads::{Unit, Workload};

/// With more requests left out than this part, a round is measured again, ...
const DISTURBED: f64 = 0.1;
/// ... this often at the most, ...
const AGAIN: usize = 3;
/// ... and with this part of them, it has no latencies.
const MOSTLY_STALLED: f64 = 0.5;

/// What one round of one path gave.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) path: Name,
    pub(crate) round: usize,
    /// Units (requests, connections, gigabytes) a second.
    pub(crate) rate: f64,
    /// CPU microseconds of the proxy for each unit; none without a proxy.
    pub(crate) cpu: Option<f64>,
    /// Microseconds.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// The part of the requests that these leave out, for the machine stood
    /// still.
    pub(crate) stalled: f64,
    /// Share of the machine's CPU time that went to others than this bench.
    pub(crate) foreign: f64,
}

/// The samples of a workload, and the paths whose row is void, with the reason.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    pub(crate) samples: Vec<Sample>,
    pub(crate) void: Vec<(Name, String)>,
}

/// Runs `rounds` of `workload` over each of `peers`, in another order each
/// round.
pub(crate) fn workload(
    arena: &Arena,
    peers: &[Box<dyn Peer>],
    workload: &Workload,
    rounds: usize,
    share: f64,
    progress: &mut Progress,
) -> Measured {
    let mut measured = Measured {
        name: workload.name,
        title: workload.title,
        unit: workload.unit,
        samples: Vec::new(),
        void: Vec::new(),
    };
    let mut peers: Vec<&dyn Peer> = peers
        .iter()
        .map(AsRef::as_ref)
        .filter(|peer| peer.carries(&workload.service))
        // Without a proxy the client itself would be cut off, and the bare one
        // does not look after it.
        .filter(|peer| {
            let minds = !(peer.name().is_floor() || peer.name() == Name::Direct);
            minds || workload.kind != Kind::Http1UpstreamCloses
        })
        .collect();
    for round in 0..rounds {
        for peer in &peers {
            let name = peer.name();
            if measured.void.iter().any(|(void, _)| *void == name) {
                continue;
            }
            progress.step(&format!(
                "{} round {} {}",
                workload.name,
                round + 1,
                name.title()
            ));
            match calm(|| one(arena, *peer, workload, round, share)) {
                Ok(sample) => measured.samples.push(sample),
                Err(error) => {
                    progress.say(&format!("{} {}: {error:#}", workload.name, name.title()));
                    measured.void.push((name, format!("{error:#}")));
                }
            }
        }
        peers.rotate_left(1);
    }
    measured
}

/// Measures again, a few times, what a stall of the machine touched too much of,
/// and keeps the calmest.
fn calm(mut measure: impl FnMut() -> Result<Sample>) -> Result<Sample> {
    let mut calmest = measure()?;
    for _ in 0..AGAIN {
        if calmest.stalled <= DISTURBED {
            break;
        }
        let again = measure()?;
        if again.stalled < calmest.stalled {
            calmest = again;
        }
    }
    Ok(calmest)
}

fn one(
    arena: &Arena,
    peer: &dyn Peer,
    workload: &Workload,
    round: usize,
    share: f64,
) -> Result<Sample> {
    let mut load = workload.load(peer.target(&workload.service), share);
    if load.rate.is_some() {
        load.watched = arena.cpus.all();
    }
    let _engaged = peer.engage(arena)?;
    let before = peer.counters(arena, &workload.service)?;
    let start = Cell::new(None);
    let outcome = arena.load(peer.group(), &load, || {
        start.set(Some(Accounts::read(arena, peer)?));
        Ok(())
    })?;
    let Some(start) = start.take() else {
        bail!("the generator never began");
    };
    let used = start.until(&Accounts::read(arena, peer)?);
    proven(arena, peer, workload, &load, &outcome, before)?;

    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let units = match workload.unit {
        Unit::Gigabyte => outcome.done as f64 / 1e9,
        Unit::Request | Unit::Connection => outcome.done as f64,
    };
    let timed = workload.unit != Unit::Gigabyte && outcome.stalled < MOSTLY_STALLED;
    Ok(Sample {
        path: peer.name(),
        round,
        rate: units / outcome.seconds,
        cpu: used.proxy.map(|seconds| seconds * 1e6 / units),
        p50: timed.then_some(outcome.latency.p50),
        p99: timed.then_some(outcome.latency.p99),
        stalled: outcome.stalled,
        foreign: used.foreign,
    })
}

/// Fails unless all of the work was done, and, by the proxy's own counters,
/// through the proxy.
fn proven(
    arena: &Arena,
    peer: &dyn Peer,
    workload: &Workload,
    load: &Load,
    outcome: &Outcome,
    before: Option<Counters>,
) -> Result<()> {
    if let Some(error) = &outcome.first_error {
        bail!("{} errors, the first: {error}", outcome.errors);
    }
    let wanted = match workload.unit {
        Unit::Gigabyte => load.work * load.connections as u64,
        Unit::Request | Unit::Connection => load.work,
    };
    ensure!(
        outcome.done == wanted,
        "{} of {wanted} were done",
        outcome.done
    );
    let Some(before) = before else {
        return Ok(());
    };
    let requests = if workload.kind.is_http() {
        outcome.done
    } else {
        0
    };
    // Some count when a connection ends, or hear of it from the kernel later.
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let Some(after) = peer.counters(arena, &workload.service)? else {
            bail!("the counters are gone");
        };
        let connections = after.connections.saturating_sub(before.connections);
        let handled = after.requests.saturating_sub(before.requests);
        if connections >= outcome.connections && handled >= requests {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "went past the proxy: it counted {connections} of {} connections and {handled} of \
             {requests} requests",
            outcome.connections
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The accounts at one moment.
#[derive(Clone, Copy)]
struct Accounts {
    at: Instant,
    proxy: Option<f64>,
    lab: f64,
    machine: f64,
}

/// What was used between two moments.
struct Used {
    proxy: Option<f64>,
    foreign: f64,
}

impl Accounts {
    fn read(arena: &Arena, peer: &dyn Peer) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            proxy: peer.pid().map(account::cpu_seconds).transpose()?,
            lab: arena.cpu_seconds()?,
            machine: account::machine_seconds()?,
        })
    }

    fn until(&self, later: &Self) -> Used {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        #[allow(clippy::cast_precision_loss, reason = "a number of cores")]
        let whole = later.at.duration_since(self.at).as_secs_f64() * cores as f64;
        let others = (later.machine - self.machine) - (later.lab - self.lab);
        Used {
            proxy: self
                .proxy
                .zip(later.proxy)
                .map(|(before, after)| after - before),
            foreign: (others / whole).clamp(0.0, 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests")]
    use super::*;

    /// The part left out of what is kept, and how often it was measured.
    fn kept(stalled: &[f64]) -> (f64, usize) {
        let mut taken = 0;
        let sample = calm(|| {
            let stalled = *stalled.get(taken).unwrap();
            taken += 1;
            Ok(Sample {
                path: Name::Egress,
                round: 0,
                rate: 1.0,
                cpu: None,
                p50: None,
                p99: None,
                stalled,
                foreign: 0.0,
            })
        });
        (sample.unwrap().stalled, taken)
    }

    #[test]
    fn a_disturbed_round_is_measured_again_and_the_calmest_kept() {
        assert_eq!(kept(&[0.1]), (0.1, 1));
        assert_eq!(kept(&[0.7, 0.02]), (0.02, 2));
        assert_eq!(kept(&[0.7, 0.2, 0.9, 0.3]), (0.2, 4));
        assert!(calm(|| bail!("void")).is_err());
    }
}
