//! Which endpoint takes a connection or request, and when none may: servers
//! that die, vanish into a black hole or answer with errors under load.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::agent::Agent;
use lab::backend::{Backend, Speaks};
use lab::dns::NameServer;
use lab::load::{self, Mode, Try};
use lab::process::wait_for;
use lab::{Lab, RESOLVER, Result, bail, ensure};

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

/// A service by DNS, carried by the agent.
fn by_dns(protocol: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: flapping
spec:
  hosts: [flapping.example.com]
  resolution: DNS
  ports:
    - number: {port}
      name: port
      protocol: {protocol}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: flapping
spec:
  host: flapping.example.com
  trafficPolicy:
    connectionPool:
      tcp:
        idleTimeout: 60s
"
    )
}

fn records(servers: &[u8]) -> String {
    let line = |n: &u8| format!("10.0.0.{n} flapping.example.com\n");
    servers.iter().map(line).collect()
}

/// All servers live, while the answers for their name change every second: no
/// connection fails, and none that is open is cut.
#[test]
fn answers_that_flap_cost_no_connection() -> Result<()> {
    let lab = Lab::new()?;
    let dns = NameServer::start(&lab, RESOLVER, &records(&[1, 2]))?;
    let mut backends = Vec::new();
    for n in 1..=3 {
        let address = format!("10.0.0.{n}:7000");
        backends.push(Backend::start(
            &lab,
            &format!("b{n}"),
            &address,
            Speaks::Name,
        )?);
    }
    let agent = lab
        .agent()
        .policy("flapping", &by_dns("TCP", 7000))?
        .start()?;
    // One for each address, open all the while.
    let held = lab
        .python(
            r#"
import socket
held = [socket.create_connection(("flapping.example.com", 7000), 5) for _ in range(6)]
print("held", flush=True)
input()
for s in held:
    s.setblocking(False)
    assert s.recv(100)
    try:
        assert s.recv(1) == "still open"
    except BlockingIOError:
        pass
print("open", flush=True)
"#,
        )
        .interactive();
    let mut held = held.start()?;
    held.expect_line("held")?;
    let seconds = if lab::long() { 60 } else { 8 };
    let target = (Mode::Tcp, "flapping.example.com", 7000);
    let time = Duration::from_secs(seconds);
    let load = load::steady(&lab, LOAD, target, 200, time)?;
    let answers: [&[u8]; 4] = [&[2, 3], &[3], &[1, 3], &[1, 2]];
    for (_, servers) in (1..seconds).zip(answers.iter().cycle()) {
        dns.set(&records(servers))?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let tries = load.finish(Duration::from_secs(40))?;
    let bad: Vec<&Try> = tries.iter().filter(|one| one.is_bad()).collect();
    if !bad.is_empty() {
        let mut records = agent.records()?;
        records.retain(|record| record.flag() != "-");
        bail!(
            "{} failed: {:?}
{records:?}
{}",
            bad.len(),
            &bad[..bad.len().min(5)],
            agent.log()?
        );
    }
    ensure!(tries.len() > 500, "{}", tries.len());
    for backend in &backends {
        ensure!(backend.served() > 20, "no part for {}", backend.ip());
    }
    let log = agent.log()?;
    ensure!(log.contains("endpoint vanished"), "{log}");
    held.send_line("")?;
    held.expect_line("open")?;
    agent.stop()
}

/// An address that is gone for longer than the grace time takes nothing new,
/// and its open connections end.
#[test]
fn an_address_that_vanishes_drains() -> Result<()> {
    let lab = Lab::new()?;
    let dns = NameServer::start(&lab, RESOLVER, &records(&[1]))?;
    let _first = Backend::start(&lab, "b1", "10.0.0.1:7000", Speaks::Name)?;
    let _second = Backend::start(&lab, "b2", "10.0.0.2:7000", Speaks::Name)?;
    let agent = lab
        .agent()
        .policy("flapping", &by_dns("TCP", 7000))?
        .setting("--dns-drain-grace", "3s")
        .start()?;
    let mut held = lab
        .python(
            r#"
import socket
s = socket.create_connection(("flapping.example.com", 7000), 5)
lines = s.makefile()
assert lines.readline() == "b1\n"
print("held", flush=True)
s.settimeout(20)
try:
    assert lines.readline() == ""
except ConnectionResetError:
    pass
print("ended", flush=True)
"#,
        )
        .interactive()
        .start()?;
    held.expect_line("held")?;
    dns.set(&records(&[2]))?;
    let states = || {
        let arguments = ["proxy-config", "endpoints", "flapping.example.com"];
        lab.egressctl(&arguments)?.text()
    };
    wait_for("the address to drain", Duration::from_secs(10), || {
        let text = states()?;
        let mut lines = text.lines();
        let line = lines.find(|line| line.contains("10.0.0.1:7000"));
        Ok(line.filter(|line| line.contains("draining")).map(drop))
    })?;
    let tell = r#"
import socket
with socket.create_connection(("flapping.example.com", 7000), 5) as s:
    assert s.makefile().readline() == "b2\n"
"#;
    lab.python(tell).text()?;
    held.expect_line("ended")?;
    agent.stop()
}

/// What proxy-config shows once a name server is dead: the last good answer,
/// in use, with its age and the reason.
#[test]
fn the_last_good_answer_outlives_its_name_server() -> Result<()> {
    let lab = Lab::new()?;
    let dns = NameServer::start(&lab, RESOLVER, &records(&[1]))?;
    let _first = Backend::start(&lab, "b1", "10.0.0.1:7000", Speaks::Name)?;
    let agent = lab
        .agent()
        .policy("flapping", &by_dns("TCP", 7000))?
        .start()?;
    let tell = r#"
import socket
with socket.create_connection(("flapping.example.com", 7000), 5) as s:
    assert s.makefile().readline() == "b1\n"
"#;
    lab.python(tell).text()?;
    dns.stop()?;
    let shown = || {
        let arguments = ["proxy-config", "dns", "flapping.example.com"];
        lab.egressctl(&arguments)?.text()
    };
    wait_for("the failure to show", Duration::from_secs(20), || {
        let text = shown()?;
        let line = text
            .lines()
            .find(|line| line.contains("flapping.example.com"));
        Ok(line
            .filter(|line| line.contains("10.0.0.1") && line.contains("name server"))
            .map(drop))
    })
    .map_err(|error| error.context(shown().unwrap_or_default()))?;
    lab.python(tell).text()?;
    agent.stop()
}
