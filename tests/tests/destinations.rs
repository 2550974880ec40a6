//! Where connections go: names under wildcard hosts, hashed keys, subsets,
//! Unix sockets. What their addresses alone tell is in `addresses`.
#![allow(clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use lab::backend::{Backend, Speaks};
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::Nginx;
use lab::process::wait_for;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, ensure, policy};

#[test]
fn names_under_a_wildcard_are_resolved_as_they_are_asked_for() -> Result<()> {
    let lab = Lab::new()?;
    let records = |a: u8| {
        format!(
            "10.0.0.{a} a.wild.example.com\n10.0.0.2 b.wild.example.com\n10.0.0.2 2.wild.example.com\n"
        )
    };
    let dns = NameServer::start(&lab, RESOLVER, &records(1))?;
    let _backends = Backend::numbered(&lab, 3, 80, Speaks::Http)?;
    let document = policy::by_name("*.wild.example.com", "DYNAMIC_DNS", 80, "http", "HTTP");
    let agent = lab.agent().policy("wild", &document)?.start()?;
    let fetch = |name: &str| {
        lab.curl(&["--fail", &format!("http://{name}.wild.example.com/")])
            .output()
    };
    for (name, server) in [("a", "b1"), ("b", "b2"), ("2", "b2"), ("a", "b1")] {
        ensure!(fetch(name)?.text()? == server, "{name}");
    }
    // Each name has endpoints of its own.
    let table = lab
        .egressctl(&["proxy-config", "endpoints", "-o", "wide"])?
        .text()?;
    for (address, name) in [("10.0.0.1:80", "a.wild"), ("10.0.0.2:80", "b.wild")] {
        let mut lines = table.lines();
        let line = lines.find(|line| line.contains(address) && line.contains(name));
        ensure!(line.is_some(), "{name}: {table}");
    }
    // A name that is not there is told at once, and why.
    let arguments = ["--include", "--header", "Host: none.wild.example.com"];
    let none = lab
        .curl(&arguments)
        .arg("http://a.wild.example.com/")
        .text()?;
    ensure!(none.starts_with("HTTP/1.1 503"), "{none}");
    let record = agent.record("the failed lookup", |r| r.has_flag("DF"))?;
    ensure!(record.detail().contains("does not exist"), "{record}");
    // Its record changes: followed without anyone asking.
    dns.set(&records(3))?;
    wait_for("the new address", Duration::from_secs(15), || {
        Ok((fetch("a")?.text()? == "b3").then_some(()))
    })?;
    ensure!(fetch("b")?.text()? == "b2");
    agent.stop()
}

#[test]
fn tls_under_a_wildcard_goes_where_its_name_says() -> Result<()> {
    let lab = Lab::new()?;
    let records = "10.0.0.1 a.wild.example.com\n10.0.0.2 b.wild.example.com\n";
    let _dns = NameServer::start(&lab, RESOLVER, records)?;
    let authority = Authority::new(&lab, "world")?;
    let mut servers = Vec::new();
    for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let certificate = authority.issue(&[&format!("{name}.wild.example.com")])?;
        let nginx = Nginx::new(&lab, name).https(&format!("{ip}:443"), &certificate)?;
        servers.push(nginx.start()?);
    }
    let document = policy::by_name("*.wild.example.com", "DYNAMIC_DNS", 443, "tls", "TLS");
    let agent = lab.agent().policy("wild", &document)?.start()?;
    let ca = authority.path().display().to_string();
    for name in ["a", "b", "a"] {
        let url = format!("https://{name}.wild.example.com/");
        let body = lab.curl(&["--fail", "--cacert", &ca, &url]).text()?;
        ensure!(body.contains(&format!("\"server\":\"{name}\"")), "{body}");
    }
    let record = agent.record("the connection to b", |r| r.endpoint() == "10.0.0.2:443")?;
    ensure!(record.service() == "*.wild.example.com", "{record}");
    agent.stop()
}

#[test]
fn a_source_address_keeps_its_endpoint() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let _backends = Backend::numbered(&lab, 5, 7000, Speaks::Name)?;
    // Twenty addresses of this node.
    let mut commands = String::new();
    for n in 10..30 {
        writeln!(commands, "address add 192.0.2.{n}/24 dev eth0")?;
    }
    lab.app().ip(&commands)?;
    let host = "hashed.example.com";
    let addresses: Vec<String> = (1..=5).map(|n| format!("10.0.0.{n}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let document = policy::tcp_static(host, 7000, &addresses)
        + &policy::rule(
            host,
            "    loadBalancer:\n      consistentHash:\n        useSourceIp: true",
        );
    let agent = lab.agent().policy("hashed", &document)?.start()?;
    let text = lab
        .python(
            r#"
import socket
virtual = socket.getaddrinfo("hashed.example.com", 7000, socket.AF_INET)[0][4]
for round in range(3):
    for source in [None] + ["192.0.2.%d" % n for n in [2] + list(range(10, 30))]:
        s = socket.socket()
        if source:
            s.bind((source, 0))
        s.settimeout(5)
        s.connect(virtual)
        print(source or "none", s.makefile().readline().strip())
        s.close()
"#,
        )
        .text()?;
    let mut chosen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (source, server) in text.lines().filter_map(|line| line.split_once(' ')) {
        chosen.entry(source).or_default().insert(server);
    }
    ensure!(chosen.len() == 22, "{chosen:?}");
    ensure!(
        chosen.values().all(|servers| servers.len() == 1),
        "{chosen:?}"
    );
    // An application that chooses no address counts as the one that the
    // network would have seen.
    ensure!(chosen["none"] == chosen["192.0.2.2"], "{chosen:?}");
    let all: BTreeSet<_> = chosen.values().flatten().collect();
    ensure!(all.len() >= 3, "{chosen:?}");
    agent.stop()
}

#[test]
fn a_header_a_cookie_and_a_parameter_keep_their_endpoint() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let _backends = Backend::numbered(&lab, 3, 80, Speaks::Http)?;
    let host = "hashed.example.com";
    let entry = policy::tcp_static(host, 80, &["10.0.0.1", "10.0.0.2", "10.0.0.3"])
        .replace("protocol: TCP", "protocol: HTTP");
    let document = |key: &str| {
        let balancer = format!("    loadBalancer:\n      consistentHash:\n        {key}");
        entry.clone() + &policy::rule(host, &balancer)
    };
    let url = format!("http://{host}/");
    let agent = lab
        .agent()
        .policy("hashed", &document("httpHeaderName: x-user"))?
        .start()?;
    // By header, and the same by query parameter.
    let servers = |arguments: &dyn Fn(u8) -> Vec<String>| -> Result<Vec<String>> {
        let mut servers = Vec::new();
        for user in 0..12 {
            let arguments = arguments(user);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let first = lab.curl(&arguments).text()?;
            let second = lab.curl(&arguments).text()?;
            ensure!(first == second, "{user}: {first}, {second}");
            servers.push(first);
        }
        let all: BTreeSet<_> = servers.iter().collect();
        ensure!(all.len() >= 2, "{servers:?}");
        Ok(servers)
    };
    let by_header = servers(&|user| {
        let header = format!("x-user: user-{user}");
        vec!["--fail".into(), "--header".into(), header, url.clone()]
    })?;
    let apply = |key: &str| {
        let generation = || -> Result<String> {
            let text = lab.egressctl(&["status"])?.text()?;
            let line = text.lines().find(|line| line.contains("generation"));
            Ok(line.unwrap_or_default().to_owned())
        };
        let before = generation()?;
        lab.write_policy("hashed", &document(key))?;
        wait_for("the new policy", Duration::from_secs(10), || {
            Ok((generation()? != before).then_some(()))
        })
    };
    apply("httpQueryParameterName: user")?;
    let by_query = servers(&|user| vec!["--fail".into(), format!("{url}?user=user-{user}")])?;
    ensure!(by_header == by_query, "one hash for one key");
    apply("httpCookie:\n          name: seat\n          ttl: 60s")?;
    let jar = lab.directory().join("cookies").display().to_string();
    let fetch = || {
        lab.curl(&["--fail", "--cookie", &jar, "--cookie-jar", &jar, &url])
            .text()
    };
    let first = fetch()?;
    for _ in 0..8 {
        ensure!(fetch()? == first);
    }
    let head = lab.curl(&["--include", &url]).text()?;
    ensure!(
        head.to_ascii_lowercase().contains("set-cookie: seat="),
        "{head}"
    );
    agent.stop()
}

#[test]
fn a_subset_is_the_endpoints_with_its_labels() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let _backends = Backend::numbered(&lab, 3, 80, Speaks::Http)?;
    let document = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: parted
spec:
  hosts: [parted.example.com]
  resolution: STATIC
  ports:
    - number: 80
      name: http
      protocol: HTTP
  endpoints:
    - address: 10.0.0.1
      labels: {version: v1}
    - address: 10.0.0.2
      labels: {version: v2, tier: gold}
    - address: 10.0.0.3
      labels: {version: v2}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: parted
spec:
  host: parted.example.com
  subsets:
    - name: one
      labels: {version: v1}
    - name: gold
      labels: {version: v2, tier: gold}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: parted
spec:
  hosts: [parted.example.com]
  http:
    - match: [{uri: {prefix: /gold}}]
      route: [{destination: {host: parted.example.com, subset: gold}}]
    - route: [{destination: {host: parted.example.com, subset: one}}]
";
    let agent = lab.agent().policy("parted", document)?.start()?;
    for _ in 0..5 {
        let fetch = |path: &str| {
            lab.curl(&["--fail", &format!("http://parted.example.com{path}")])
                .text()
        };
        ensure!(fetch("/gold")? == "b2");
        ensure!(fetch("/")? == "b1");
    }
    agent.stop()
}

#[test]
fn an_endpoint_may_be_a_unix_socket() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let path = lab.directory().join("service.sock");
    let listener = UnixListener::bind(&path)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(std::result::Result::ok) {
            // A client that goes away is not this server's concern.
            let _ = std::io::Write::write_all(&mut stream, b"by unix socket\n");
        }
    });
    let unix = format!("unix://{}", path.display());
    let document = policy::tcp_static("unix.example.com", 7000, &[&unix]);
    let agent = lab.agent().policy("unix", &document)?.start()?;
    let script = r#"
import socket
with socket.create_connection(("unix.example.com", 7000), 5) as s:
    assert s.makefile().readline() == "by unix socket\n"
"#;
    lab.python(script).text()?;
    let record = agent.record("the record", |r| r.service() == "unix.example.com")?;
    ensure!(record.endpoint().contains("service.sock"), "{record}");
    agent.stop()
}

#[test]
fn an_old_connection_is_closed_and_keepalive_is_on() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "10.0.0.1 aging.example.com\n")?;
    let _server = Server::start(&lab, "10.0.0.1:7000", Behaviour::Echo)?;
    let pool = "    connectionPool:
      tcp:
        maxConnectionDuration: 3s
        tcpKeepalive:
          time: 7200s
          interval: 75s
          probes: 9";
    let document =
        policy::tcp("aging.example.com", 7000) + &policy::rule("aging.example.com", pool);
    let agent = lab.agent().policy("aging", &document)?.start()?;
    let mut client = lab
        .python(
            r#"
import socket, time
s = socket.create_connection(("aging.example.com", 7000), 5)
s.sendall(b"x")
assert s.recv(1) == b"x"
print("open", flush=True)
# Never idle.
try:
    for _ in range(100):
        time.sleep(0.1)
        s.sendall(b"x")
        if s.recv(1) == b"":
            break
    else:
        raise SystemExit("still open")
except (ConnectionResetError, BrokenPipeError):
    pass
print("closed", flush=True)
"#,
        )
        .interactive()
        .start()?;
    client.expect_line("open")?;
    let sockets = lab
        .outsider("ss")
        .args(["-tno", "dst", "10.0.0.1"])
        .text()?;
    ensure!(sockets.contains("timer:(keepalive,"), "{sockets}");
    client.expect_line("closed")?;
    let record = agent.record("the record", |r| r.service() == "aging.example.com")?;
    ensure!(record.has_flag("DT"), "{record}");
    ensure!(record.duration() >= 2900.0, "{record}");
    agent.stop()
}
