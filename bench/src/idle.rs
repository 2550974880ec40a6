//! What an idle connection costs each proxy in memory: once TCP, once HTTP/1.1
//! after a request, which leaves nothing open towards the service but a pooled
//! connection.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::process::Process;

use crate::account;
use crate::arena::Arena;
use crate::cpus::Cpus;
use crate::extra::Row;
use crate::load::{Kind, Load};
use crate::peer::{self, Name, Peer};
use crate::services::{self, Service};

const CONNECTIONS: usize = 5_000;
/// Connections before the first look: what is made once is made then.
const WARM: usize = 500;
/// After so long a proxy has given back what opening a connection needed.
const REST: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_mins(2);

const PEERS: [Name; 4] = [Name::Egress, Name::Envoy, Name::Haproxy, Name::Nginx];

/// What, of which service, and the target in kilobytes.
const KINDS: [(&str, Kind, Service, f64); 2] = [
    ("TCP", Kind::Idle, services::ECHO, 5.0),
    ("HTTP/1.1", Kind::IdleHttp1, services::HTTP1, 10.0),
];

/// Kilobytes of each idle connection, by proxy.
pub(crate) fn measure() -> Result<Vec<Row>> {
    let arena = Arena::new(Cpus::new(false)?)?;
    let mut rows = Vec::new();
    for (what, kind, service, target) in KINDS {
        for name in PEERS {
            // Alone, so that one kind finds no memory of another.
            let value = peer::start(&arena, name, &services::ALL)
                .and_then(|peer| each(&arena, &*peer, kind, &service));
            rows.push(Row {
                what: format!("an idle {what} connection, {}", name.title()),
                unit: "KB",
                value: value.map_err(|error| format!("{error:#}")),
                target: (name == Name::Egress).then_some((target, true)),
            });
        }
    }
    Ok(rows)
}

fn each(arena: &Arena, peer: &dyn Peer, kind: Kind, service: &Service) -> Result<f64> {
    let _engaged = peer.engage(arena)?;
    let counted = |at| -> Result<u64> {
        let counters = peer.counters(arena, service)?.context("no counters")?;
        ensure!(counters.connections >= at, "went past the proxy");
        Ok(counters.connections)
    };
    let begun = counted(0)?;
    let warm = hold(arena, peer, kind, service, WARM)?;
    sleep(REST);
    let before = private_kilobytes(peer)?;
    let held = hold(arena, peer, kind, service, CONNECTIONS)?;
    sleep(REST);
    let after = private_kilobytes(peer)?;
    // Some count a connection when it ends.
    drop((warm, held));
    sleep(REST);
    counted(begun + (WARM + CONNECTIONS) as u64)?;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let each = after.saturating_sub(before) as f64 / CONNECTIONS as f64;
    Ok(each)
}

/// A client with so many connections open.
fn hold(
    arena: &Arena,
    peer: &dyn Peer,
    kind: Kind,
    service: &Service,
    connections: usize,
) -> Result<Process> {
    let load = Load {
        target: peer.target(service),
        kind,
        connections,
        work: 0,
        rate: None,
        size: 1024,
        watched: Vec::new(),
        deadline: DEADLINE,
    };
    let mut client = arena
        .lab
        .spawn(peer.group(), &arena.own)
        .arg("load")
        .arg(serde_json::to_string(&load)?)
        .deadline(DEADLINE)
        .interactive()
        .start()?;
    client.expect_line("open")?;
    Ok(client)
}

/// Memory that belongs to a proxy alone.
fn private_kilobytes(peer: &dyn Peer) -> Result<u64> {
    let pid = peer.pid().context("no proxy")?;
    let mut sum = 0;
    for one in account::family(pid) {
        let text = match fs::read_to_string(format!("/proc/{one}/smaps_rollup")) {
            Ok(text) => text,
            // A helper may end at any time, the proxy itself may not.
            Err(_) if one != pid => continue,
            Err(error) => return Err(error).context("the proxy is gone"),
        };
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Private_Dirty:"))
            .context("no Private_Dirty in smaps_rollup")?;
        let kilobytes = line.split_whitespace().next().unwrap_or_default();
        sum += kilobytes.parse::<u64>()?;
    }
    Ok(sum)
}
