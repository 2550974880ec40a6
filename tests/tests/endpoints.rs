//! Which endpoint takes a connection or request, and when none may: servers
//! that die, vanish into a black hole or answer with errors under load.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::agent::Agent;
use lab::backend::{Backend, Speaks};
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::load::{self, Mode, Try};
use lab::nginx::Nginx;
use lab::process::wait_for;
use lab::{Lab, RESOLVER, Result, ensure, policy};

const LOAD: &str = env!("CARGO_BIN_EXE_load");
/// Requests a second.
const RATE: u32 = 500;
/// `baseEjectionTime`.
const BASE: Duration = Duration::from_secs(2);
/// `interval`.
const INTERVAL: Duration = Duration::from_millis(500);

/// A service with three fixed endpoints, 10.0.0.1 to 10.0.0.3.
fn three(protocol: &str, port: u16, pool: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: three
spec:
  hosts: [three.example.com]
  resolution: STATIC
  ports:
    - number: {port}
      name: port
      protocol: {protocol}
  endpoints:
    - address: 10.0.0.1
    - address: 10.0.0.2
    - address: 10.0.0.3
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: three
spec:
  host: three.example.com
  trafficPolicy:
    connectionPool:
      tcp:
        connectTimeout: 500ms
{pool}
    outlierDetection:
      consecutive5xxErrors: 5
      interval: {}ms
      baseEjectionTime: {}ms
      maxEjectionPercent: 50
",
        INTERVAL.as_millis(),
        BASE.as_millis()
    )
}

/// No retries, so that every failure of an endpoint is one that the client
/// sees; a limit for requests that get no answer.
const NO_RETRIES: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: three
spec:
  hosts: [three.example.com]
  http:
    - timeout: 1s
      retries:
        attempts: 0
      route:
        - destination:
            host: three.example.com
";

/// Lines of the agent's log about an endpoint.
fn told(agent: &Agent, message: &str, address: &str) -> Result<Vec<String>> {
    let log = agent.log()?;
    let about = |line: &&str| line.contains(message) && line.contains(address);
    Ok(log.lines().filter(about).map(ToOwned::to_owned).collect())
}

/// Waits for one more such line than `before`, and tells when it came.
fn wait_told(agent: &Agent, message: &str, address: &str, before: usize) -> Result<u64> {
    wait_for(message, Duration::from_secs(20), || {
        Ok((told(agent, message, address)?.len() > before).then(load::now))
    })
}

/// A number of a log line: `name=123`.
fn number(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!("{name}="))?;
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

/// How a server fails and gets well again.
struct Trouble {
    name: &'static str,
    begin: fn(&mut Backend, &Lab) -> Result<()>,
    end: fn(&mut Backend, &Lab) -> Result<()>,
}

const KILLED: Trouble = Trouble {
    name: "killed",
    begin: |backend, _| {
        backend.kill();
        Ok(())
    },
    end: Backend::revive,
};
const BLACK_HOLED: Trouble = Trouble {
    name: "black-holed",
    begin: |backend, lab| backend.black_hole(lab),
    end: |backend, lab| backend.unblock(lab),
};
const ANSWERING_503: Trouble = Trouble {
    name: "answering 503",
    begin: |backend, _| {
        backend.answer(503);
        Ok(())
    },
    end: |backend, _| {
        backend.answer(200);
        Ok(())
    },
};

/// One after another, the servers fail and recover under load.
fn servers_fail_and_recover(document: &str, mode: Mode, troubles: &[Trouble]) -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let (port, speaks) = match mode {
        Mode::Http => (80, Speaks::Http),
        Mode::Tcp => (7000, Speaks::Name),
    };
    let mut backends = Vec::new();
    for n in 1..=3 {
        let address = format!("10.0.0.{n}:{port}");
        backends.push(Backend::start(&lab, &format!("b{n}"), &address, speaks)?);
    }
    let agent = lab
        .agent()
        .policy("three", document)?
        .setting("--workers", "2")
        .start()?;
    let time = (BASE * 2 + Duration::from_secs(1)) * u32::try_from(troubles.len())?;
    let target = (mode, "three.example.com", port);
    let load = load::steady(&lab, LOAD, target, RATE, time)?;
    load.wait_for("the first answers", 200, |one| one.server().is_some())?;
    // From the ejection until the next trouble begins.
    let mut spans = Vec::new();
    for (trouble, backend) in troubles.iter().zip(&mut backends) {
        let address = backend.ip().to_string();
        (trouble.begin)(backend, &lab)?;
        let ejected = wait_told(&agent, "endpoint ejected", &address, 0)?;
        (trouble.end)(backend, &lab)?;
        let readmitted = wait_told(&agent, "endpoint readmitted", &address, 0)?;
        // It takes its part again.
        let served = backend.served();
        wait_for("requests to it", Duration::from_secs(10), || {
            Ok((backend.served() >= served + 20).then_some(()))
        })?;
        ensure!(readmitted > ejected);
        spans.push((trouble.name, ejected, load::now()));
        let lines = told(&agent, "endpoint readmitted", &address)?;
        let after = lines.first().and_then(|line| number(line, "after_ms"));
        let longest = (BASE + INTERVAL).as_millis();
        let in_time = after.is_some_and(|ms| u128::from(ms) <= longest + 500);
        ensure!(in_time, "{}: readmitted late: {lines:?}", trouble.name);
    }
    let tries = load.finish(Duration::from_secs(40))?;
    for (name, from, until) in spans {
        // A few milliseconds between the log line and its discovery.
        let within: Vec<&Try> = tries
            .iter()
            .filter(|one| (from..until).contains(&one.began))
            .collect();
        let bad: Vec<&&Try> = within.iter().filter(|one| one.is_bad()).collect();
        println!(
            "{name}: {} of {} failed after the ejection",
            bad.len(),
            within.len()
        );
        ensure!(within.len() > 200, "{name}: only {} requests", within.len());
        ensure!(
            bad.len() * 100 < within.len(),
            "{name}: {} of {} failed: {:?}",
            bad.len(),
            within.len(),
            &bad[..bad.len().min(5)]
        );
    }
    agent.stop()
}

#[test]
fn http_servers_fail_and_recover_under_load() -> Result<()> {
    let document = three("HTTP", 80, "") + NO_RETRIES;
    let troubles = [KILLED, BLACK_HOLED, ANSWERING_503];
    servers_fail_and_recover(&document, Mode::Http, &troubles)
}

#[test]
fn tcp_servers_fail_and_recover_under_load() -> Result<()> {
    let proxied = three("TCP", 7000, "        idleTimeout: 60s");
    servers_fail_and_recover(&proxied, Mode::Tcp, &[KILLED, BLACK_HOLED])
}

#[test]
fn servers_of_the_direct_path_fail_and_recover_under_load() -> Result<()> {
    let direct = three("TCP", 7000, "");
    servers_fail_and_recover(&direct, Mode::Tcp, &[KILLED, BLACK_HOLED])
}

/// A server that does not speak TLS is ejected for it; the default retries
/// hide it from clients meanwhile.
#[test]
fn a_failed_tls_handshake_counts_against_its_endpoint() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let authority = Authority::new(&lab, "world")?;
    let certificate = authority.issue(&["pair.example.com"])?;
    let _good = Nginx::new(&lab, "good")
        .https("10.0.0.1:443", &certificate)?
        .start()?;
    let bad = Backend::start(&lab, "no TLS here", "10.0.0.2:443", Speaks::Name)?;
    let entry = policy::tcp_static("pair.example.com", 80, &["10.0.0.1", "10.0.0.2"])
        .replace("protocol: TCP", "protocol: HTTP\n      targetPort: 443");
    let document = format!(
        "{entry}---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: pair
  namespace: default
spec:
  host: pair.example.com
  trafficPolicy:
    loadBalancer:
      simple: ROUND_ROBIN
    tls:
      mode: SIMPLE
      caCertificates: {}
    outlierDetection:
      consecutive5xxErrors: 3
      baseEjectionTime: 60s
",
        authority.path().display()
    );
    let agent = lab.agent().policy("pair", &document)?.start()?;
    wait_for("an ejection", Duration::from_secs(20), || {
        let body = lab.curl(&["--fail", "http://pair.example.com/"]).text()?;
        ensure!(body.contains("\"server\":\"good\""), "{body}");
        Ok((!told(&agent, "endpoint ejected", "10.0.0.2")?.is_empty()).then_some(()))
    })?;
    let met = bad.served();
    for _ in 0..6 {
        lab.curl(&["--fail", "http://pair.example.com/"]).text()?;
    }
    ensure!(bad.served() == met, "an ejected endpoint was used");
    let arguments = ["proxy-config", "endpoints", "pair.example.com"];
    let table = lab.egressctl(&arguments)?.text()?;
    let line = table.lines().find(|line| line.contains("10.0.0.2:443"));
    let line = line.unwrap_or_default();
    for part in ["ejected", "TLS handshake failed", "consecutive-5xx until"] {
        ensure!(line.contains(part), "no {part}: {table}");
    }
    let metrics = agent.metrics(&lab)?;
    let mut ejections = metrics
        .lines()
        .filter(|line| line.starts_with("egress_outlier_ejections_total{"));
    ensure!(ejections.any(|line| line.ends_with(" 1")), "{metrics}");
    agent.stop()
}

/// One endpoint alone is not ejected: its errors stay what they are.
#[test]
fn a_single_endpoint_is_never_ejected() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let mut only = Backend::start(&lab, "only", "10.0.0.1:7000", Speaks::Name)?;
    let detection = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: single
  namespace: default
spec:
  host: single.example.com
  trafficPolicy:
    outlierDetection:
      consecutive5xxErrors: 2
      baseEjectionTime: 60s
";
    let document = policy::tcp_static("single.example.com", 7000, &["10.0.0.1"]) + detection;
    let agent = lab.agent().policy("single", &document)?.start()?;
    only.kill();
    let script = r#"
import socket
for _ in range(10):
    try:
        socket.create_connection(("single.example.com", 7000), 5)
        raise SystemExit("connected")
    except ConnectionRefusedError:
        pass
"#;
    lab.python(script).text()?;
    only.revive(&lab)?;
    // At once, not after an ejection's time.
    let script = r#"
import socket
with socket.create_connection(("single.example.com", 7000), 5) as s:
    assert s.makefile().readline() == "only\n"
"#;
    lab.python(script).text()?;
    ensure!(told(&agent, "endpoint ejected", "10.0.0.1")?.is_empty());
    agent.stop()
}
