//! Names, not addresses, decide.
#![allow(clippy::panic, reason = "tests")]

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::Nginx;
use lab::postgres::Postgres;
use lab::scene::{HOST, TlsUpstream};
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, policy};

#[test]
fn two_databases_on_one_port_are_told_apart_by_name() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(
        &lab,
        RESOLVER,
        "10.0.0.1 orders.db.example.com\n10.0.0.2 users.db.example.com\n",
    )?;
    let data =
        |name: &str| format!("CREATE TABLE who (name text); INSERT INTO who VALUES ('{name}');");
    let _orders = Postgres::start(&lab, "10.0.0.1", &data("orders"))?;
    let _users = Postgres::start(&lab, "10.0.0.2", &data("users"))?;
    let agent = lab
        .agent()
        .policy("orders", &policy::tcp("orders.db.example.com", 5432))?
        .policy("users", &policy::tcp("users.db.example.com", 5432))?
        .start()?;
    for name in ["orders", "users", "orders"] {
        let host = format!("{name}.db.example.com");
        assert_eq!(
            lab.psql(&host, "SELECT name FROM who").text()?,
            format!("{name}\n")
        );
        agent.record("a record of the service", |record| record.service() == host)?;
    }
    agent.stop()
}

#[test]
fn two_tcp_hosts_of_one_real_address_are_told_apart_by_name() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(
        &lab,
        RESOLVER,
        "203.0.113.20 one.example.com two.example.com\n",
    )?;
    // Both are dialled on port 7000, and both are the same machine: only the
    // name says which of its ports is meant.
    let one = Server::start(&lab, "203.0.113.20:7001", Behaviour::Echo)?;
    let two = Server::start(&lab, "203.0.113.20:7002", Behaviour::Echo)?;
    let document = |host: &str, target: u16| {
        policy::tcp(host, 7000).replace(
            "protocol: TCP",
            &format!("protocol: TCP\n      targetPort: {target}"),
        )
    };
    let agent = lab
        .agent()
        .policy("one", &document("one.example.com", 7001))?
        .policy("two", &document("two.example.com", 7002))?
        .start()?;
    let script = r#"
import socket
for name in ("one", "two"):
    with socket.create_connection((name + ".example.com", 7000), 5) as s:
        s.sendall(name.encode())
        assert s.recv(100) == name.encode()
"#;
    lab.python(script).text()?;
    assert_eq!(one.received(), [b"one".to_vec()]);
    assert_eq!(two.received(), [b"two".to_vec()]);
    agent.stop()
}

#[test]
fn two_tls_hosts_of_one_real_address_get_their_own_name_and_authority() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(
        &lab,
        RESOLVER,
        "203.0.113.10 one.example.com two.example.com\n",
    )?;
    let authority = Authority::new(&lab, "world")?;
    let certificate = authority.issue(&["one.example.com", "two.example.com"])?;
    let nginx = Nginx::new(&lab, "both")
        .https("203.0.113.10:443", &certificate)?
        .start()?;
    let agent = lab
        .agent()
        .policy(
            "both",
            &policy::join(&[
                &policy::tls_origination("one.example.com", &authority.path()),
                &policy::tls_origination("two.example.com", &authority.path()),
            ]),
        )?
        .start()?;
    for (number, host) in ["one.example.com", "two.example.com"].iter().enumerate() {
        lab.curl(&["--fail", &format!("http://{host}/")]).text()?;
        let request = nginx.request(number + 1)?;
        assert_eq!(request["sni"], *host);
        assert_eq!(request["host"], *host);
    }
    agent.stop()
}

/// Virtual addresses of `host`, as a client sees them.
const ADDRESSES: &str = r"
import socket
print(sorted({info[4][0] for info in socket.getaddrinfo(HOST, 80)}))
";

#[test]
fn virtual_addresses_survive_a_restart() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let script = format!("HOST = '{HOST}'\n{ADDRESSES}");
    let agent = upstream.agent()?.start()?;
    let first = upstream.lab.python(&script).text()?;
    agent.stop()?;
    // Other names join, before it and after it in any order of names.
    let lab = &upstream.lab;
    lab.write_policy(
        "more",
        &policy::join(&[
            &policy::tcp("aaa.example.com", 80),
            &policy::tcp("zzz.example.com", 80),
        ]),
    )?;
    let agent = upstream.agent()?.start()?;
    assert_eq!(lab.python(&script).text()?, first);
    agent.stop()
}

#[test]
fn a_policy_written_later_takes_effect() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let lab = &upstream.lab;
    let agent = lab.agent().start()?;
    // Nothing registered: the real address, on which nobody listens.
    let finished = lab.curl(&[&format!("http://{HOST}/")]).output()?;
    assert_eq!(finished.code(), 7, "{finished:?}");
    lab.write_policy("api", &policy::tls_origination(HOST, upstream.ca.as_ref()))?;
    lab::process::wait_for("the policy to act", lab::process::DEADLINE, || {
        let finished = lab.curl(&["--fail", &format!("http://{HOST}/")]).output()?;
        Ok((finished.code() == 0).then_some(()))
    })?;
    std::fs::remove_file(lab.policy_directory().join("api.yaml"))?;
    lab::process::wait_for("the policy to go", lab::process::DEADLINE, || {
        let finished = lab.curl(&[&format!("http://{HOST}/")]).output()?;
        Ok((finished.code() == 7).then_some(()))
    })?;
    agent.stop()
}
