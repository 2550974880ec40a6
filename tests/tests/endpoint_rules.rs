//! Rules of DestinationRule whose effect is seen from outside: slow start, the
//! panic line, retries in flight, idle connections.
#![allow(clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use lab::agent::Agent;
use lab::backend::{Backend, Speaks};
use lab::dns::NameServer;
use lab::load::{self, Mode};
use lab::process::wait_for;
use lab::{Context, Lab, RESOLVER, Result, ensure, policy};

const LOAD: &str = env!("CARGO_BIN_EXE_load");
const HOST: &str = "ruled.example.com";
const PATIENCE: Duration = Duration::from_secs(20);

/// A service by DNS, with `policy` under `trafficPolicy`.
fn service(policy: &str) -> String {
    policy::by_name(HOST, "DNS", 80, "http", "HTTP") + &policy::rule(HOST, policy)
}

fn records(servers: &[u8]) -> String {
    let line = |n: &u8| format!("10.0.0.{n} {HOST}\n");
    servers.iter().map(line).collect()
}

fn backends(lab: &Lab, count: u8) -> Result<Vec<Backend>> {
    (1..=count)
        .map(|n| {
            Backend::start(
                lab,
                &format!("b{n}"),
                &format!("10.0.0.{n}:80"),
                Speaks::Http,
            )
        })
        .collect()
}

/// Value of the first series with this beginning that holds all of `parts`.
fn metric(agent: &Agent, lab: &Lab, name: &str, parts: &[&str]) -> Result<Option<f64>> {
    let text = agent.metrics(lab)?;
    let mut lines = text.lines().filter(|line| line.starts_with(name));
    let line = lines.find(|line| parts.iter().all(|part| line.contains(part)));
    line.and_then(|line| line.rsplit(' ').next())
        .map(|value| value.parse().with_context(|| value.to_owned()))
        .transpose()
}

/// Waits until `count` endpoints are known.
fn known(agent: &Agent, lab: &Lab, count: f64) -> Result<()> {
    wait_for("the endpoints to be known", PATIENCE, || {
        let now = metric(agent, lab, "egress_endpoints{", &[HOST])?;
        Ok(now.filter(|now| (now - count).abs() < 0.5).map(drop))
    })
}

fn get(lab: &Lab) -> Result<String> {
    lab.curl(&["--fail", &format!("http://{HOST}/")]).text()
}

/// A server that comes later takes a tenth of its share at first.
#[test]
fn a_new_endpoint_warms_up() -> Result<()> {
    let lab = Lab::new()?;
    let dns = NameServer::start(&lab, RESOLVER, &records(&[1]))?;
    let servers = backends(&lab, 2)?;
    let duration = Duration::from_secs(10);
    // This aggression keeps it at the minimum until most of the time is over.
    let policy = format!(
        "    loadBalancer:
      simple: ROUND_ROBIN
      warmup:
        duration: {}s
        minimumPercent: 10
        aggression: 0.05
",
        duration.as_secs()
    );
    let agent = lab.agent().policy("ruled", &service(&policy))?.start()?;
    known(&agent, &lab, 1.0)?;
    get(&lab)?;
    // The first has to be warm itself.
    std::thread::sleep(duration);
    dns.set(&records(&[1, 2]))?;
    let came = Instant::now();
    known(&agent, &lab, 2.0)?;
    let before = servers[0].served();
    let burst = load::burst(&lab, LOAD, (Mode::Http, HOST, 80), 64)?;
    burst.finish(PATIENCE)?;
    let (old, new) = (servers[0].served() - before, servers[1].served());
    if came.elapsed() < duration / 2 {
        ensure!(
            (1..=12).contains(&new) && old + new == 64,
            "of 64 requests the new one got {new}, the old one {old}"
        );
    } else {
        eprintln!("too slow a machine to tell: {:?}", came.elapsed());
    }
    // In the end both have the same.
    wait_for("the new one to be warm", 3 * duration, || {
        let (one, other) = (servers[0].served(), servers[1].served());
        load::burst(&lab, LOAD, (Mode::Http, HOST, 80), 20)?.finish(PATIENCE)?;
        let (one, other) = (servers[0].served() - one, servers[1].served() - other);
        Ok((one.abs_diff(other) <= 4).then_some(()))
    })?;
    agent.stop()
}

/// With all ejected, `minHealthPercent` has them all used again.
#[test]
fn below_the_panic_line_ejected_endpoints_are_used() -> Result<()> {
    for panic in [true, false] {
        let lab = Lab::new()?;
        let _dns = NameServer::start(&lab, RESOLVER, &records(&[1, 2]))?;
        let servers = backends(&lab, 2)?;
        let line = if panic { 50 } else { 0 };
        let policy = format!(
            "    outlierDetection:
      consecutive5xxErrors: 2
      interval: 60s
      baseEjectionTime: 60s
      maxEjectionPercent: 100
      minHealthPercent: {line}
"
        );
        let agent = lab.agent().policy("ruled", &service(&policy))?.start()?;
        known(&agent, &lab, 2.0)?;
        for server in &servers {
            server.answer(503);
        }
        wait_for("both to be ejected", PATIENCE, || {
            lab.curl(&[&format!("http://{HOST}/")]).output()?;
            let ejected = metric(&agent, &lab, "egress_endpoints_ejected{", &[HOST])?;
            Ok(ejected.filter(|count| *count > 1.5).map(drop))
        })?;
        for server in &servers {
            server.answer(0);
        }
        if panic {
            get(&lab)?;
        } else {
            ensure!(get(&lab).is_err(), "an ejected endpoint was used");
            agent.record("no endpoint", |record| record.has_flag("UH"))?;
        }
        agent.stop()?;
    }
    Ok(())
}

/// `maxRetries` bounds the retries in flight; what is beyond gets the answer
/// that there is.
#[test]
fn retries_in_flight_are_bounded() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, &records(&[1]))?;
    let servers = backends(&lab, 1)?;
    let policy = "    connectionPool:\n      http:\n        maxRetries: 2\n";
    let routes = format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: ruled
spec:
  hosts: [{HOST}]
  http:
    - retries:
        attempts: 1
        retryOn: 5xx
      route:
        - destination:
            host: {HOST}
"
    );
    let document = service(policy) + &routes;
    let agent = lab.agent().policy("ruled", &document)?.start()?;
    known(&agent, &lab, 1.0)?;
    servers[0].answer(503);
    let tries = load::burst(&lab, LOAD, (Mode::Http, HOST, 80), 64)?.finish(PATIENCE)?;
    let answered = tries
        .iter()
        .filter(|one| matches!(one.outcome, Ok((503, _))));
    ensure!(answered.count() == 64, "{tries:?}");
    let served = servers[0].served();
    ensure!((66..128).contains(&served), "{served} tries");
    let overflows = metric(
        &agent,
        &lab,
        "egress_limit_overflows_total{",
        &[HOST, "limit=\"maxRetries\""],
    )?;
    let refused = 128.0 - f64::from(u32::try_from(served)?);
    ensure!(
        overflows.is_some_and(|count| (count - refused).abs() < 0.5),
        "{overflows:?} overflows, {refused} requests without a retry"
    );
    agent.record("no retry", |record| record.has_flag("UO"))?;
    agent.stop()
}

/// A connection that nobody uses is closed after `http.idleTimeout`.
#[test]
fn idle_connections_are_closed() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, &records(&[1]))?;
    let servers = backends(&lab, 1)?;
    let policy = "    connectionPool:\n      http:\n        idleTimeout: 3s\n";
    let agent = lab.agent().policy("ruled", &service(policy))?.start()?;
    get(&lab)?;
    ensure!(servers[0].served() == 1);
    let open = || metric(&agent, &lab, "egress_endpoint_connections{", &[HOST]);
    ensure!(open()? == Some(1.0), "it was not kept: {:?}", open()?);
    wait_for("the connection to be closed", PATIENCE, || {
        Ok((open()? == Some(0.0)).then_some(()))
    })?;
    agent.stop()
}
