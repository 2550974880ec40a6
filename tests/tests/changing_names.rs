//! DNS answers that change, vanish or fail while connections are open and new
//! ones come.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::backend::{Backend, Speaks};
use lab::dns::NameServer;
use lab::load::{self, Mode, Try};
use lab::process::wait_for;
use lab::{Context, Group, Lab, RESOLVER, Result, bail, ensure, policy};

const LOAD: &str = env!("CARGO_BIN_EXE_load");

/// A service by DNS, carried by the agent.
fn by_dns(protocol: &str, port: u16) -> String {
    const HOST: &str = "flapping.example.com";
    let idle = "    connectionPool: {tcp: {idleTimeout: 5m}}";
    policy::by_name(HOST, "DNS", port, "port", protocol) + &policy::rule(HOST, idle)
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

/// The same where the kernel alone carries the connection. What others opened to
/// the same address is none of our business.
#[test]
fn an_address_that_vanishes_drains_on_the_direct_path() -> Result<()> {
    let lab = Lab::new()?;
    let dns = NameServer::start(&lab, RESOLVER, &records(&[1]))?;
    let _first = Backend::start(&lab, "b1", "10.0.0.1:7000", Speaks::Name)?;
    let _second = Backend::start(&lab, "b2", "10.0.0.2:7000", Speaks::Name)?;
    let document = by_dns("TCP", 7000);
    let (entry, _) = document.split_once("---").context("two documents")?;
    let agent = lab
        .agent()
        .policy("flapping", entry)?
        .setting("--dns-drain-grace", "3s")
        .start()?;
    let hold = |host: &str, last: &str| {
        format!(
            r#"
import socket, sys
s = socket.create_connection(("{host}", 7000), 5)
lines = s.makefile()
assert lines.readline() == "b1\n"
print("held", flush=True)
s.settimeout({last})
try:
    assert lines.readline() == ""
except (ConnectionResetError, ConnectionAbortedError):
    pass
except TimeoutError:
    print("open", flush=True)
    sys.exit()
print("ended", flush=True)
"#
        )
    };
    let pod = lab.pod(1)?;
    let group = lab.cgroup("pod")?;
    let script = hold("flapping.example.com", "30");
    let mut held = lab.python(&script).interactive().start()?;
    let mut in_pod = lab
        .spawn_in(&pod, &group, "python3")
        .args(["-c", &script])
        .interactive()
        .start()?;
    let mut stranger = lab
        .python_in(Group::Outside, &hold("10.0.0.1", "12"))
        .interactive()
        .start()?;
    for process in [&mut held, &mut in_pod, &mut stranger] {
        process.expect_line("held")?;
    }
    dns.set(&records(&[2]))?;
    held.expect_line("ended")?;
    in_pod.expect_line("ended")?;
    stranger.expect_line("open")?;
    let tell = r#"
import socket
with socket.create_connection(("flapping.example.com", 7000), 5) as s:
    assert s.makefile().readline() == "b2\n"
"#;
    lab.python(tell).text()?;
    let record = agent.record("a direct connection to the old address", |record| {
        record.endpoint() == "10.0.0.1:7000"
    })?;
    ensure!(record.field("via") == "direct", "{record:?}");
    let log = agent.log()?;
    ensure!(log.contains("the grace time is over"), "{log}");
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
