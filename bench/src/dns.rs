//! DNS: what a captured answer costs beside dnsmasq and unbound that answer
//! the same names themselves, and what forwarding adds to a query.

mod latency;
mod server;

use anyhow::{Context, Result, bail, ensure};
use lab::{Group, RESOLVER};

pub(crate) use latency::run as run_latency;
use latency::{Latency, Queries};
use server::Server;

use crate::account;
use crate::arena::Arena;
use crate::extra::{Amount, Row};
use crate::peer::Peer;
use crate::progress::Progress;
use crate::services;
use crate::statistics::Figure;

/// A zone whose every name the resolver of the world knows.
pub(crate) const ZONE: &str = "unregistered.example";
/// dnsmasq's option for that.
pub(crate) const ZONE_RECORDS: &str = "--address=/unregistered.example/203.0.113.9";

/// Ways of each, about: for the progress alone.
pub(crate) const WAYS: usize = 4;

/// Queries of one round.
const ANSWERS: f64 = 200_000.0;
const FORWARDS: f64 = 4_000.0;

/// Who is asked, from where.
struct Way<'a> {
    title: &'static str,
    group: Group,
    address: &'static str,
    port: u16,
    /// Who is measured.
    pid: Option<u32>,
    agent: Option<&'a dyn Peer>,
}

/// Measures `dns-answer` or `dns-forward`.
pub(crate) fn measure(
    arena: &Arena,
    agent: &dyn Peer,
    name: &str,
    amount: Amount,
    progress: &mut Progress,
) -> Result<Vec<Row>> {
    let servers = server::start_all(arena)?;
    let mut ways = vec![Way {
        title: "egress",
        group: Group::Clients,
        address: RESOLVER,
        port: 53,
        pid: agent.pid(),
        agent: Some(agent),
    }];
    ways.extend(servers.iter().map(|server| Way {
        title: server.title,
        group: Group::Outside,
        address: "127.0.0.1",
        port: server.port,
        pid: Some(server.id()),
        agent: None,
    }));
    if name == "dns-answer" {
        return answers(arena, &ways, amount, progress);
    }
    ways.insert(
        0,
        Way {
            title: "direct",
            group: Group::Outside,
            address: RESOLVER,
            port: 53,
            pid: None,
            agent: None,
        },
    );
    forwards(arena, &ways, amount, progress)
}

/// One round of a way: CPU microseconds for each query, queries a second.
#[derive(Clone, Copy, Default)]
struct Sample {
    cpu: f64,
    rate: f64,
}

fn answers(
    arena: &Arena,
    ways: &[Way<'_>],
    Amount { rounds, share }: Amount,
    progress: &mut Progress,
) -> Result<Vec<Row>> {
    let lines: String = services::ALL
        .iter()
        .flat_map(|service| ["A", "AAAA"].map(|kind| format!("{} {kind}\n", service.host())))
        .collect();
    let queries = arena.lab.write("queries", &lines)?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a number of queries"
    )]
    let runs = ((ANSWERS * share) as usize / lines.lines().count()).max(1);
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); ways.len()];
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let place = (turn + round) % ways.len();
            let way = &ways[place];
            progress.step(&format!("dns-answer round {} {}", round + 1, way.title));
            let before = answered(arena, way)?;
            let cpu = way.pid.map(account::cpu_seconds).transpose()?;
            let text = arena
                .lab
                .spawn(way.group, "dnsperf")
                .args(["-s", way.address, "-p", &way.port.to_string()])
                .args(["-n", &runs.to_string(), "-c", "4", "-q", "64", "-d"])
                .arg(&queries)
                .text()?;
            let used = way.pid.map(account::cpu_seconds).transpose()?;
            let completed = completed(&text, runs * lines.lines().count())?;
            let done = answered(arena, way)? - before;
            if way.agent.is_some() && done + 0.5 < completed {
                bail!("queries went past egress: it answered {done} of {completed}");
            }
            samples[place].push(Sample {
                cpu: used.unwrap_or(0.0).mul_add(1e6, -cpu.unwrap_or(0.0) * 1e6) / completed,
                rate: number(&text, "Queries per second:")?,
            });
        }
    }
    let mut rows = Vec::new();
    for (way, samples) in ways.iter().zip(&samples) {
        rows.push(row(
            format!("{}: CPU for each query", way.title),
            "µs",
            samples.iter().map(|sample| sample.cpu).collect(),
            None,
        ));
        rows.push(row(
            format!("{}: queries a second", way.title),
            "1/s",
            samples.iter().map(|sample| sample.rate).collect(),
            None,
        ));
    }
    for (way, others) in ways.iter().zip(&samples).skip(1) {
        let pairs = samples[0].iter().zip(others);
        let target = (way.title == "dnsmasq").then_some((1.0, false));
        rows.push(row(
            format!("queries a second and CPU, egress to {}", way.title),
            "×",
            pairs
                .map(|(egress, other)| other.cpu / egress.cpu)
                .collect(),
            target,
        ));
    }
    Ok(rows)
}

fn forwards(
    arena: &Arena,
    ways: &[Way<'_>],
    Amount { rounds, share }: Amount,
    progress: &mut Progress,
) -> Result<Vec<Row>> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of queries"
    )]
    let count = (FORWARDS * share) as u32;
    let mut samples: Vec<Vec<(Latency, f64)>> = vec![Vec::new(); ways.len()];
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let place = (turn + round) % ways.len();
            let way = &ways[place];
            progress.step(&format!("dns-forward round {} {}", round + 1, way.title));
            let queries = Queries {
                server: way.address.to_owned(),
                port: way.port,
                count: count.max(1),
                // No name is asked for twice, so nobody answers from a cache.
                zone: format!("{}-{round}.{ZONE}", way.title),
            };
            let cpu = way.pid.map(account::cpu_seconds).transpose()?;
            let text = arena
                .lab
                .spawn(way.group, &arena.own)
                .arg("dns-latency")
                .arg(serde_json::to_string(&queries)?)
                .text()?;
            let used = way.pid.map(account::cpu_seconds).transpose()?;
            let used = used.unwrap_or(0.0) - cpu.unwrap_or(0.0);
            samples[place].push((
                serde_json::from_str(&text)?,
                used * 1e6 / f64::from(queries.count),
            ));
        }
    }
    let mut rows = Vec::new();
    for (way, own) in ways.iter().zip(&samples) {
        let of = |read: fn(&Latency) -> f64| own.iter().map(|(l, _)| read(l)).collect();
        rows.push(row(
            format!("{}: p50", way.title),
            "µs",
            of(|l| l.p50),
            None,
        ));
        rows.push(row(
            format!("{}: p99", way.title),
            "µs",
            of(|l| l.p99),
            None,
        ));
        if way.pid.is_some() {
            let added = own.iter().zip(&samples[0]);
            let added = added.map(|((with, _), (without, _))| with.p50 - without.p50);
            let target = way.agent.is_some().then_some((60.0, true));
            rows.push(row(
                format!("{}: added at p50", way.title),
                "µs",
                added.collect(),
                target,
            ));
            rows.push(row(
                format!("{}: CPU for each query", way.title),
                "µs",
                own.iter().map(|(_, cpu)| *cpu).collect(),
                None,
            ));
        }
    }
    Ok(rows)
}

fn row(what: String, unit: &'static str, values: Vec<f64>, target: Option<(f64, bool)>) -> Row {
    let value = match Figure::of(values) {
        Some(figure) if figure.is_noisy() => Err("the rounds lie too far apart".to_owned()),
        Some(figure) => Ok(figure.median),
        None => Err("no round".to_owned()),
    };
    Row {
        what,
        unit,
        value,
        target,
    }
}

/// Queries that the agent has answered itself.
fn answered(arena: &Arena, way: &Way<'_>) -> Result<f64> {
    let Some(agent) = way.agent else {
        return Ok(0.0);
    };
    #[allow(clippy::cast_precision_loss, reason = "a counter")]
    let count = agent
        .counters(arena, &services::HTTP1)?
        .context("egress has no counters")?
        .dns as f64;
    Ok(count)
}

/// A figure of dnsperf's report.
fn number(text: &str, label: &str) -> Result<f64> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(label));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok())
        .with_context(|| format!("dnsperf did not say {label:?}:\n{text}"))
}

/// Queries that were answered, and well.
fn completed(text: &str, sent: usize) -> Result<f64> {
    let completed = number(text, "Queries completed:")?;
    #[allow(clippy::cast_precision_loss, reason = "a number of queries")]
    let sent = sent as f64;
    ensure!(completed > sent * 0.999, "answers are missing:\n{text}");
    let codes = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Response codes:"))
        .with_context(|| format!("dnsperf did not say the response codes:\n{text}"))?;
    ensure!(
        codes.trim().starts_with("NOERROR") && codes.contains("(100.00%)"),
        "not all answers are good: {codes}"
    );
    Ok(completed)
}

impl Server {
    fn id(&self) -> u32 {
        self.process.id()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const TEXT: &str = "Statistics:

  Queries sent:         2000
  Queries completed:    2000 (100.00%)
  Queries lost:         0 (0.00%)

  Response codes:       NOERROR 2000 (100.00%)
  Queries per second:   81234.5
";

    #[test]
    fn reads_what_dnsperf_says() {
        assert!((number(TEXT, "Queries per second:").unwrap() - 81234.5).abs() < 0.1);
        assert!((completed(TEXT, 2000).unwrap() - 2000.0).abs() < 0.1);
        assert!(completed(TEXT, 3000).is_err());
        let wrong = TEXT.replace("NOERROR 2000 (100.00%)", "NXDOMAIN 2000 (100.00%)");
        assert!(completed(&wrong, 2000).is_err());
    }
}
