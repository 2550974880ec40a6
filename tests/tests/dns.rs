//! DNS capture, as resolvers of all styles meet it.
#![allow(clippy::panic, reason = "tests")]

use lab::dns::NameServer;
use lab::scene::{HOST, REAL, TlsUpstream};
use lab::{Group, RESOLVER, Result};

/// A second resolver, with other records.
const OTHER: &str = "198.51.100.53";
/// An IPv6 resolver.
const SIX: &str = "2001:db8:1::53";

#[test]
fn registered_names_get_virtual_addresses_by_every_way_of_asking() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let agent = upstream.agent()?.start()?;
    let script = format!(
        r#"
import ipaddress
seen = set()
for ways in ({{}}, {{"connected": True}}, {{"tcp": True}}, {{"edns": 1232}}, {{"edns": 1232, "tcp": True}}):
    for name in ("{HOST}", "{HOST}.", "{upper}"):
        answer = query("{RESOLVER}", name, A, **ways)
        assert answer.rcode == NOERROR and len(answer.answers) == 1, (ways, vars(answer))
        assert ipaddress.ip_address(answer.addresses()[0]) in ipaddress.ip_network("240.240.0.0/16")
        seen.add(answer.addresses()[0])
        answer = query("{RESOLVER}", name, AAAA, **ways)
        assert ipaddress.ip_address(answer.addresses()[0]) in ipaddress.ip_network("2001:2::/48")
        for kind in (HTTPS, SVCB):
            answer = query("{RESOLVER}", name, kind, **ways)
            assert answer.rcode == NOERROR and answer.answers == [], vars(answer)
            assert answer.soa, "a negative answer needs an SOA to be kept (RFC 2308)"
        assert (answer.edns is not None) == ("edns" in ways), vars(answer)
assert len(seen) == 1, seen
"#,
        upper = HOST.to_uppercase()
    );
    upstream.lab.dns_python(&script).text()?;
    // No query for it went out from the clients.
    let queries = upstream.dns.queries()?;
    assert!(
        !queries.iter().any(|query| query.starts_with("HTTPS")),
        "{queries:?}"
    );
    agent.stop()
}

#[test]
fn unregistered_names_go_to_the_resolver_that_was_asked() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    upstream
        .dns
        .set(&format!("{REAL} {HOST}\n203.0.113.1 other.example.com\n"))?;
    let second = NameServer::start(&upstream.lab, OTHER, "203.0.113.2 other.example.com\n")?;
    let third = NameServer::start(&upstream.lab, SIX, "203.0.113.3 other.example.com\n")?;
    let agent = upstream.agent()?.start()?;
    let script = format!(
        r#"
for ways in ({{}}, {{"connected": True}}, {{"tcp": True}}, {{"edns": 1232}}):
    for server, address in (("{RESOLVER}", 1), ("{OTHER}", 2), ("{SIX}", 3)):
        answer = query(server, "other.example.com", A, **ways)
        assert answer.addresses() == [f"203.0.113.{{address}}"], (ways, server, answer.addresses())
        answer = query(server, "nothing.example.com", A, **ways)
        assert answer.rcode == NXDOMAIN, (ways, server, answer.rcode)
        # Registered ones are answered whoever was asked.
        answer = query(server, "{HOST}", A, **ways)
        assert answer.addresses()[0].startswith("240.240."), (ways, server)
"#
    );
    upstream.lab.dns_python(&script).text()?;
    for server in [&upstream.dns, &second, &third] {
        let queries = server.queries()?;
        assert!(
            queries.contains(&"A nothing.example.com".to_owned()),
            "{queries:?}"
        );
    }
    agent.stop()
}

#[test]
fn glibc_musl_and_mapped_resolvers_all_work() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let _second = NameServer::start(&upstream.lab, OTHER, "203.0.113.2 other.example.com\n")?;
    upstream
        .dns
        .set(&format!("{REAL} {HOST}\n203.0.113.1 other.example.com\n"))?;
    let agent = upstream.agent()?.start()?;
    let script = format!(
        r#"
# glibc: the system's own resolver
assert socket.gethostbyname("{HOST}").startswith("240.240.")
assert socket.gethostbyname("other.example.com") == "203.0.113.1"

# musl: one unconnected socket, several servers, A and AAAA at once; answers
# are told apart by peer and number
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    wanted = {{}}
    for number, (name, kind) in enumerate((("{HOST}", A), ("{HOST}", AAAA), ("other.example.com", A))):
        for server in ("{RESOLVER}", "{OTHER}"):
            s.sendto(message(name, kind, number=100 + number), (server, 53))
            wanted[(server, 100 + number)] = None
    while None in wanted.values():
        data, peer = s.recvfrom(4096)
        answer = Answer(data)
        assert (peer[0], answer.number) in wanted and peer[1] == 53, peer
        wanted[(peer[0], answer.number)] = answer
    for server, last in (("{RESOLVER}", 1), ("{OTHER}", 2)):
        assert wanted[(server, 100)].addresses()[0].startswith("240.240.")
        assert wanted[(server, 101)].addresses()[0].startswith("2001:2:")
        assert wanted[(server, 102)].addresses() == [f"203.0.113.{{last}}"]

# musl with an IPv6 resolver configured: an IPv6 socket and mapped addresses
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.settimeout(5)
    s.sendto(message("{HOST}", A), ("::ffff:{RESOLVER}", 53))
    data, peer = s.recvfrom(4096)
    assert peer[:2] == ("::ffff:{RESOLVER}", 53), peer
    assert Answer(data).addresses()[0].startswith("240.240.")
"#
    );
    upstream.lab.dns_python(&script).text()?;
    agent.stop()
}

#[test]
fn a_stub_resolver_on_loopback_is_covered() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let lab = &upstream.lab;
    upstream
        .dns
        .set(&format!("{REAL} {HOST}\n203.0.113.1 other.example.com\n"))?;
    // As systemd-resolved has it: programs ask 127.0.0.53.
    let _stub = lab
        .outsider("dnsmasq")
        .args(lab::dns::DNSMASQ)
        .args([
            "--listen-address=127.0.0.53",
            &format!("--server={RESOLVER}"),
        ])
        .start()?;
    let ask = "import socket; print(socket.gethostbyname('other.example.com'))";
    lab.set_resolvers(&["127.0.0.53"])?;
    lab::process::wait_for("the stub resolver", lab::process::DEADLINE, || {
        let finished = lab.python_in(Group::Outside, ask).output()?;
        Ok((finished.code() == 0).then_some(()))
    })?;
    let agent = upstream.agent()?.start()?;
    assert_eq!(lab.python(ask).text()?, "203.0.113.1\n");
    lab.curl(&["--fail", &format!("http://{HOST}/")]).text()?;
    agent.stop()
}

#[test]
fn a_dead_resolver_does_not_touch_registered_names() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let agent = upstream.agent()?.start()?;
    upstream
        .lab
        .curl(&["--fail", &format!("http://{HOST}/")])
        .text()?;
    upstream.dns.freeze()?;
    // Captured: answered at once, and the endpoint's last good answer counts.
    let finished = upstream
        .lab
        .curl(&["--fail", &format!("http://{HOST}/")])
        .output()?;
    assert_eq!(finished.code(), 0, "{finished:?}");
    // Forwarded: fails as it would without us, not faster and not never.
    let script = format!(
        r#"
try:
    answer = query("{RESOLVER}", "other.example.com", A, timeout=8)
    assert answer.rcode == SERVFAIL, answer.rcode
except TimeoutError:
    pass
"#
    );
    upstream.lab.dns_python(&script).text()?;
    agent.stop()
}

#[test]
fn endpoints_follow_their_dns_record() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let lab = &upstream.lab;
    let certificate = upstream.authority.issue(&[HOST])?;
    let second = lab::nginx::Nginx::new(lab, "second")
        .https("203.0.113.11:443", &certificate)?
        .start()?;
    let agent = upstream.agent()?.start()?;
    lab.curl(&["--fail", &format!("http://{HOST}/")]).text()?;
    upstream.dns.set(&format!("203.0.113.11 {HOST}\n"))?;
    lab::process::wait_for("the new address to be used", lab::process::DEADLINE, || {
        lab.curl(&["--fail", &format!("http://{HOST}/")]).text()?;
        Ok((!second.requests()?.is_empty()).then_some(()))
    })?;
    agent.stop()
}
