//! The direct path beside no interception at all: rounds of some milliseconds
//! that take turns, since what is to be told apart is less than the noise
//! between longer ones. And what 10,000 services cost beside one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use lab::agent::Agent;
use lab::dns::NameServer;
use lab::process::Process;
use lab::{Group, Lab, RESOLVER};

use crate::cpus::pinned;
use crate::extra::Row;
use crate::progress::Progress;
use crate::serve::{Listener, Serve, Speaks, Tls};
use crate::statistics::Figure;

const NAME: &str = "direct-path";

const ECHO: u16 = 9010;
const BULK: u16 = 9011;
/// Of no service.
const PLAIN: u16 = 9012;
/// Of services that have an endpoint which refuses.
const HALF: u16 = 9013;
/// Such services: each tells once how long its bad endpoint stays in use.
const HALVES: u32 = 40;
/// Services of the large policy, and endpoints of each service.
const MANY: u32 = 10_000;
const ENDPOINTS: u32 = 10;

/// Rounds of each measurement.
const LATENCY: f64 = 100.0;
const THROUGHPUT: f64 = 60.0;
const CONNECT: f64 = 300.0;
const LIFE: f64 = 150.0;

/// Processors of both clients and of the server. Left to the scheduler, a
/// client that shares one with its thread of the server answers in a third of
/// the time of one that does not, whichever path it takes.
const CLIENTS: &str = "0";
const SERVER: &str = "1";

/// Work of one turn: connections, bytes there and back, bytes.
const CONNECTS: usize = 300;
const ECHOES: usize = 1_000;
const BYTES: usize = 200_000_000;
/// Milliseconds for which a service is dialled behind its first failure.
const PATIENCE: usize = 60;

/// A lab with an agent of so many services, a client that it captures and one
/// that it does not.
struct Side {
    captured: Process,
    untouched: Process,
    agent: Agent,
    _server: Process,
    _dns: NameServer,
    lab: Lab,
}

fn host(service: u32) -> String {
    format!("s{service}.bench.example:{ECHO}")
}

fn address(service: u32, endpoint: u32) -> String {
    format!("10.{}.{}.{}", service / 250, service % 250, endpoint + 1)
}

fn policy(services: u32) -> String {
    let mut text = String::new();
    for service in 0..services {
        let _ = write!(
            text,
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: s{service}
spec:
  hosts: [s{service}.bench.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports:
    - {{ number: {ECHO}, name: tcp, protocol: TCP }}
"
        );
        if services == 1 {
            let _ = writeln!(
                text,
                "    - {{ number: {BULK}, name: tcp-bulk, protocol: TCP }}"
            );
        }
        text.push_str("  endpoints:\n");
        for endpoint in 0..ENDPOINTS {
            let _ = writeln!(text, "    - address: {}", address(service, endpoint));
        }
        text.push_str("---\n");
    }
    if services == 1 {
        (0..HALVES).for_each(|half| text.push_str(&half_dead(half)));
    }
    text
}

/// A service with one endpoint that refuses, which is ejected when it does.
fn half_dead(number: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: half{number}}}
spec:
  hosts: [half{number}.bench.example]
  resolution: STATIC
  ports: [{{number: {HALF}, name: tcp, protocol: TCP}}]
  endpoints:
    - {{address: {}, ports: {{tcp: {ECHO}}}}}
    - {{address: {}, ports: {{tcp: 9}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: half{number}}}
spec:
  host: half{number}.bench.example
  trafficPolicy:
    loadBalancer: {{simple: ROUND_ROBIN}}
    outlierDetection: {{consecutive5xxErrors: 1, maxEjectionPercent: 100}}
---
",
        address(0, 0),
        address(0, 1),
    )
}

impl Side {
    fn new(services: u32) -> Result<Self> {
        let lab = crate::arena::lab()?;
        let own = std::env::current_exe()?;
        let dns = NameServer::start(&lab, RESOLVER, "")?;
        let listener = |port, speaks| Listener {
            port,
            speaks,
            tls: Tls::Off,
        };
        let serve = Serve {
            listeners: vec![
                listener(ECHO, Speaks::Echo),
                listener(BULK, Speaks::Bulk),
                listener(PLAIN, Speaks::Echo),
            ],
            certificate: String::new(),
            key: String::new(),
        };
        let mut server = pinned(&lab, Group::Servers, SERVER, &own)
            .arg("serve")
            .arg(serde_json::to_string(&serve)?)
            .stdout(Stdio::piped())
            .start()?;
        server.expect_line("ready")?;
        let agent = lab
            .agent()
            .policy("services", &policy(services))?
            .setting("--access-log", "off")
            .log_filter("warn")
            .start()?;
        let probe = |group| -> Result<Process> {
            let probe = pinned(&lab, group, CLIENTS, &own).arg("probe");
            let mut probe = probe.interactive().start()?;
            probe.expect_line("ready")?;
            Ok(probe)
        };
        Ok(Self {
            captured: probe(Group::Clients)?,
            untouched: probe(Group::Outside)?,
            agent,
            _server: server,
            _dns: dns,
            lab,
        })
    }
}

fn ask(probe: &mut Process, line: &str) -> Result<f64> {
    probe.send_line(line)?;
    let answer = probe.read_line()?;
    answer.trim().parse().with_context(|| answer.clone())
}

/// What is asked of each path in every round; a figure for each.
type Turns<'a> = &'a mut [(&'static str, &'a mut dyn FnMut() -> Result<f64>)];

/// Takes turns, each round beginning with another one.
fn interleave(
    rounds: usize,
    progress: &mut Progress,
    what: &str,
    turns: Turns<'_>,
) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let mut figures: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    // What is done first time is not what is measured.
    for (_, turn) in turns.iter_mut() {
        turn()?;
    }
    for round in 0..rounds {
        if round % 10 == 0 {
            progress.step(&format!("{NAME} {what} round {}", round + 1));
        }
        for offset in 0..turns.len() {
            let index = (round + offset) % turns.len();
            let Some((name, turn)) = turns.get_mut(index) else {
                continue;
            };
            figures.entry(name).or_default().push(turn()?);
        }
    }
    Ok(figures)
}

/// The median over the rounds of what `compare` makes of two paths' figures of
/// one round, unless it is too uncertain to be compared with a target.
fn between(
    figures: &BTreeMap<&'static str, Vec<f64>>,
    path: &str,
    base: &str,
    compare: impl Fn(f64, f64) -> f64,
    bearable: f64,
) -> Result<f64, String> {
    let (Some(one), Some(other)) = (figures.get(path), figures.get(base)) else {
        return Err("not measured".to_owned());
    };
    let values: Vec<f64> = one
        .iter()
        .zip(other)
        .map(|(one, other)| compare(*one, *other))
        .collect();
    #[allow(clippy::cast_precision_loss, reason = "a number of rounds")]
    let rounds = values.len() as f64;
    let figure = Figure::of(values).ok_or("not measured")?;
    // Standard error of a median, from the median distance to it.
    let error = 1.858 * figure.spread * figure.median.abs() / rounds.sqrt();
    if error > bearable {
        return Err(format!(
            "too noisy: {:.3} with a standard error of {error:.3}",
            figure.median
        ));
    }
    Ok(figure.median)
}

fn median(figures: &BTreeMap<&'static str, Vec<f64>>, path: &str) -> Result<f64, String> {
    let values = figures.get(path).cloned().unwrap_or_default();
    let figure = Figure::of(values).ok_or("not measured")?;
    Ok(figure.median)
}

/// Bytes that the kernel maps of an agent hold, by its own account
/// (`memlock` in `/proc/PID/fdinfo`).
fn map_bytes(agent: &Agent) -> Result<f64> {
    let mut maps: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", agent.id()))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let number = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        if let (Some(id), Some(bytes)) = (number("map_id:"), number("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    ensure!(!maps.is_empty(), "the agent has no maps");
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = maps.values().sum::<u64>() as f64;
    Ok(bytes)
}

/// Steps of [`measure`] as progress has them.
fn steps(share: f64) -> usize {
    let turns = [LATENCY, THROUGHPUT, CONNECT, LIFE].map(|usual| rounds(usual, share).div_ceil(10));
    2 + turns.iter().sum::<usize>()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "some hundreds"
)]
fn rounds(usual: f64, share: f64) -> usize {
    ((usual * share) as usize).max(5)
}

/// Measures; `share` is the part of the usual rounds.
pub(crate) fn measure(share: f64) -> Result<Vec<Row>> {
    let progress = &mut Progress::new(steps(share));
    let rounds = |usual| rounds(usual, share);
    progress.step(&format!("{NAME} one service, then {MANY}"));
    let mut one = Side::new(1)?;
    let mut many = Side::new(MANY)?;

    let real = address(0, 0);
    let (name, bulk_name) = (host(0), format!("s0.bench.example:{BULK}"));
    let echo = format!("echo {ECHOES} ");
    let bulk = format!("bulk {BYTES} ");
    let latency = interleave(
        rounds(LATENCY),
        progress,
        "latency",
        &mut [
            ("none", &mut || {
                ask(&mut one.untouched, &format!("{echo}{real}:{ECHO}"))
            }),
            ("direct", &mut || {
                ask(&mut one.captured, &format!("{echo}{name}"))
            }),
        ],
    )?;
    let throughput = interleave(
        rounds(THROUGHPUT),
        progress,
        "throughput",
        &mut [
            ("none", &mut || {
                ask(&mut one.untouched, &format!("{bulk}{real}:{BULK}"))
            }),
            ("direct", &mut || {
                ask(&mut one.captured, &format!("{bulk}{bulk_name}"))
            }),
        ],
    )?;
    // Names are looked up before: it is `connect` that is measured.
    let all: Vec<String> = (0..MANY).step_by(7).map(host).collect();
    ask(&mut many.captured, &format!("resolve {}", all.join(" ")))?;
    let turn = format!("connect {CONNECTS}");
    let mut next = 0;
    let mut others = || {
        // Each turn goes to other services, so that what it needs of them is
        // in no cache.
        let chosen: Vec<&str> = (0..CONNECTS)
            .filter_map(|index| all.get((next + index) % all.len()).map(String::as_str))
            .collect();
        next += CONNECTS;
        format!("{turn} {}", chosen.join(" "))
    };
    let connect = {
        let one_captured = std::cell::RefCell::new(&mut one.captured);
        let many_captured = std::cell::RefCell::new(&mut many.captured);
        interleave(
            rounds(CONNECT),
            progress,
            "connect",
            &mut [
                ("none", &mut || {
                    ask(&mut one.untouched, &format!("{turn} {real}:{ECHO}"))
                }),
                ("one", &mut || {
                    ask(&mut one_captured.borrow_mut(), &format!("{turn} {name}"))
                }),
                ("unregistered", &mut || {
                    ask(
                        &mut one_captured.borrow_mut(),
                        &format!("{turn} {real}:{PLAIN}"),
                    )
                }),
                ("many", &mut || {
                    ask(&mut many_captured.borrow_mut(), &format!("{turn} {name}"))
                }),
                ("others", &mut || {
                    ask(&mut many_captured.borrow_mut(), &others())
                }),
            ],
        )?
    };
    let life = format!("life {CONNECTS}");
    let lives = interleave(
        rounds(LIFE),
        progress,
        "socket to close",
        &mut [
            ("none", &mut || {
                ask(&mut one.untouched, &format!("{life} {real}:{ECHO}"))
            }),
            ("one", &mut || {
                ask(&mut one.captured, &format!("{life} {name}"))
            }),
        ],
    )?;
    progress.step(&format!("{NAME} ejection"));
    let halves: Vec<String> = (0..HALVES)
        .map(|half| format!("half{half}.bench.example:{HALF}"))
        .collect();
    let ejected = ask(
        &mut one.captured,
        &format!("eject {PATIENCE} {}", halves.join(" ")),
    )?;
    let (small, large) = (map_bytes(&one.agent)?, map_bytes(&many.agent)?);
    let carried = carried(&one)?;
    ensure!(carried > 0.0, "the kernel carried nothing");

    let ratio = |one: f64, other: f64| one / other;
    let more = |one: f64, other: f64| one - other;
    let row = |what: &str, unit, value, target| Row {
        what: what.to_owned(),
        unit,
        value,
        target,
    };
    Ok(vec![
        row(
            "throughput, one stream",
            "× of no interception",
            between(&throughput, "direct", "none", ratio, 0.01),
            Some((0.98, false)),
        ),
        row(
            "latency, a byte there and back",
            "× of no interception",
            between(&latency, "direct", "none", ratio, 0.01),
            Some((1.02, true)),
        ),
        row(
            "connect",
            "µs more than no interception",
            between(&connect, "one", "none", more, 1.0),
            Some((5.0, true)),
        ),
        row(
            "connect, no interception",
            "µs",
            median(&connect, "none"),
            None,
        ),
        row(
            "connect to an address that is not registered",
            "µs more than no interception",
            between(&connect, "unregistered", "none", more, 0.3),
            None,
        ),
        row(
            "socket, connect and close",
            "µs more than no interception",
            between(&lives, "one", "none", more, 1.0),
            None,
        ),
        row(
            "connect with 10,000 services of 10 endpoints",
            "µs more than with one service",
            between(&connect, "many", "one", more, 0.3),
            Some((1.0, true)),
        ),
        row(
            "the same, each to another service",
            "µs more than with one service",
            between(&connect, "others", "one", more, 0.3),
            None,
        ),
        row(
            "an endpoint that refused a connection is in no slot",
            "ms later, at the most",
            Ok(ejected),
            Some((10.0, true)),
        ),
        row(
            "kernel memory of all maps, one service",
            "MB",
            Ok(small / 1e6),
            None,
        ),
        row(
            "kernel memory of all maps, 10,000 services of 10 endpoints",
            "MB",
            Ok(large / 1e6),
            None,
        ),
    ])
}

/// Connections that the kernel carried, by its own counter.
fn carried(side: &Side) -> Result<f64> {
    let metrics = side.agent.metrics(&side.lab)?;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total"));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum())
}
