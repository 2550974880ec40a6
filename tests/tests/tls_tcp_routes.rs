//! `tls` and `tcp` routes of a VirtualService, for connections whose bytes are
//! not looked into: real TLS clients and servers on ports of pass-through TLS,
//! and a protocol of its own.
#![allow(clippy::panic, reason = "tests")]

use lab::agent::Agent;
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::{Nginx, RunningNginx};
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, policy};

const ONE: &str = "one.example.com";
const V1: &str = "203.0.113.10";
const V2: &str = "203.0.113.20";
const OTHER: &str = "203.0.113.30";

/// Three hosts of which one is a wildcard, at two endpoints, and a VirtualService
/// with these `tls` routes; another service on another port.
fn tls_documents(routes: &str) -> String {
    let entries = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: names, namespace: default}}
spec:
  hosts: [{ONE}, two.example.com, three.example.com, \"*.wild.example.com\"]
  ports: [{{number: 443, name: tls, protocol: TLS}}]
{}---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: other, namespace: default}}
spec:
  hosts: [other.example.com]
  ports: [{{number: 8443, name: tls, protocol: TLS}}, {{number: 9443, name: tls-more, protocol: TLS}}]
  resolution: STATIC
  endpoints: [{{address: {OTHER}}}]
",
        policy::versioned(V1, V2)
    );
    let virtual_service = format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: names, namespace: default}}
spec:
  hosts: [{ONE}, two.example.com, three.example.com, \"*.wild.example.com\"]
  tls:
{routes}"
    );
    policy::join(&[&entries, &policy::versions(ONE), &virtual_service])
}

struct Scene {
    agent: Agent,
    /// At [`V1`], [`V2`], and the two ports of [`OTHER`].
    servers: [RunningNginx; 3],
    ca: String,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new(routes: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let certificate = authority.issue(&[
            ONE,
            "two.example.com",
            "three.example.com",
            "*.wild.example.com",
            "*.a.wild.example.com",
        ])?;
        let server = |name: &str, addresses: &[String]| -> Result<RunningNginx> {
            let mut nginx = Nginx::new(&lab, name);
            for address in addresses {
                nginx = nginx.https(address, &certificate)?;
            }
            nginx.start()
        };
        Ok(Self {
            servers: [
                server("v1", &[format!("{V1}:443")])?,
                server("v2", &[format!("{V2}:443")])?,
                server("other", &[format!("{OTHER}:8443"), format!("{OTHER}:9443")])?,
            ],
            _dns: NameServer::start(
                &lab,
                RESOLVER,
                &format!("{V1} a.wild.example.com\n{V1} b.a.wild.example.com\n"),
            )?,
            agent: lab.agent().policy("tls", &tls_documents(routes))?.start()?,
            ca: authority.path().display().to_string(),
            lab,
        })
    }

    /// Which server answers an application that speaks TLS to `host`.
    fn who(&self, host: &str) -> Result<String> {
        let url = format!("https://{host}/");
        let text = self
            .lab
            .curl(&["--fail", "--cacert", &self.ca, &url])
            .text()?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        // The application's own TLS arrives, with the name that it said.
        assert_eq!(answer["protocol"], "TLSv1.3", "{text}");
        assert_eq!(answer["sni"], host, "{text}");
        Ok(answer["server"].as_str().unwrap_or_default().to_owned())
    }

    fn explain(&self, what: &str) -> Result<String> {
        self.lab.egressctl(&["explain", what])?.text()
    }
}

#[test]
fn the_server_name_chooses_among_tls_routes() -> Result<()> {
    let scene = Scene::new(&format!(
        "    - match: [{{port: 443, sniHosts: [{ONE}, two.example.com]}}]
      route: [{{destination: {{host: {ONE}, subset: v2, port: {{number: 443}}}}}}]
    - match:
        - {{port: 8443, sniHosts: [\"*.wild.example.com\"]}}
        - {{port: 443, sniHosts: [\"*.a.wild.example.com\"]}}
      route: [{{destination: {{host: other.example.com, port: {{number: 9443}}}}}}]
    - match: [{{port: 443, sniHosts: [\"*.wild.example.com\"]}}]
      route: [{{destination: {{host: other.example.com, port: {{number: 8443}}}}}}]
"
    ))?;
    let cases = [
        (ONE, "v2", format!("{V2}:443")),
        ("two.example.com", "v2", format!("{V2}:443")),
        ("a.wild.example.com", "other", format!("{OTHER}:8443")),
        // The first route that fits, not the one that fits best.
        ("b.a.wild.example.com", "other", format!("{OTHER}:9443")),
    ];
    for (count, (host, server, endpoint)) in (1..).zip(&cases) {
        assert_eq!(scene.who(host)?, *server, "{host}");
        let records = scene.agent.wait_records(count)?;
        let record = &records[count - 1];
        assert_eq!(record.endpoint(), endpoint, "{record}");
        assert_eq!(record.field("sni"), *host, "{record}");
        assert_eq!(record.flag(), "-", "{record}");
        assert!(record.sent() > 100 && record.received() > 1000, "{record}");
    }
    assert_eq!(scene.servers[0].requests()?.len(), 0);
    // A name that no route has: nothing of it goes anywhere.
    let refused = scene
        .lab
        .curl(&["--cacert", &scene.ca, "https://three.example.com/"])
        .output()?;
    assert_ne!(refused.code(), 0, "{refused:?}");
    let record = scene
        .agent
        .record("a connection without a route", |record| {
            record.field("sni") == "three.example.com"
        })?;
    assert_eq!(record.flag(), "NR", "{record}");
    // What explains it.
    let text = scene.explain(&format!("https://{ONE}/"))?;
    for part in [
        "port is 443",
        "SNI is one.example.com or two.example.com",
        "v2",
        V2,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = scene.explain("https://b.a.wild.example.com/")?;
    assert!(text.contains(&format!("{OTHER}:9443")), "{text}");
    let text = scene.explain("https://three.example.com/")?;
    assert!(
        text.contains("none of the tls routes matches: the connection is reset, NR"),
        "{text}"
    );
    scene.agent.stop()
}

#[test]
fn weights_share_connections_between_subsets_and_services() -> Result<()> {
    let scene = Scene::new(&format!(
        "    - match: [{{port: 443, sniHosts: [{ONE}]}}]
      route:
        - {{destination: {{host: {ONE}, subset: v1, port: {{number: 443}}}}, weight: 60}}
        - {{destination: {{host: {ONE}, subset: v2, port: {{number: 443}}}}, weight: 0}}
        - {{destination: {{host: other.example.com, port: {{number: 8443}}}}, weight: 40}}
"
    ))?;
    let count = if lab::long() { 1000 } else { 150 };
    let script = format!(
        r#"
import socket, ssl
context = ssl.create_default_context(cafile="{}")
for _ in range({count}):
    with socket.create_connection(("{ONE}", 443), 10) as raw:
        with context.wrap_socket(raw, server_hostname="{ONE}") as s:
            s.sendall(b"GET / HTTP/1.1\r\nhost: {ONE}\r\nconnection: close\r\n\r\n")
            assert s.recv(100).startswith(b"HTTP/1.1 200")
"#,
        scene.ca
    );
    scene.lab.python(&script).text()?;
    let records = scene.agent.wait_records(count)?;
    let at = |endpoint: String| {
        let found = records.iter().filter(|one| one.endpoint() == endpoint);
        found.count()
    };
    let shares = [
        at(format!("{V1}:443")),
        at(format!("{V2}:443")),
        at(format!("{OTHER}:8443")),
    ];
    assert_eq!(shares.iter().sum::<usize>(), count, "{shares:?}");
    // Seven standard deviations at the short length.
    assert!(shares[0] > count * 32 / 100, "{shares:?}");
    assert_eq!(shares[1], 0, "{shares:?}");
    assert!(shares[2] > count * 12 / 100, "{shares:?}");
    let text = scene.explain(&format!("https://{ONE}/"))?;
    for share in ["60", "40"] {
        assert!(text.contains(share), "{text}");
    }
    scene.agent.stop()
}

#[test]
fn ports_weights_and_callers_choose_among_tcp_routes() -> Result<()> {
    const HOST: &str = "queue.example.com";
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let servers = [V1, V2, OTHER].map(|address| {
        [7000, 7001, 7002, 7100]
            .map(|port| Server::start(&lab, &format!("{address}:{port}"), Behaviour::Echo))
    });
    for server in servers.as_flattened() {
        if let Err(error) = server {
            panic!("{error:#}");
        }
    }
    let documents = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: queue, namespace: default}}
spec:
  hosts: [{HOST}]
  ports:
    - {{number: 7000, name: tcp-a, protocol: TCP}}
    - {{number: 7001, name: tcp-b, protocol: TCP}}
    - {{number: 7002, name: tcp-c, protocol: TCP}}
{}---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: archive, namespace: default}}
spec:
  hosts: [archive.example.com]
  ports: [{{number: 7100, name: tcp, protocol: TCP}}]
  resolution: STATIC
  endpoints: [{{address: {OTHER}}}]
---
{}---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: queue, namespace: default}}
spec:
  hosts: [{HOST}]
  tcp:
    - match: [{{port: 7000, sourceLabels: {{role: batch}}}}]
      route: [{{destination: {{host: archive.example.com, port: {{number: 7100}}}}}}]
    - match: [{{port: 7000}}]
      route: [{{destination: {{host: {HOST}, subset: v2, port: {{number: 7001}}}}}}]
    - match: [{{port: 7001}}]
      route:
        - {{destination: {{host: {HOST}, subset: v1, port: {{number: 7001}}}}, weight: 75}}
        - {{destination: {{host: {HOST}, subset: v2, port: {{number: 7000}}}}, weight: 25}}
",
        policy::versioned(V1, V2),
        policy::versions(HOST),
    );
    let batch = lab.client_group("batch.slice")?;
    let agent = lab
        .agent()
        .policy("queue", &documents)?
        .setting("--workload", "batch.slice=default,role=batch")
        .start()?;
    let talk = |port: u16, count: usize| {
        format!(
            r#"
import socket
for number in range({count}):
    with socket.create_connection(("{HOST}", {port}), 10) as s:
        assert s.getpeername()[1] == {port}
        said = b"number %d" % number
        s.sendall(said)
        heard = b""
        while len(heard) < len(said):
            heard += s.recv(100)
        assert heard == said
"#
        )
    };
    let mut expected = 0;
    let mut ends = |script: &str, count: usize| -> Result<Vec<String>> {
        lab.python(script).text()?;
        expected += count;
        let records = agent.wait_records(expected)?;
        assert!(
            records.iter().all(|record| record.flag() == "-"),
            "{records:?}"
        );
        Ok(records[expected - count..]
            .iter()
            .map(|record| record.endpoint().to_owned())
            .collect())
    };
    assert_eq!(ends(&talk(7000, 3), 3)?, vec![format!("{V2}:7001"); 3]);
    let own = batch + &talk(7000, 3);
    assert_eq!(ends(&own, 3)?, vec![format!("{OTHER}:7100"); 3]);
    let count = 150;
    let shared = ends(&talk(7001, count), count)?;
    let first = shared.iter().filter(|one| **one == format!("{V1}:7001"));
    let first = first.count();
    let second = shared.iter().filter(|one| **one == format!("{V2}:7000"));
    assert_eq!(first + second.count(), count, "{shared:?}");
    // Expected 112; six standard deviations.
    assert!((80..145).contains(&first), "{first} of {count}");
    // A port that no route is for stays the service's own.
    for endpoint in ends(&talk(7002, 4), 4)? {
        assert!(endpoint.ends_with(":7002"), "{endpoint}");
    }
    let what = format!("{HOST}:7000");
    let text = lab.egressctl(&["explain", &what])?.text()?;
    for part in ["tcp routes of a VirtualService", "port is 7000", V2] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let cgroup = lab.client_cgroup().join("batch.slice");
    let from = cgroup.display().to_string();
    let text = lab
        .egressctl(&["explain", &what, "--from", &from])?
        .text()?;
    for part in ["the caller has the label role=batch", OTHER] {
        assert!(text.contains(part), "{part}: {text}");
    }
    agent.stop()
}
