//! Destinations that are known by their address alone: one that several names
//! share, real ones behind wildcard hosts, and a family that does not answer.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::backend::{Backend, Speaks};
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::Nginx;
use lab::process::wait_for;
use lab::{Lab, RESOLVER, Result, ensure, policy};

/// A name that is not registered shares its address with one that is, as on a
/// content delivery network; clients know the address without our DNS.
#[test]
fn a_name_that_shares_an_address_is_never_caught() -> Result<()> {
    let lab = Lab::new()?;
    let records = "10.0.0.1 mine.example.com other.example.net\n";
    let _dns = NameServer::start(&lab, RESOLVER, records)?;
    let authority = Authority::new(&lab, "world")?;
    let certificate = authority.issue(&["mine.example.com", "other.example.net"])?;
    let nginx = Nginx::new(&lab, "shared")
        .https("10.0.0.1:443", &certificate)?
        .http("10.0.0.1:80")?
        .start()?;
    let ca = authority.path().display().to_string();
    let document = policy::tls_origination("mine.example.com", ca.as_ref());
    let agent = lab.agent().policy("mine", &document)?.start()?;
    let fetch = |scheme: &str, name: &str, port: u16| {
        let resolve = format!("{name}:{port}:10.0.0.1");
        let url = format!("{scheme}://{name}/");
        let arguments = ["--fail", "--cacert", &ca, "--resolve", &resolve, &url];
        lab.curl(&arguments).text()
    };
    wait_for("the address to be known", Duration::from_secs(10), || {
        let text = fetch("http", "mine.example.com", 80)?;
        Ok(text.contains("TLSv1.3").then_some(()))
    })?;
    // In the clear it stays in the clear; TLS stays its own.
    let plain = fetch("http", "other.example.net", 80)?;
    ensure!(plain.contains("\"protocol\":\"\""), "{plain}");
    ensure!(plain.contains("\"host\":\"other.example.net\""), "{plain}");
    let tls = fetch("https", "other.example.net", 443)?;
    ensure!(tls.contains("\"sni\":\"other.example.net\""), "{tls}");
    // By DNS too, which gives out the real address for it.
    let arguments = ["--fail", "--cacert", &ca, "https://other.example.net/"];
    lab.curl(&arguments).text()?;
    lab.curl(&["--fail", "http://other.example.net/"]).text()?;
    // What speaks no name at all is not caught either: it reaches the server.
    let script = r#"
import socket
with socket.create_connection(("10.0.0.1", 80), 5) as s:
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert b"200" in s.makefile("rb").readline()
"#;
    lab.python(script).text()?;
    let log = nginx.requests()?;
    ensure!(log.len() >= 6, "{log:?}");
    let metrics = agent.metrics(&lab)?;
    let passed = metrics
        .lines()
        .find(|line| line.starts_with("egress_passed_on_connections_total"));
    ensure!(
        passed.is_some_and(|line| !line.ends_with(" 0")),
        "{passed:?}"
    );
    agent.stop()
}

/// A client that knows the real address of a name under a wildcard host meets
/// the policy; another name at the same address does not.
#[test]
fn real_addresses_of_names_under_a_wildcard_are_known() -> Result<()> {
    let lab = Lab::new()?;
    let records = "10.0.0.1 a.wild.example.com other.example.net
10.0.0.2 b.wild.example.com full.wild.example.com
";
    let _dns = NameServer::start(&lab, RESOLVER, records)?;
    let _backends = Backend::numbered(&lab, 2, 80, Speaks::Http)?;
    let document = policy::join(&[
        &policy::by_name("*.wild.example.com", "DYNAMIC_DNS", 80, "http", "HTTP"),
        &policy::by_name("full.wild.example.com", "DNS", 80, "http", "HTTP"),
    ]);
    let agent = lab.agent().policy("wild", &document)?.start()?;
    let fetch_at = |name: &str, last: u8| {
        let resolve = format!("{name}:80:10.0.0.{last}");
        let url = format!("http://{name}/");
        lab.curl(&["--fail", "--resolve", &resolve, &url]).text()
    };
    let fetch = |name: &str| fetch_at(name, 1);
    let carried = || {
        let records = agent.records()?;
        let ours = |record: &&lab::record::Record| record.service() == "*.wild.example.com";
        Ok::<_, lab::Error>(records.iter().filter(ours).count())
    };
    // Nobody has asked for it yet: the address is nobody's.
    fetch("a.wild.example.com")?;
    ensure!(carried()? == 0, "caught an address that nobody had named");
    // One client asks DNS; it gets a virtual address, and the real one is known.
    lab.python("import socket; print(socket.getaddrinfo('a.wild.example.com', 80))")
        .text()?;
    wait_for("the address to be known", Duration::from_secs(10), || {
        fetch("a.wild.example.com")?;
        Ok((carried()? > 0).then_some(()))
    })?;
    let before = carried()?;
    fetch("other.example.net")?;
    let passed = || {
        let metrics = agent.metrics(&lab)?;
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.starts_with("egress_passed_on_connections_total"));
        Ok::<_, lab::Error>(line.is_some_and(|line| !line.ends_with(" 0")))
    };
    ensure!(passed()?, "the other name was not passed on");
    ensure!(carried()? == before, "the other name was taken for ours");
    // A full name goes before the wildcard host, also where both are known.
    lab.python("import socket; print(socket.getaddrinfo('b.wild.example.com', 80))")
        .text()?;
    wait_for(
        "the full name to be told apart",
        Duration::from_secs(10),
        || {
            fetch_at("full.wild.example.com", 2)?;
            fetch_at("b.wild.example.com", 2)?;
            let records = agent.records()?;
            let full = records
                .iter()
                .any(|r| r.service() == "full.wild.example.com");
            Ok((full && carried()? > before).then_some(()))
        },
    )?;
    let wrong = agent.records()?.into_iter().find(|record| {
        record.service() == "*.wild.example.com" && record.field("authority").contains("full")
    });
    ensure!(wrong.is_none(), "{wrong:?}");
    agent.stop()
}

/// Two registered names share an address; clients know it without our DNS.
#[test]
fn two_registered_names_of_one_address_are_told_apart() -> Result<()> {
    let lab = Lab::new()?;
    let records = "10.0.0.1 one.example.com two.example.com\n";
    let _dns = NameServer::start(&lab, RESOLVER, records)?;
    let (first, second) = (
        Authority::new(&lab, "first")?,
        Authority::new(&lab, "second")?,
    );
    let certificate = first.issue(&["one.example.com"])?;
    let _nginx = Nginx::new(&lab, "shared")
        .https("10.0.0.1:443", &certificate)?
        .start()?;
    let document = policy::join(&[
        &policy::tls_origination("one.example.com", &first.path()),
        &policy::tls_origination("two.example.com", &second.path()),
    ]);
    let agent = lab.agent().policy("both", &document)?.start()?;
    let fetch = |name: &str| {
        let resolve = format!("{name}:80:10.0.0.1");
        let url = format!("http://{name}/");
        lab.curl(&["--include", "--resolve", &resolve, &url])
            .output()
    };
    wait_for("the address to be known", Duration::from_secs(10), || {
        let text = fetch("one.example.com")?.stdout;
        Ok(text.contains("\"sni\":\"one.example.com\"").then_some(()))
    })?;
    // The other name's policy: another authority, so no answer from here.
    let refused = fetch("two.example.com")?.stdout;
    ensure!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    agent.record("its record", |r| {
        r.service() == "two.example.com" && r.has_flag("UF")
    })?;
    agent.stop()
}

/// The service's IPv6 address is a black hole: its IPv4 address answers long
/// before the connect timeout.
#[test]
fn a_dead_address_family_is_not_waited_for() -> Result<()> {
    let lab = Lab::new()?;
    let records = "10.0.0.1 dual.example.com\n2001:db8:1::1 dual.example.com\n";
    let _dns = NameServer::start(&lab, RESOLVER, records)?;
    let _name = Backend::start(&lab, "v4", "10.0.0.1:7000", Speaks::Name)?;
    let _http = Backend::start(&lab, "v4", "10.0.0.1:80", Speaks::Http)?;
    lab.world()
        .ip("route add blackhole 2001:db8:1::1/128 table local metric 1\n")?;
    let pool = "    connectionPool:
      tcp:
        connectTimeout: 60s
        idleTimeout: 60s
      http:
        maxRequestsPerConnection: 1";
    let ports = "    - number: 80
      name: http
      protocol: HTTP
";
    let document =
        policy::tcp("dual.example.com", 7000) + ports + &policy::rule("dual.example.com", pool);
    let agent = lab.agent().policy("dual", &document)?.start()?;
    // Several times, since each connection begins with either of them.
    let script = r#"
import socket
for _ in range(16):
    with socket.create_connection(("dual.example.com", 7000), 5) as s:
        s.settimeout(15)
        assert s.makefile().readline() == "v4\n"
"#;
    lab.python(script).text()?;
    for _ in 0..10 {
        let body = lab.curl(&["--fail", "http://dual.example.com/"]).text()?;
        ensure!(body == "v4", "{body}");
    }
    for record in agent.records()? {
        ensure!(record.endpoint().starts_with("10.0.0.1:"), "{record}");
    }
    agent.stop()
}
