//! Where a service's connections go: the kinds of resolution, ports, CIDR
//! addresses, clients that know the real address, and idle limits.
#![allow(clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use lab::dns::NameServer;
use lab::process::Finished;
use lab::scene::{HOST, REAL, TlsUpstream};
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, policy};

/// Connects to `host:port`, sends `data`, and prints what comes back.
fn talk(lab: &Lab, host: &str, port: u16, data: &str) -> Result<Finished> {
    let script = format!(
        r#"
import socket
with socket.create_connection(("{host}", {port}), 5) as s:
    assert s.getpeername()[1] == {port}
    s.sendall(b"{data}")
    print(s.recv(100).decode())
"#
    );
    lab.python(&script).output()
}

#[test]
fn static_endpoints_with_ports_of_their_own() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    // One by the map of ports, one by targetPort.
    let mapped = Server::start(&lab, "10.0.0.1:7001", Behaviour::Echo)?;
    let target = Server::start(&lab, "10.0.0.2:7002", Behaviour::Echo)?;
    let document = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: pair
spec:
  hosts: [pair.example.com]
  resolution: STATIC
  ports:
    - number: 7000
      name: tcp
      protocol: TCP
      targetPort: 7002
  endpoints:
    - address: 10.0.0.1
      ports:
        tcp: 7001
    - address: 10.0.0.2
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: pair
spec:
  host: pair.example.com
  trafficPolicy:
    loadBalancer:
      simple: ROUND_ROBIN
";
    let agent = lab.agent().policy("pair", document)?.start()?;
    for number in 0..4 {
        let said = talk(&lab, "pair.example.com", 7000, &format!("m{number}"))?.text()?;
        assert_eq!(said, format!("m{number}\n"));
    }
    assert_eq!(mapped.received().len(), 2, "round robin");
    assert_eq!(target.received().len(), 2, "round robin");
    agent.stop()
}

#[test]
fn an_endpoint_named_by_another_host_is_resolved() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "10.0.0.1 backend.example.net\n")?;
    let server = Server::start(&lab, "10.0.0.1:7000", Behaviour::Echo)?;
    let document = format!(
        "{}  endpoints:\n    - address: backend.example.net\n",
        policy::tcp("front.example.com", 7000)
    );
    let agent = lab.agent().policy("front", &document)?.start()?;
    talk(&lab, "front.example.com", 7000, "x")?.text()?;
    assert_eq!(server.received().len(), 1);
    agent.record("the record", |record| {
        record.service() == "front.example.com" && record.endpoint() == "10.0.0.1:7000"
    })?;
    agent.stop()
}

#[test]
fn addresses_with_a_prefix_belong_to_the_service() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let inside = Server::start(&lab, "10.1.2.3:7000", Behaviour::Echo)?;
    let outside = Server::start(&lab, "10.2.2.3:7000", Behaviour::Echo)?;
    let document = policy::tcp("cluster.example.com", 7000).replace(
        "resolution: DNS",
        "resolution: NONE\n  addresses: [10.1.0.0/16]",
    );
    let agent = lab.agent().policy("cluster", &document)?.start()?;
    // NONE: to the very address that was dialled.
    talk(&lab, "10.1.2.3", 7000, "x")?.text()?;
    talk(&lab, "10.2.2.3", 7000, "x")?.text()?;
    assert_eq!(inside.received().len(), 1);
    assert_eq!(outside.received().len(), 1);
    let records = agent.wait_records(1)?;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].service(), "cluster.example.com", "{records:?}");
    assert_eq!(records[0].endpoint(), "10.1.2.3:7000", "{records:?}");
    agent.stop()
}

#[test]
fn a_whole_port_belongs_to_a_service_without_addresses() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let first = Server::start(&lab, "10.1.2.3:7000", Behaviour::Echo)?;
    let second = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let document =
        policy::tcp("any.example.com", 7000).replace("resolution: DNS", "resolution: NONE");
    let agent = lab.agent().policy("any", &document)?.start()?;
    talk(&lab, "10.1.2.3", 7000, "x")?.text()?;
    talk(&lab, "203.0.113.20", 7000, "x")?.text()?;
    assert_eq!(first.received().len(), 1);
    assert_eq!(second.received().len(), 1);
    let records = agent.wait_records(2)?;
    assert!(
        records
            .iter()
            .all(|record| record.service() == "any.example.com"),
        "{records:?}"
    );
    agent.stop()
}

#[test]
fn a_client_that_knows_the_real_address_gets_the_policy_too() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let agent = upstream.agent()?.start()?;
    let resolve = format!("{HOST}:80:{REAL}");
    upstream
        .lab
        .curl(&["--fail", "--resolve", &resolve, &format!("http://{HOST}/")])
        .text()?;
    assert_eq!(upstream.nginx.request(1)?["protocol"], "TLSv1.3");
    agent.stop()
}

#[test]
fn registry_only_refuses_what_is_not_registered() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let lab = &upstream.lab;
    let server = Server::start(lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let agent = upstream
        .agent()?
        .setting("--outbound", "registry-only")
        .start()?;
    let finished = talk(lab, "203.0.113.20", 7000, "x")?;
    assert_ne!(finished.code(), 0);
    assert!(
        finished.stderr.contains("ConnectionRefusedError"),
        "{finished:?}"
    );
    assert_eq!(server.received().len(), 0);
    lab.curl(&["--fail", &format!("http://{HOST}/")]).text()?;
    agent.stop()
}

#[test]
fn an_idle_connection_is_closed_at_its_limit() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.20 idle.example.com\n")?;
    let _server = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let document = policy::join(&[
        &policy::tcp("idle.example.com", 7000),
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: idle
spec:
  host: idle.example.com
  trafficPolicy:
    connectionPool:
      tcp:
        idleTimeout: 1s
",
    ]);
    let agent = lab.agent().policy("idle", &document)?.start()?;
    let started = Instant::now();
    lab.python(
        r#"
import socket, time
s = socket.create_connection(("idle.example.com", 7000), 5)
# Bytes either way keep it open past the limit.
for _ in range(4):
    time.sleep(0.4)
    s.sendall(b"x")
    assert s.recv(1) == b"x"
s.settimeout(10)
try:
    assert s.recv(1) == b""
except ConnectionResetError:
    pass
"#,
    )
    .text()?;
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(2500), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(6), "{elapsed:?}");
    let record = agent.record("the record", |_| true)?;
    assert_eq!(record.flag(), "SI", "{record}");
    agent.stop()
}
