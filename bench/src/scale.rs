//! What many services cost the agent: memory, the start, one change.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::agent::Agent;

use crate::extra::Row;

const MANY: usize = 10_000;
/// Changes of one service, of which the median counts.
const CHANGES: usize = 15;
/// As many as on a node of two cores.
const WORKERS: usize = 2;
/// After so long an agent at rest has given back what its start needed.
const REST: Duration = Duration::from_secs(7);
const DEADLINE: Duration = Duration::from_secs(20);
/// What the agent logs once a change is in the kernel and with all workers.
const IN_FORCE: &str = "policy in force";

fn row(
    what: impl Into<String>,
    unit: &'static str,
    value: &Result<f64>,
    target: Option<(f64, bool)>,
) -> Row {
    let value = match value {
        Ok(value) => Ok(*value),
        Err(error) => Err(format!("{error:#}")),
    };
    Row {
        what: what.into(),
        unit,
        value,
        target,
    }
}

/// What an agent at rest holds.
pub(crate) fn memory() -> Vec<Row> {
    let at_rest = |count| -> Result<f64> {
        let lab = Lab::new()?;
        let (agent, _) = start(&lab, count)?;
        sleep(REST);
        let megabytes = resident(&agent)?;
        drop(agent);
        lab.clean_up()?;
        Ok(megabytes)
    };
    let (one, thousand, many) = (at_rest(1), at_rest(1000), at_rest(MANY));
    let each = match (&one, &many) {
        #[allow(clippy::cast_precision_loss, reason = "a small number")]
        (Ok(one), Ok(many)) => Ok((many - one) * 1000.0 / (MANY - 1) as f64),
        _ => Err(anyhow::anyhow!("not known without the two figures above")),
    };
    vec![
        row(
            "resident memory with one service",
            "MB",
            &one,
            Some((12.0, true)),
        ),
        row("resident memory with 1,000 services", "MB", &thousand, None),
        row("resident memory with 10,000 services", "MB", &many, None),
        row("each service, of 10,000", "KB", &each, Some((4.0, true))),
    ]
}

/// The start with many services, and one change.
pub(crate) fn policy() -> Vec<Row> {
    let measured = || -> Result<(f64, f64)> {
        let lab = Lab::new()?;
        let (alone, base) = start(&lab, 1)?;
        drop(alone);
        lab.clean_up()?;
        let lab = Lab::new()?;
        let (agent, took) = start(&lab, MANY)?;
        let change = change(&lab, &agent)?;
        drop(agent);
        lab.clean_up()?;
        Ok((took.saturating_sub(base).as_secs_f64(), change))
    };
    let (load, change) = match measured() {
        Ok((load, change)) => (Ok(load), Ok(change)),
        Err(error) => {
            let again = anyhow::anyhow!("{error:#}");
            (Err(error), Err(again))
        }
    };
    vec![
        row(
            "load: start to ready, beyond that with one service",
            "s",
            &load,
            Some((1.0, true)),
        ),
        row(
            "one change: from the call of the API to in force, median",
            "ms",
            &change,
            Some((50.0, true)),
        ),
    ]
}

/// An agent with so many services, and how long it took to get ready.
fn start(lab: &Lab, count: usize) -> Result<(Agent, Duration)> {
    let builder = lab.agent().policy("services", &services(count))?;
    let began = Instant::now();
    let agent = builder
        .setting("--workers", WORKERS.to_string())
        .setting("--access-log", "off")
        .log_filter("warn,egress_agent::lifecycle::node=debug")
        .start()?;
    Ok((agent, began.elapsed()))
}

fn services(count: usize) -> String {
    let mut out = String::new();
    for n in 0..count {
        let _ = write!(
            out,
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s{n}}}
spec:
  hosts: [s{n}.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 443, name: tls, protocol: TLS}}]
  endpoints: [{{address: 198.51.100.{}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: s{n}}}
spec:
  host: s{n}.example.com
  trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {}}}}}}}
",
            n % 250 + 1,
            n % 100 + 1
        );
    }
    out
}

fn resident(agent: &Agent) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next());
    let kilobytes: f64 = kilobytes.context("no VmRSS in the status")?.parse()?;
    Ok(kilobytes * 1.024 / 1000.0)
}

/// Milliseconds from the call of the API until the agent says that the change
/// is in force.
fn change(lab: &Lab, agent: &Agent) -> Result<f64> {
    let socket = lab.directory().join("admin.sock");
    let mut all = Vec::with_capacity(CHANGES);
    for n in 0..CHANGES {
        let before = agent.log()?.matches(IN_FORCE).count();
        let began = Instant::now();
        post(&socket, &service(n))?;
        while agent.log()?.matches(IN_FORCE).count() == before {
            ensure!(began.elapsed() < DEADLINE, "the change is not in force");
            sleep(Duration::from_millis(1));
        }
        all.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[CHANGES / 2])
}

/// One service that is another one each time.
fn service(n: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: extra}}
spec:
  hosts: [extra.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: {}, name: tls, protocol: TLS}}]
  endpoints: [{{address: 198.51.100.7}}]
",
        1000 + n
    )
}

fn post(socket: &Path, text: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "POST /v1/documents HTTP/1.1\r\nhost: egress\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{text}",
        text.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}
