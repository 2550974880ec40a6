//! Documents as operators have them, word for word, before servers that
//! record what they got.
#![allow(clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use lab::agent::Agent;
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply, Request};
use lab::nginx::{Nginx, RunningNginx};
use lab::{Lab, RESOLVER, Result};

/// Where the recorder is, behind the nginx that ends TLS.
const RECORDER: &str = "10.255.0.1:8080";

/// A service of a document behind TLS, with a server that records what it got.
struct Scene {
    agent: Agent,
    server: HttpServer,
    authority: Authority,
    _nginx: RunningNginx,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    /// `host` at these addresses, which its DNS record names, too; `document`
    /// is the policy of callers in the namespace production.
    fn new(
        host: &str,
        addresses: &[&str],
        http2: bool,
        document: &str,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let certificate = authority.issue(&[host])?;
        let mut nginx = Nginx::new(&lab, "documents");
        let mut records = String::new();
        for address in addresses {
            let listen = format!("{address}:443");
            nginx = nginx.proxy(&listen, Some(&certificate), http2, RECORDER)?;
            records.push_str(&format!("{address} {host}\n"));
        }
        let server = HttpServer::start(&lab, RECORDER, handler)?;
        let nginx = nginx.start()?;
        Ok(Self {
            _dns: NameServer::start(&lab, RESOLVER, &records)?,
            agent: lab
                .agent()
                .policy("document", document)?
                .setting("--namespace", "production")
                .environment("SSL_CERT_FILE", &authority.path().display().to_string())
                .start()?,
            server,
            authority,
            _nginx: nginx,
            lab,
        })
    }
}

#[test]
fn a_legacy_service_gets_its_old_paths_and_new_headers() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let server = HttpServer::start(&lab, "192.168.1.100:80", |_| Reply::ok("legacy"))?;
    let agent = lab
        .agent()
        .policy("12", include_str!("policies/12-legacy-http-service.yaml"))?
        .setting("--namespace", "production")
        .start()?;
    for host in ["legacy.internal.corp", "192.168.1.100"] {
        let answer = lab.fetch(&[
            "--header",
            "host: legacy.internal.corp",
            "--header",
            "x-forwarded-proto: http",
            &format!("http://{host}/api/v2/items?id=7"),
        ]);
        // The name itself is resolved by its address alone.
        let answer = answer?;
        assert_eq!((answer.status, &*answer.body), (200, "legacy"), "{host}");
        let got = server.last()?;
        assert_eq!(got.target, "/api/v1/items?id=7");
        assert_eq!(got.header("x-legacy-client"), Some("istio-mesh"));
        // `add`, not `set`.
        assert_eq!(
            got.all("x-forwarded-proto").collect::<Vec<_>>(),
            ["http", "https"]
        );
    }
    let served = server.requests().len();
    let answer = lab.fetch(&["http://192.168.1.100/api/v1/items"])?;
    assert_eq!(answer.status, 404);
    assert_eq!(server.requests().len(), served);
    let record = agent.record("a request with no route", |r| {
        r.field("path") == "/api/v1/items"
    })?;
    assert_eq!(record.flag(), "NR", "{record}");
    agent.stop()
}

#[test]
fn a_flaky_service_is_asked_again_as_written() -> Result<()> {
    const HOST: &str = "api.third-party.io";
    let document = include_str!("policies/11-flaky-external-api.yaml");
    let addresses = ["203.0.113.10", "203.0.113.20"];
    let scene = Scene::new(HOST, &addresses, false, document, |request| {
        match (request.target.as_str(), request.number) {
            ("/second", 0) => Reply::status(500),
            ("/conflict", _) => Reply::status(409),
            ("/limited", _) => Reply::status(429),
            _ => Reply::ok("fine"),
        }
    })?;
    let Scene {
        agent,
        server,
        authority,
        lab,
        ..
    } = &scene;
    let fetch = |path: &str| lab.fetch(&[&format!("http://{HOST}:443{path}")]);
    // Cleartext HTTP to port 443 leaves as TLS, and is tried again.
    let answer = fetch("/second")?;
    assert_eq!((answer.status, &*answer.body), (200, "fine"));
    let got = server.requests();
    assert_eq!(got.len(), 2);
    assert_eq!(got[1].header("x-seen-tls"), Some("TLSv1.3"));
    assert_eq!(got[1].header("x-seen-sni"), Some(HOST));
    assert_eq!(got[1].header("x-seen-protocol"), Some("HTTP/1.1"));
    // 409 is retriable-4xx: once and three times more.
    assert_eq!(fetch("/conflict")?.status, 409);
    assert_eq!(server.requests().len(), 6);
    let record = agent.record("a conflict", |r| r.field("path") == "/conflict")?;
    assert_eq!(record.flag(), "URX", "{record}");
    assert_eq!(record.field("attempts"), "4", "{record}");
    // 429 is no error.
    assert_eq!(fetch("/limited")?.status, 429);
    assert_eq!(server.requests().len(), 7);
    // TLS of the application's own passes untouched: no retry is possible.
    let ca = authority.path().display().to_string();
    let answer = lab.fetch(&["--cacert", &ca, &format!("https://{HOST}/conflict")])?;
    assert_eq!(answer.status, 409);
    assert_eq!(server.requests().len(), 8);
    scene.agent.stop()
}

#[test]
fn a_payment_processor_gets_http2_over_tls_on_its_three_routes() -> Result<()> {
    const HOST: &str = "api.payments.example.com";
    let document = include_str!("policies/14-payment-processor.yaml");
    let addresses = ["203.0.113.10", "203.0.113.20"];
    let scene = Scene::new(HOST, &addresses, true, document, |request| {
        if request.target.contains("slow") {
            Reply::ok("late").after(Duration::from_secs(5))
        } else if request.target.contains("fail") {
            Reply::status(502)
        } else {
            Reply::ok("paid")
        }
    })?;
    let Scene { server, lab, .. } = &scene;
    let url = |path: &str| format!("http://{HOST}:443{path}");
    let answer = lab.fetch(&["--data", "amount=5", &url("/v1/charges")])?;
    assert_eq!((answer.status, &*answer.body), (200, "paid"));
    let got = server.last()?;
    assert_eq!(got.method, "POST");
    assert_eq!(got.body, b"amount=5");
    assert_eq!(got.header("host"), Some(&*format!("{HOST}:443")));
    assert_eq!(got.header("x-seen-protocol"), Some("HTTP/2.0"));
    assert_eq!(got.header("x-seen-sni"), Some(HOST));
    assert_eq!(got.header("x-seen-tls"), Some("TLSv1.3"));
    for (path, tries) in [("/v1/charges/fail", 3), ("/v2/fail", 4)] {
        let before = server.requests().len();
        assert_eq!(lab.fetch(&[&url(path)])?.status, 502);
        assert_eq!(server.requests().len() - before, tries, "{path}");
    }
    // /v1/status: three seconds a try, ten in all.
    if lab::long() {
        let before = server.requests().len();
        let started = Instant::now();
        let answer = lab.fetch(&[&url("/v1/status/slow")])?;
        assert_eq!(answer.status, 504, "{answer:?}");
        assert!(started.elapsed() >= Duration::from_secs(10));
        assert!(started.elapsed() < Duration::from_secs(13));
        assert_eq!(server.requests().len() - before, 4);
    }
    scene.agent.stop()
}

#[test]
fn a_rate_limited_service_is_spared() -> Result<()> {
    const HOST: &str = "api.limited-service.com";
    let document = include_str!("policies/13-rate-limited-api.yaml");
    let scene = Scene::new(HOST, &["203.0.113.10"], false, document, |_| {
        Reply::status(429).after(Duration::from_secs(1))
    })?;
    let Scene {
        agent, server, lab, ..
    } = &scene;
    // 10 connections, 50 waiting: the rest of 80 are turned away at once.
    let script = format!(
        r#"
import http.client, threading, time
answers = []
def one(number):
    c = http.client.HTTPConnection("{HOST}", 443, timeout=25)
    c.request("GET", f"/{{number}}")
    r = c.getresponse()
    r.read()
    answers.append(r.status)
threads = [threading.Thread(target=one, args=(n,)) for n in range(80)]
for t in threads: t.start()
for t in threads: t.join()
limited, full = answers.count(429), answers.count(503)
assert limited + full == 80, answers
# Who waits for a connection that is being made waits, too: so 50 are served
# if all come before the first connection stands, more if some come later.
assert 50 <= limited <= 75 and full >= 5, (limited, full)
"#
    );
    lab.python(&script).text()?;
    let got = server.requests().len();
    assert!((50..=75).contains(&got), "{got}");
    // 429 ejects nobody and is not retried.
    let records = agent.wait_records(80)?;
    for record in &records {
        match record.field("response_code").as_str() {
            "429" => assert_eq!(record.flag(), "-", "{record}"),
            "503" => assert!(record.has_flag("UO"), "{record}"),
            _ => panic!("{record}"),
        }
    }
    scene.agent.stop()
}

#[test]
fn an_upgrade_policy_speaks_http2_to_all_fixed_addresses() -> Result<()> {
    const HOST: &str = "api.external-service.com";
    let document = include_str!("policies/05-external-api-with-health.yaml");
    let addresses = ["198.51.100.1", "198.51.100.2", "198.51.100.3"];
    let scene = Scene::new(HOST, &addresses, true, document, |_| Reply::ok("ok"))?;
    let Scene {
        agent, server, lab, ..
    } = &scene;
    lab.curl(&["--fail", &format!("http://{HOST}:443/[1-30]")])
        .text()?;
    let got = server.requests();
    assert_eq!(got.len(), 30);
    assert!(
        got.iter()
            .all(|r| r.header("x-seen-protocol") == Some("HTTP/2.0"))
    );
    let mut endpoints: Vec<_> = agent
        .wait_records(30)?
        .iter()
        .map(|record| record.endpoint().to_owned())
        .collect();
    endpoints.sort();
    endpoints.dedup();
    assert_eq!(endpoints.len(), 3, "{endpoints:?}");
    scene.agent.stop()
}
