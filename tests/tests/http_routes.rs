//! What a VirtualService says of HTTP, on the wire: each test looks at what
//! servers got.
#![allow(clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply, Request};
use lab::{Lab, RESOLVER, Result, policy};

const API: &str = "api.example.com";
const V1: &str = "203.0.113.10:80";
const V2: &str = "203.0.113.20:80";
const SHADOW: &str = "203.0.113.30:80";

/// A service with two endpoints (subsets v1 and v2), another service, and a
/// VirtualService of these routes.
fn documents(routes: &str) -> String {
    let api = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api, namespace: default}}
spec:
  hosts: [{API}]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
{}",
        policy::versioned("203.0.113.10", "203.0.113.20")
    );
    let shadow = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shadow, namespace: default}
spec:
  hosts: [shadow.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 203.0.113.30}]
";
    let routes = format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: api, namespace: default}}
spec:
  hosts: [{API}]
  http:
{routes}"
    );
    policy::join(&[&api, shadow, &policy::versions(API), &routes])
}

struct Scene {
    agent: Agent,
    v1: HttpServer,
    v2: HttpServer,
    shadow: HttpServer,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new(routes: &str) -> Result<Self> {
        Self::with(routes, |_| Reply::ok("api\n"))
    }

    fn with(
        routes: &str,
        handler: impl Fn(&Request) -> Reply + Clone + Send + Sync + 'static,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        Ok(Self {
            _dns: NameServer::start(&lab, RESOLVER, "")?,
            v1: HttpServer::start(&lab, V1, handler.clone())?,
            v2: HttpServer::start(&lab, V2, handler)?,
            shadow: HttpServer::start(&lab, SHADOW, |_| {
                Reply::status(500).after(Duration::from_secs(2))
            })?,
            agent: lab.agent().policy("api", &documents(routes))?.start()?,
            lab,
        })
    }

    /// The requests that the service got, of both endpoints.
    fn got(&self) -> Vec<Request> {
        let mut all = self.v1.requests();
        all.extend(self.v2.requests());
        all
    }
}

/// A route that marks its requests with its name.
fn marked(name: &str, matches: &str) -> String {
    let matches = if matches.is_empty() {
        String::new()
    } else {
        format!("      match: [{matches}]\n")
    };
    format!(
        "    - name: {name}\n{matches}      headers: {{request: {{set: {{x-route: {name}}}}}}}\n      route: [{{destination: {{host: {API}}}}}]\n"
    )
}

#[test]
fn every_kind_of_match_chooses_its_route_and_the_first_wins() -> Result<()> {
    let routes: String = [
        ("exact", "{uri: {exact: /exact}}"),
        (
            "caseless",
            "{uri: {prefix: /CaseLess}, ignoreUriCase: true}",
        ),
        ("prefix", "{uri: {prefix: /prefix}}"),
        ("second", "{uri: {prefix: /prefix/second}}"),
        ("regex", r#"{uri: {regex: "/items/[0-9]+"}}"#),
        (
            "method",
            "{uri: {prefix: /method}, method: {exact: DELETE}}",
        ),
        ("header", "{headers: {x-kind: {exact: one}}}"),
        ("header-prefix", "{headers: {x-kind: {prefix: pre}}}"),
        ("header-regex", r#"{headers: {x-kind: {regex: "r[0-9]+"}}}"#),
        ("both", "{headers: {x-a: {exact: a}, x-b: {}}}"),
        (
            "without",
            "{uri: {exact: /without}, withoutHeaders: {x-not: {}}}",
        ),
        ("query", "{queryParams: {debug: {exact: \"1\"}}}"),
        ("query-regex", "{queryParams: {page: {regex: \"[0-9]+\"}}}"),
        ("authority", "{authority: {exact: alias.example.com}}"),
        ("scheme", "{scheme: {exact: https}, uri: {exact: /scheme}}"),
        ("wrong-port", "{port: 8080, uri: {exact: /port}}"),
        ("port", "{port: 80, uri: {exact: /port}}"),
        (
            "labels",
            "{sourceLabels: {app: nobody}, uri: {exact: /labels}}",
        ),
        (
            "elsewhere",
            "{sourceNamespace: elsewhere, uri: {exact: /namespace}}",
        ),
        (
            "namespace",
            "{sourceNamespace: default, uri: {exact: /namespace}}",
        ),
    ]
    .iter()
    .map(|(name, matches)| marked(name, matches))
    .chain([marked("default", "")])
    .collect();
    let scene = Scene::new(&routes)?;
    let cases: &[(&str, &[&str], &str)] = &[
        ("/exact", &[], "exact"),
        ("/exact?q=1", &[], "exact"),
        ("/exact/x", &[], "default"),
        ("/EXACT", &[], "default"),
        ("/caseless/x", &[], "caseless"),
        ("/prefixed", &[], "prefix"),
        ("/prefix/second", &[], "prefix"),
        ("/items/42", &[], "regex"),
        ("/items/42/more", &[], "default"),
        ("/items/x", &[], "default"),
        ("/method", &["-X", "DELETE"], "method"),
        ("/method", &[], "default"),
        ("/", &["-H", "x-kind: one"], "header"),
        ("/", &["-H", "x-kind: One"], "default"),
        ("/", &["-H", "x-kind: prefixed"], "header-prefix"),
        ("/", &["-H", "x-kind: r12"], "header-regex"),
        ("/", &["-H", "x-kind: xr12"], "default"),
        ("/", &["-H", "x-a: a", "-H", "x-b: any"], "both"),
        ("/", &["-H", "x-a: a"], "default"),
        ("/without", &[], "without"),
        ("/without", &["-H", "x-not: 1"], "default"),
        ("/?a=2&debug=1", &[], "query"),
        ("/?debug=2", &[], "default"),
        ("/?page=17", &[], "query-regex"),
        ("/?page=x", &[], "default"),
        ("/", &["-H", "host: alias.example.com"], "authority"),
        ("/", &["-H", "host: alias.example.com:80"], "authority"),
        ("/scheme", &[], "default"),
        ("/port", &[], "port"),
        ("/labels", &[], "default"),
        ("/namespace", &[], "namespace"),
    ];
    for (number, (path, arguments, route)) in cases.iter().enumerate() {
        let url = format!("http://{API}{path}");
        let mut all = vec![url.as_str()];
        all.extend_from_slice(arguments);
        let answer = scene.lab.fetch(&all)?;
        assert_eq!(answer.status, 200, "{all:?}: {answer:?}");
        let got = scene.got();
        assert_eq!(got.len(), number + 1, "{all:?}");
        let last = scene.v1.requests().len() + scene.v2.requests().len();
        assert_eq!(last, number + 1);
        let marks = got
            .iter()
            .filter(|request| request.header("x-route") == Some(route))
            .count();
        let wanted = cases[..=number]
            .iter()
            .filter(|(_, _, one)| one == route)
            .count();
        assert_eq!(marks, wanted, "{all:?} should take {route}");
    }
    let records = scene.agent.wait_records(cases.len())?;
    for (record, (path, _, route)) in records.iter().zip(cases) {
        assert_eq!(record.field("route_name"), *route, "{record}");
        assert_eq!(record.field("path"), *path, "{record}");
        assert_eq!(
            record.field("upstream_cluster"),
            format!("outbound|80||{API}"),
            "{record}"
        );
    }
    scene.agent.stop()
}

#[test]
fn paths_and_authorities_are_rewritten() -> Result<()> {
    let scene = Scene::new(&format!(
        r#"    - match: [{{uri: {{prefix: /api/v2}}}}]
      rewrite: {{uri: /api/v1}}
      route: [{{destination: {{host: {API}}}}}]
    - match: [{{uri: {{exact: /old}}}}]
      rewrite: {{uri: /new, authority: internal.example.com}}
      route: [{{destination: {{host: {API}}}}}]
    - match: [{{uri: {{prefix: /users/}}}}]
      rewrite: {{uriRegexRewrite: {{match: "/users/([0-9]+)/(.*)", rewrite: '/\2/of/\1'}}}}
      route: [{{destination: {{host: {API}}}}}]
    - headers: {{request: {{set: {{host: by-header.example.com}}}}}}
      route: [{{destination: {{host: {API}}}}}]
"#
    ))?;
    for (path, target, host) in [
        ("/api/v2/items?x=%2F..", "/api/v1/items?x=%2F..", API),
        ("/api/v2x", "/api/v1x", API),
        ("/old?q", "/new?q", "internal.example.com"),
        ("/users/12/orders?n=3", "/orders/of/12?n=3", API),
        ("/else", "/else", "by-header.example.com"),
    ] {
        scene.lab.fetch(&[&format!("http://{API}{path}")])?;
        let got = scene.got();
        assert!(
            got.iter()
                .any(|r| r.target == target && r.header("host") == Some(host)),
            "{path}: {got:?}"
        );
    }
    scene.agent.stop()
}

#[test]
fn redirects_and_direct_responses_are_answered_without_the_service() -> Result<()> {
    let scene = Scene::new(
        r#"    - match: [{uri: {prefix: /moved}}]
      redirect: {uri: /there, authority: new.example.com, scheme: https, redirectCode: 308}
    - match: [{uri: {exact: /plain}}]
      redirect: {authority: other.example.com}
    - match: [{uri: {prefix: /teapot}}]
      directResponse: {status: 418, body: {string: "short and stout"}}
    - match: [{uri: {prefix: /bytes}}]
      directResponse: {status: 200, body: {bytes: "AAEC"}}
"#,
    )?;
    let fetch = |path: &str| scene.lab.fetch(&[&format!("http://{API}{path}")]);
    let answer = fetch("/moved/x?q=1")?;
    assert_eq!(answer.status, 308);
    assert_eq!(
        answer.header("location"),
        Some("https://new.example.com/there?q=1")
    );
    let answer = fetch("/plain")?;
    assert_eq!(answer.status, 301);
    assert_eq!(
        answer.header("location"),
        Some("http://other.example.com/plain")
    );
    let answer = fetch("/teapot")?;
    assert_eq!((answer.status, &*answer.body), (418, "short and stout"));
    let answer = fetch("/bytes")?;
    assert_eq!(
        (answer.status, answer.body.as_bytes()),
        (200, &[0, 1, 2][..])
    );
    let answer = fetch("/none")?;
    assert_eq!(answer.status, 404);
    assert!(scene.got().is_empty());
    let record = scene
        .agent
        .record("the record of no route", |r| r.field("path") == "/none")?;
    assert_eq!(record.flag(), "NR", "{record}");
    assert_eq!(record.field("response_code"), "404", "{record}");
    let record = scene
        .agent
        .record("the record of the teapot", |r| r.field("path") == "/teapot")?;
    assert_eq!(record.flag(), "-", "{record}");
    assert_eq!(record.field("response_code_details"), "direct_response");
    scene.agent.stop()
}

#[test]
fn header_operations_of_route_and_destination_are_carried_out_in_order() -> Result<()> {
    let scene = Scene::with(
        &format!(
            r#"    - headers:
        request:
          set: {{x-set: route, x-from: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", x-escaped: "100%%"}}
          add: {{x-many: route}}
          remove: [x-secret]
        response:
          set: {{x-cluster: "%UPSTREAM_CLUSTER%"}}
          remove: [x-internal]
      route:
        - destination: {{host: {API}}}
          headers:
            request:
              set: {{x-set: destination}}
              add: {{x-many: destination}}
            response:
              add: {{x-status: "%RESPONSE_CODE%"}}
"#
        ),
        |_| {
            Reply::Answer(
                201,
                vec![("x-internal", "yes".into()), ("x-kept", "yes".into())],
                b"made".to_vec(),
            )
        },
    )?;
    let answer = scene.lab.fetch(&[
        "-H",
        "x-set: client",
        "-H",
        "x-many: client",
        "-H",
        "x-secret: s3cret",
        &format!("http://{API}/"),
    ])?;
    assert_eq!((answer.status, &*answer.body), (201, "made"));
    assert_eq!(answer.header("x-internal"), None);
    assert_eq!(answer.header("x-kept"), Some("yes"));
    assert_eq!(answer.header("x-status"), Some("201"));
    assert_eq!(
        answer.header("x-cluster"),
        Some(&*format!("outbound|80||{API}"))
    );
    let got = scene.got();
    let got = &got[0];
    assert_eq!(got.all("x-set").collect::<Vec<_>>(), ["destination"]);
    assert_eq!(
        got.all("x-many").collect::<Vec<_>>(),
        ["client", "route", "destination"]
    );
    assert_eq!(got.header("x-secret"), None);
    // The address that the network would have seen, not the loopback one over
    // which captured connections reach the agent.
    assert_eq!(got.header("x-from"), Some(lab::CLIENT6));
    assert_eq!(got.header("x-escaped"), Some("100%"));
    // And what the agent itself adds.
    assert_eq!(got.header("x-forwarded-proto"), Some("http"));
    assert_eq!(got.header("x-request-id").map(str::len), Some(36));
    assert_eq!(got.header("traceparent").map(str::len), Some(55));
    scene.agent.stop()
}

#[test]
fn faults_delay_and_abort_the_given_share() -> Result<()> {
    let scene = Scene::new(&format!(
        "    - match: [{{uri: {{prefix: /slow}}}}]
      fault: {{delay: {{fixedDelay: 1s, percentage: {{value: 100}}}}}}
      route: [{{destination: {{host: {API}}}}}]
    - match: [{{uri: {{prefix: /broken}}}}]
      fault: {{abort: {{httpStatus: 555, percentage: {{value: 100}}}}}}
      route: [{{destination: {{host: {API}}}}}]
    - match: [{{uri: {{prefix: /never}}}}]
      fault: {{abort: {{httpStatus: 555}}}}
      route: [{{destination: {{host: {API}}}}}]
    - match: [{{uri: {{prefix: /half}}}}]
      fault: {{abort: {{httpStatus: 555, percentage: {{value: 50}}}}}}
      route: [{{destination: {{host: {API}}}}}]
"
    ))?;
    let url = |path: &str| format!("http://{API}{path}");
    let started = Instant::now();
    assert_eq!(scene.lab.fetch(&[&url("/slow")])?.status, 200);
    assert!(started.elapsed() >= Duration::from_secs(1));
    let record = scene
        .agent
        .record("a delayed request", |r| r.field("path") == "/slow")?;
    assert_eq!(record.flag(), "DI", "{record}");
    assert_eq!(scene.lab.fetch(&[&url("/broken")])?.status, 555);
    let record = scene
        .agent
        .record("an aborted request", |r| r.field("path") == "/broken")?;
    assert_eq!(record.flag(), "FI", "{record}");
    assert_eq!(scene.lab.fetch(&[&url("/never")])?.status, 200);
    let served = scene.got().len();
    // curl makes a series of requests on one connection.
    let codes = scene
        .lab
        .curl(&[
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}\n",
            &url("/half/[1-100]"),
        ])
        .text()?;
    let aborted = codes.lines().filter(|code| *code == "555").count();
    assert!((20..=80).contains(&aborted), "{aborted} of 100");
    assert_eq!(scene.got().len(), served + 100 - aborted);
    scene.agent.stop()
}

#[test]
fn mirrors_get_a_copy_and_slow_nobody_down() -> Result<()> {
    let scene = Scene::new(&format!(
        "    - match: [{{uri: {{prefix: /none}}}}]
      mirror: {{host: shadow.example.com}}
      mirrorPercentage: {{value: 0}}
      route: [{{destination: {{host: {API}, subset: v1}}}}]
    - mirrors:
        - {{destination: {{host: shadow.example.com}}, percentage: {{value: 100}}}}
        - {{destination: {{host: {API}, subset: v2}}}}
      route: [{{destination: {{host: {API}, subset: v1}}}}]
"
    ))?;
    let started = Instant::now();
    let answer = scene.lab.fetch(&[
        "--data",
        "a body for all",
        &format!("http://{API}/orders?id=1"),
    ])?;
    // The shadow takes two seconds and answers 500.
    assert!(started.elapsed() < Duration::from_millis(1900));
    assert_eq!(answer.status, 200);
    for (server, host) in [
        (&scene.v1, API.to_owned()),
        (&scene.v2, format!("{API}-shadow")),
        (&scene.shadow, format!("{API}-shadow")),
    ] {
        let got = server.wait(1)?;
        assert_eq!(got[0].target, "/orders?id=1");
        assert_eq!(got[0].body, b"a body for all");
        assert_eq!(got[0].header("host"), Some(&*host));
    }
    scene.lab.fetch(&[&format!("http://{API}/none")])?;
    assert_eq!(scene.shadow.requests().len(), 1);
    // A request has one record; its copies have none.
    assert_eq!(scene.agent.wait_records(2)?.len(), 2);
    scene.agent.stop()
}

#[test]
fn weights_and_subsets_split_requests() -> Result<()> {
    let scene = Scene::new(&format!(
        "    - match: [{{uri: {{prefix: /v2}}}}]
      route: [{{destination: {{host: {API}, subset: v2}}}}]
    - route:
        - {{destination: {{host: {API}, subset: v1}}, weight: 80}}
        - {{destination: {{host: {API}, subset: v2}}, weight: 20}}
        - {{destination: {{host: shadow.example.com}}, weight: 0}}
"
    ))?;
    scene
        .lab
        .curl(&["--fail", &format!("http://{API}/v2/[1-5]")])
        .text()?;
    assert_eq!(scene.v2.requests().len(), 5);
    assert!(scene.v1.requests().is_empty());
    scene
        .lab
        .curl(&["--fail", &format!("http://{API}/split/[1-200]")])
        .text()?;
    let first = scene.v1.requests().len();
    // Six standard deviations around 160.
    assert!((126..=194).contains(&first), "{first} of 200 went to v1");
    assert_eq!(scene.v2.requests().len(), 205 - first);
    assert!(scene.shadow.requests().is_empty());
    scene.agent.stop()
}

#[test]
fn unknown_destinations_are_said_to_be_unknown() -> Result<()> {
    let scene = Scene::new(&format!(
        "    - match: [{{uri: {{prefix: /subset}}}}]
      route: [{{destination: {{host: {API}, subset: v9}}}}]
    - route: [{{destination: {{host: nowhere.example.com}}}}]
"
    ))?;
    for path in ["/subset", "/host"] {
        let answer = scene.lab.fetch(&[&format!("http://{API}{path}")])?;
        assert_eq!(answer.status, 503, "{answer:?}");
        let record = scene
            .agent
            .record("an unknown destination", |r| r.field("path") == path)?;
        assert_eq!(record.flag(), "NC", "{record}");
    }
    scene.agent.stop()
}
