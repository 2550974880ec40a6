//! Retries, timeouts, limits, and the errors that say why.
#![allow(clippy::panic, reason = "tests")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply, Request};
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result};

const API: &str = "api.example.com";
const ADDRESSES: [&str; 2] = ["203.0.113.10", "203.0.113.20"];

/// A service on these addresses, its DestinationRule's policy, and its routes.
fn documents(addresses: &[&str], policy: &str, routes: &str) -> String {
    let endpoints: String = addresses
        .iter()
        .map(|address| format!("    - address: {address}\n"))
        .collect();
    let endpoints = if endpoints.is_empty() {
        "[]\n".to_owned()
    } else {
        format!("\n{endpoints}")
    };
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api, namespace: default}}
spec:
  hosts: [{API}]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: {endpoints}"
    );
    if !policy.is_empty() {
        text.push_str(&format!(
            "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: api, namespace: default}}
spec:
  host: {API}
  trafficPolicy:
{policy}"
        ));
    }
    if !routes.is_empty() {
        text.push_str(&format!(
            "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: api, namespace: default}}
spec:
  hosts: [{API}]
  http:
{routes}"
        ));
    }
    text
}

/// A route for `prefix` with these settings.
fn route(prefix: &str, settings: &str) -> String {
    format!(
        "    - match: [{{uri: {{prefix: {prefix}}}}}]\n      {settings}\n      route: [{{destination: {{host: {API}}}}}]\n"
    )
}

struct Scene {
    agent: Agent,
    servers: Vec<HttpServer>,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new(
        policy: &str,
        routes: &str,
        handler: impl Fn(&Request) -> Reply + Clone + Send + Sync + 'static,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        let servers = ADDRESSES
            .iter()
            .map(|address| HttpServer::start(&lab, &format!("{address}:80"), handler.clone()))
            .collect::<Result<_>>()?;
        Ok(Self {
            servers,
            _dns: NameServer::start(&lab, RESOLVER, "")?,
            agent: lab
                .agent()
                .policy("api", &documents(&ADDRESSES, policy, routes))?
                .start()?,
            lab,
        })
    }

    /// Requests for `path` at each server.
    fn tries(&self, path: &str) -> Vec<usize> {
        self.servers
            .iter()
            .map(|server| {
                let all = server.requests();
                all.iter().filter(|r| r.target == path).count()
            })
            .collect()
    }

    fn total(&self, path: &str) -> usize {
        self.tries(path).iter().sum()
    }

    fn fetch(&self, path: &str) -> Result<lab::http::Answer> {
        self.lab.fetch(&[&format!("http://{API}{path}")])
    }

    fn record(&self, path: &str) -> Result<lab::record::Record> {
        self.agent
            .record(path, |record| record.field("path") == path)
    }
}

/// The path says which status comes.
fn by_path(request: &Request) -> Reply {
    let last = request.target.rsplit('/').next().unwrap_or_default();
    match last {
        "slow" => Reply::ok("late").after(Duration::from_secs(3)),
        "reset" => Reply::ThenReset(Vec::new()),
        "close" => Reply::ThenClose(Vec::new()),
        "begun" => {
            Reply::ThenReset(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun".to_vec())
        }
        status => Reply::status(status.parse().unwrap_or(200)),
    }
}

/// A path, its `retryOn`, and how many tries each kind of failure then gets.
type Case = (&'static str, &'static str, &'static [(&'static str, usize)]);

#[test]
fn each_condition_retries_what_it_names_and_nothing_else() -> Result<()> {
    let cases: &[Case] = &[
        (
            "5xx",
            "5xx",
            &[
                ("500", 3),
                ("503", 3),
                ("reset", 3),
                ("close", 3),
                ("409", 1),
                ("404", 1),
            ],
        ),
        (
            "gateway",
            "gateway-error",
            &[("500", 1), ("502", 3), ("503", 3), ("504", 3), ("reset", 3)],
        ),
        ("reset", "reset", &[("503", 1), ("reset", 3), ("close", 3)]),
        ("connect", "connect-failure", &[("503", 1), ("reset", 1)]),
        (
            "conflict",
            "retriable-4xx",
            &[("409", 3), ("404", 1), ("503", 1)],
        ),
        ("codes", "429,418", &[("429", 3), ("418", 3), ("503", 1)]),
        ("refused", "refused-stream", &[("503", 1), ("reset", 1)]),
    ];
    let mut routes: String = cases
        .iter()
        .map(|(name, on, _)| {
            route(
                &format!("/{name}/"),
                &format!("retries: {{attempts: 2, retryOn: \"{on}\", backoff: 1ms}}"),
            )
        })
        .collect();
    routes.push_str(&route("/off/", "retries: {attempts: 0}"));
    routes.push_str(&route("/default/", "name: default"));
    let scene = Scene::new("", &routes, by_path)?;
    for (name, _, expected) in cases.iter().chain(&[
        ("off", "", &[("503", 1), ("reset", 1)][..]),
        // Istio's default: a 503 that the service sends is not retried.
        ("default", "", &[("503", 1), ("500", 1)][..]),
    ]) {
        for (kind, tries) in *expected {
            let path = format!("/{name}/{kind}");
            let url = format!("http://{API}{path}");
            let answer = match kind.parse::<u16>() {
                Ok(_) => scene.lab.fetch(&[&url])?,
                // Not a GET: that would be sent again, uncounted, on another
                // connection when a reused one is lost.
                Err(_) => scene.lab.fetch(&["--data", "x", &url])?,
            };
            assert_eq!(scene.total(&path), *tries, "{path}");
            let record = scene.record(&path)?;
            assert_eq!(record.field("attempts"), tries.to_string(), "{record}");
            assert_eq!(record.has_flag("URX"), *tries == 3, "{record}");
            if let Ok(status) = kind.parse::<u16>() {
                // The last try's answer is the application's.
                assert_eq!(answer.status, status, "{path}");
            } else {
                assert_eq!(answer.status, 503, "{path}");
                assert!(record.has_flag("UC"), "{record}");
            }
        }
    }
    scene.agent.stop()
}

#[test]
fn a_retry_goes_to_another_endpoint_with_the_whole_body() -> Result<()> {
    let routes = route(
        "/",
        "retries: {attempts: 3, retryOn: \"5xx\", backoff: 1ms}",
    );
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let bad = HttpServer::start(&lab, "203.0.113.10:80", |_| Reply::status(503))?;
    let good = HttpServer::start(&lab, "203.0.113.20:80", |_| Reply::ok("done"))?;
    let agent = lab
        .agent()
        .policy("api", &documents(&ADDRESSES, "", &routes))?
        .start()?;
    let body = "0123456789abcdef".repeat(2048);
    for number in 0..10 {
        let answer = lab.fetch(&["--data", &body, &format!("http://{API}/{number}")])?;
        assert_eq!((answer.status, &*answer.body), (200, "done"));
    }
    let got = good.requests();
    assert_eq!(got.len(), 10);
    assert!(got.iter().all(|r| r.body == body.as_bytes()));
    // Some began at the bad one; none of them asked it twice.
    let mut targets: Vec<_> = bad.requests().into_iter().map(|r| r.target).collect();
    assert!(bad.requests().iter().all(|r| r.body == body.as_bytes()));
    let tries = targets.len();
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), tries);

    // Beyond the bound the body is not kept, so there is no second try.
    let large = lab.write("large", &"x".repeat(256 * 1024))?;
    let mut seen = 0;
    for number in 0..10 {
        let answer = lab.fetch(&[
            "--data-binary",
            &format!("@{}", large.display()),
            "--header",
            "expect:",
            &format!("http://{API}/large/{number}"),
        ])?;
        let record = agent.record("a large upload", |r| {
            r.field("path") == format!("/large/{number}")
        })?;
        assert_eq!(record.field("attempts"), "1", "{record}");
        assert_eq!(record.sent(), 256 * 1024, "{record}");
        seen += usize::from(answer.status == 503);
    }
    assert_eq!(seen, bad.requests().len() - tries);
    agent.stop()
}

#[test]
fn nothing_is_repeated_once_the_response_has_begun() -> Result<()> {
    let routes = route("/", "retries: {attempts: 3, retryOn: \"5xx,reset\"}");
    let scene = Scene::new("", &routes, by_path)?;
    let finished = scene.lab.curl(&[&format!("http://{API}/begun")]).output()?;
    // The application must not take the broken answer for a whole one.
    assert!([18, 56].contains(&finished.code()), "{finished:?}");
    assert_eq!(scene.total("/begun"), 1);
    let record = scene.record("/begun")?;
    assert!(record.has_flag("UC"), "{record}");
    assert_eq!(record.field("response_code"), "200", "{record}");
    scene.agent.stop()
}

#[test]
fn a_reused_connection_that_dies_is_replaced_where_the_method_allows() -> Result<()> {
    static POSTS: AtomicUsize = AtomicUsize::new(0);
    static SERVED: AtomicUsize = AtomicUsize::new(0);
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    // Every second request on a connection finds it closed without a byte.
    let server = HttpServer::start(&lab, "203.0.113.10:80", |request| {
        if SERVED.fetch_add(1, Ordering::SeqCst) % 2 == 1 && request.connection == 0 {
            Reply::ThenClose(Vec::new())
        } else {
            Reply::ok("ok")
        }
    })?;
    let routes = route("/", "retries: {attempts: 0}");
    let agent = lab
        .agent()
        .setting("--workers", "1")
        .policy("api", &documents(&ADDRESSES[..1], "", &routes))?
        .start()?;
    assert_eq!(lab.fetch(&[&format!("http://{API}/1")])?.status, 200);
    // A GET may be sent again, and the application never knows.
    assert_eq!(lab.fetch(&[&format!("http://{API}/2")])?.status, 200);
    assert_eq!(server.connections(), 2);
    let twos = server
        .requests()
        .iter()
        .filter(|r| r.target == "/2")
        .count();
    assert_eq!(twos, 2);
    agent.stop()?;

    // A POST may not.
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let server = HttpServer::start(&lab, "203.0.113.10:80", |_| {
        if POSTS.fetch_add(1, Ordering::SeqCst) == 1 {
            Reply::ThenClose(Vec::new())
        } else {
            Reply::ok("ok")
        }
    })?;
    let agent = lab
        .agent()
        .setting("--workers", "1")
        .policy("api", &documents(&ADDRESSES[..1], "", &routes))?
        .start()?;
    let post = |path: &str| lab.fetch(&["--data", "pay", &format!("http://{API}{path}")]);
    assert_eq!(post("/1")?.status, 200);
    assert_eq!(post("/2")?.status, 503);
    assert_eq!(server.requests().len(), 2);
    let record = agent.record("a failed POST", |r| r.field("path") == "/2")?;
    assert_eq!(record.flag(), "UC", "{record}");
    agent.stop()
}

#[test]
fn timeouts_end_tries_and_requests() -> Result<()> {
    let routes = [
        route("/route/", "timeout: 500ms"),
        route(
            "/try/",
            "retries: {attempts: 2, perTryTimeout: 300ms, retryOn: \"5xx\", backoff: 1ms}",
        ),
        // As long as the whole: has no effect.
        route(
            "/long-try/",
            "timeout: 400ms\n      retries: {attempts: 2, perTryTimeout: 400ms, retryOn: \"5xx\"}",
        ),
        route("/none/", "name: none"),
    ]
    .concat();
    let scene = Scene::new("", &routes, by_path)?;
    for (path, tries, least, flags) in [
        ("/route/slow", 1, 500, "UT"),
        ("/try/slow", 3, 900, "UT,URX"),
        ("/long-try/slow", 1, 400, "UT"),
    ] {
        let started = Instant::now();
        let answer = scene.fetch(path)?;
        let elapsed = started.elapsed();
        assert_eq!(answer.status, 504, "{answer:?}");
        assert!(
            answer.body.contains("upstream request timeout"),
            "{answer:?}"
        );
        assert!(elapsed >= Duration::from_millis(least), "{elapsed:?}");
        assert!(elapsed < Duration::from_millis(2900), "{elapsed:?}");
        assert_eq!(scene.total(path), tries, "{path}");
        let record = scene.record(path)?;
        assert_eq!(record.flag(), flags, "{record}");
    }
    // Without one there is none.
    assert_eq!(scene.fetch("/none/slow")?.status, 200);
    scene.agent.stop()
}

#[test]
fn a_refused_endpoint_is_left_for_another_by_default() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    // Nothing listens on the first address.
    let server = HttpServer::start(&lab, "203.0.113.20:80", |_| Reply::ok("ok"))?;
    let agent = lab
        .agent()
        .policy("api", &documents(&ADDRESSES, "", ""))?
        .start()?;
    for number in 0..10 {
        let answer = lab.fetch(&["--data", "x", &format!("http://{API}/{number}")])?;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(server.requests().len(), 10);
    for record in agent.wait_records(10)? {
        assert_eq!(record.flag(), "-", "{record}");
        assert_eq!(record.endpoint(), "203.0.113.20:80", "{record}");
        assert_eq!(record.field("response_code_details"), "via_upstream");
    }
    agent.stop()
}

/// Asserts the status, and that body and record say why.
fn says_why(
    lab: &Lab,
    agent: &Agent,
    path: &str,
    status: u16,
    flag: &str,
    words: &[&str],
) -> Result<()> {
    let answer = lab.fetch(&[&format!("http://{API}{path}")])?;
    assert_eq!(answer.status, status, "{answer:?}");
    let record = agent.record(path, |r| r.field("path") == path)?;
    assert!(record.has_flag(flag), "{record}");
    assert_eq!(record.field("response_code"), status.to_string());
    for word in words {
        assert!(answer.body.contains(word), "{word}: {answer:?}");
    }
    assert!(answer.body.contains(API), "{answer:?}");
    assert!(answer.body.contains(flag), "{answer:?}");
    assert!(!record.detail().is_empty(), "{record}");
    Ok(())
}

#[test]
fn errors_tell_application_and_operator_the_reason() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    // Nobody listens.
    let agent = lab
        .agent()
        .policy("api", &documents(&ADDRESSES, "", ""))?
        .start()?;
    says_why(
        &lab,
        &agent,
        "/refused",
        503,
        "UF",
        &["203.0.113.", "refused"],
    )?;
    agent.stop()?;

    // No endpoint at all.
    let agent = lab
        .agent()
        .policy("api", &documents(&[], "", ""))?
        .start()?;
    says_why(&lab, &agent, "/nobody", 503, "UH", &[])?;
    agent.stop()?;

    // Not TLS where TLS is due.
    let _plain = Server::start(&lab, "203.0.113.10:80", Behaviour::Echo)?;
    let policy = "    tls: {mode: SIMPLE}\n";
    let agent = lab
        .agent()
        .policy("api", &documents(&ADDRESSES[..1], policy, ""))?
        .start()?;
    says_why(&lab, &agent, "/tls", 503, "UF", &["TLS"])?;
    agent.stop()
}

#[test]
fn limits_overflow_at_once_and_are_not_retried() -> Result<()> {
    let policy = "    connectionPool:
      tcp: {maxConnections: 1}
      http: {http1MaxPendingRequests: 1, http2MaxRequests: 2}
";
    let routes = route("/", "retries: {attempts: 3, retryOn: \"5xx\"}");
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let server = HttpServer::start(&lab, "203.0.113.10:80", |_| {
        Reply::ok("ok").after(Duration::from_secs(2))
    })?;
    let agent = lab
        .agent()
        .policy("api", &documents(&ADDRESSES[..1], policy, &routes))?
        .start()?;
    let script = format!(
        r#"
import http.client, sys, threading, time
answers = []
def one(number):
    started = time.monotonic()
    c = http.client.HTTPConnection("{API}", timeout=15)
    c.request("GET", f"/{{number}}")
    r = c.getresponse()
    r.read()
    answers.append((r.status, r.getheader("x-envoy-overloaded"), time.monotonic() - started))
threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
threads[0].start()
sys.stdin.readline()
for t in threads[1:]: t.start()
for t in threads: t.join()
good = [a for a in answers if a[0] == 200]
full = [a for a in answers if a[0] == 503]
assert len(good) == 2 and len(full) == 4, answers
assert all(a[1] == "true" for a in full), answers
print("as it should be", flush=True)
"#
    );
    let mut client = lab.python(&script).interactive().start()?;
    // A request whose connection is being made is a pending one as well.
    server.wait(1)?;
    client.send_line("go on")?;
    client.expect_line("as it should be")?;
    assert_eq!(server.requests().len(), 2);
    let records = agent.wait_records(6)?;
    let overflown = records.iter().filter(|r| r.has_flag("UO")).count();
    assert_eq!(overflown, 4);
    assert!(
        records
            .iter()
            .filter(|r| r.has_flag("UO"))
            .all(|r| r.field("attempts") != "2")
    );
    agent.stop()
}
