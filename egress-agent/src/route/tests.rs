#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use proptest::prelude::*;
use regex::Regex;

use super::headers::{Variables, apply_request, apply_response, fill, save};
use super::http::{Forward, RequestFacts, Routed, default_retries, route, without_port};
use super::matching::fits;
use super::opaque::ConnectionFacts;
use super::{opaque, rewrite};
use crate::policy::model::{HostPattern, Labels};
use crate::policy::routes::{
    HeaderList, HeaderOps, HeaderTemplate, HttpAction, HttpDestination, HttpMatch, HttpRoute,
    OpaqueMatch, OpaqueRoute, PathRewrite, Redirect, RedirectPath, RedirectPort, RequestField,
    Rewrite, StringMatch, Target, TemplatePart,
};
use crate::policy::snapshot::Client;

fn client() -> Client {
    Client {
        namespace: "shop".into(),
        labels: Arc::new(Labels::from([("app".into(), "cart".into())])),
    }
}

fn facts<'a>(
    path: &'a str,
    query: Option<&'a str>,
    headers: &'a HeaderMap,
    client: &'a Client,
) -> RequestFacts<'a> {
    RequestFacts {
        method: &Method::GET,
        path,
        query,
        scheme: "http",
        authority: "api.example.com:8080",
        headers,
        port: 8080,
        client,
    }
}

fn plain_route(matches: Vec<HttpMatch>) -> HttpRoute {
    HttpRoute {
        name: "r".into(),
        matches,
        action: HttpAction::Respond {
            status: StatusCode::OK,
            body: bytes::Bytes::new(),
        },
        headers: HeaderOps::default(),
        timeout: None,
        retries: default_retries().clone(),
        fault: None,
        mirrors: Vec::new(),
    }
}

fn uri(want: StringMatch) -> HttpMatch {
    HttpMatch {
        uri: Some(want),
        ..HttpMatch::default()
    }
}

fn regex(pattern: &str) -> StringMatch {
    StringMatch::Regex(Regex::new(&format!("^(?:{pattern})$")).unwrap())
}

// ---- matching ----

#[test]
fn first_route_with_a_fitting_block_wins() {
    let routes = [
        plain_route(vec![uri(StringMatch::Exact("/a".into()))]),
        plain_route(vec![
            uri(StringMatch::Exact("/z".into())),
            uri(StringMatch::Prefix("/api/v2".into())),
        ]),
        plain_route(vec![]),
    ];
    let (headers, client) = (HeaderMap::new(), client());
    let index = |path| {
        let found = route(&routes, &facts(path, None, &headers, &client)).unwrap();
        routes
            .iter()
            .position(|one| std::ptr::eq(one, found.route))
            .unwrap()
    };
    assert_eq!(index("/a"), 0);
    assert_eq!(index("/api/v2/x"), 1);
    // A plain string prefix, not a path segment.
    assert_eq!(index("/api/v2x"), 1);
    assert_eq!(index("/api/v"), 2);
    assert!(route(&routes[..1], &facts("/b", None, &headers, &client)).is_none());
}

#[test]
fn authority_is_compared_without_its_port() {
    assert_eq!(without_port("a.com:80"), "a.com");
    assert_eq!(without_port("a.com"), "a.com");
    assert_eq!(without_port("[::1]:80"), "[::1]");
    assert_eq!(without_port("[::1]"), "[::1]");
    assert_eq!(without_port("::1"), "::1");
    let block = HttpMatch {
        authority: Some(StringMatch::Exact("api.example.com".into())),
        ..HttpMatch::default()
    };
    let (headers, client) = (HeaderMap::new(), client());
    assert!(fits(&block, &facts("/", None, &headers, &client)));
}

#[test]
fn repeated_headers_are_compared_joined() {
    let name = HeaderName::from_static("x-a");
    let mut headers = HeaderMap::new();
    headers.append(&name, HeaderValue::from_static("one"));
    headers.append(&name, HeaderValue::from_static("two"));
    let client = client();
    let check = |want| {
        let block = HttpMatch {
            headers: vec![(name.clone().into(), want)],
            ..HttpMatch::default()
        };
        fits(&block, &facts("/", None, &headers, &client))
    };
    assert!(check(StringMatch::Exact("one,two".into())));
    assert!(!check(StringMatch::Exact("one".into())));
    assert!(check(regex("one,t.o")));
    assert!(!check(regex("one")));
    assert!(check(StringMatch::Present));
}

#[test]
fn without_headers_rejects_a_block_when_any_matches() {
    let block = HttpMatch {
        without_headers: vec![
            (RequestField::new("x-debug"), StringMatch::Exact("1".into())),
            (RequestField::new("x-off"), StringMatch::Present),
        ],
        ..HttpMatch::default()
    };
    let client = client();
    let check = |pairs: &[(&'static str, &'static str)]| {
        let headers: HeaderMap = pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect();
        fits(&block, &facts("/", None, &headers, &client))
    };
    assert!(check(&[]));
    assert!(check(&[("x-debug", "2")]));
    assert!(!check(&[("x-debug", "1")]));
    assert!(!check(&[("x-off", "")]));
}

#[test]
fn pseudo_headers_are_parts_of_the_request() {
    let (headers, client) = (HeaderMap::new(), client());
    let check = |name: &str, want: &str, query| {
        let block = HttpMatch {
            headers: vec![(RequestField::new(name), StringMatch::Exact(want.into()))],
            ..HttpMatch::default()
        };
        fits(&block, &facts("/a", query, &headers, &client))
    };
    assert!(check(":method", "GET", None));
    assert!(!check(":method", "get", None));
    assert!(check(":path", "/a", None));
    assert!(check(":path", "/a?b=c", Some("b=c")));
    assert!(!check(":path", "/a", Some("b=c")));
    for name in [":authority", "host", "Host"] {
        assert!(check(name, "api.example.com", None), "{name}");
        assert!(!check(name, "other.example.com", None), "{name}");
    }
    for name in [":status", "a,b", "@request.auth.claims.a"] {
        assert!(!check(name, "", None), "{name}");
        // None may match, and it never does.
        let block = HttpMatch {
            without_headers: vec![(RequestField::new(name), StringMatch::Present)],
            ..HttpMatch::default()
        };
        assert!(fits(&block, &facts("/", None, &headers, &client)), "{name}");
    }
}

/// Every string match written as one regular expression: slow and obvious.
fn as_regex(want: &StringMatch, ignore_case: bool) -> Regex {
    let case = if ignore_case { "(?i-u)" } else { "" };
    let pattern = match want {
        StringMatch::Present => "(?s)^.*$".to_owned(),
        StringMatch::Exact(text) => format!("{case}^{}$", regex::escape(text)),
        StringMatch::Prefix(text) => format!("{case}^{}", regex::escape(text)),
        StringMatch::Regex(regex) => regex.as_str().to_owned(),
    };
    Regex::new(&pattern).unwrap()
}

fn obvious(block: &HttpMatch, facts: &RequestFacts<'_>) -> bool {
    let parameters: Vec<(String, String)> = facts
        .query
        .map(|query| {
            query
                .split('&')
                .map(|pair| {
                    let mut parts = pair.splitn(2, '=');
                    (
                        parts.next().unwrap_or_default().to_owned(),
                        parts.next().unwrap_or_default().to_owned(),
                    )
                })
                .collect()
        })
        .unwrap_or_default();
    let joined = |field: &RequestField| {
        let name = field.to_string();
        match name.as_str() {
            ":method" => return vec![facts.method.to_string()],
            ":scheme" => return vec![facts.scheme.to_owned()],
            ":authority" => {
                let host = facts.authority.split(':').next().unwrap_or_default();
                return vec![facts.authority.to_owned(), host.to_owned()];
            }
            ":path" => {
                let query = facts.query.map(|query| format!("?{query}"));
                return vec![format!("{}{}", facts.path, query.unwrap_or_default())];
            }
            _ => {}
        }
        let values: Vec<_> = facts
            .headers
            .iter()
            .filter(|(n, _)| *n == name.as_str())
            .map(|(_, v)| v.to_str().unwrap().to_owned())
            .collect();
        if values.is_empty() {
            Vec::new()
        } else {
            vec![values.join(",")]
        }
    };
    let has = |name, want| {
        joined(name)
            .iter()
            .any(|v| as_regex(want, false).is_match(v))
    };
    let mut verdicts = Vec::new();
    if let Some(want) = &block.uri {
        verdicts.push(as_regex(want, block.ignore_uri_case).is_match(facts.path));
    }
    if let Some(want) = &block.method {
        verdicts.push(as_regex(want, false).is_match(facts.method.as_str()));
    }
    if let Some(want) = &block.scheme {
        verdicts.push(as_regex(want, false).is_match(facts.scheme));
    }
    for (name, want) in &block.headers {
        verdicts.push(has(name, want));
    }
    for (name, want) in &block.without_headers {
        verdicts.push(!has(name, want));
    }
    for (name, want) in &block.query_params {
        let first = parameters.iter().find(|(key, _)| key.as_str() == &**name);
        verdicts.push(first.is_some_and(|(_, v)| as_regex(want, false).is_match(v)));
    }
    if let Some(port) = block.port {
        verdicts.push(port == facts.port);
    }
    if let Some(namespace) = &block.source_namespace {
        verdicts.push(*namespace == facts.client.namespace);
    }
    verdicts.into_iter().all(|verdict| verdict)
}

/// Two headers that may be there, the pseudo-headers, and what never is.
const FIELDS: [&str; 9] = [
    "x-a",
    "x-b",
    "X-A",
    "host",
    ":method",
    ":scheme",
    ":authority",
    ":path",
    ":status",
];

fn short() -> impl Strategy<Value = String> {
    // Few letters, so that matches happen.
    "[aAb/]{0,3}"
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        Just(StringMatch::Present),
        short().prop_map(|text| StringMatch::Exact(text.into())),
        short().prop_map(|text| StringMatch::Prefix(text.into())),
        prop_oneof![Just("a*"), Just("[ab]+"), Just(".?b"), Just("a|b/")].prop_map(regex),
    ]
}

prop_compose! {
    fn block()(
        uri in proptest::option::of(string_match()),
        ignore_uri_case in any::<bool>(),
        method in proptest::option::weighted(0.2, prop_oneof![
            Just(StringMatch::Exact("GET".into())), Just(regex("G.*|PUT"))]),
        headers in proptest::collection::vec((0..FIELDS.len(), string_match()), 0..2),
        without in proptest::collection::vec((0..FIELDS.len(), string_match()), 0..2),
        query in proptest::collection::vec((0..2usize, string_match()), 0..2),
        port in proptest::option::weighted(0.2, 8079u16..8081),
        namespace in proptest::option::weighted(0.2, prop_oneof![Just("shop"), Just("bank")]),
    ) -> HttpMatch {
        let header = |(i, want): (usize, StringMatch)| {
            (RequestField::new(FIELDS[i]), want)
        };
        HttpMatch {
            uri,
            ignore_uri_case,
            method,
            headers: headers.into_iter().map(header).collect(),
            without_headers: without.into_iter().map(header).collect(),
            query_params: query.into_iter().map(|(i, want)| (["p", "q"][i].into(), want)).collect(),
            port,
            source_namespace: namespace.map(Arc::from),
            ..HttpMatch::default()
        }
    }
}

proptest! {
    #![proptest_config(crate::policy::cases(2000))]
    #[test]
    fn matcher_agrees_with_the_obvious_one(
        block in block(),
        path in short(),
        query in proptest::option::of("(p|q|pp)=?[ab]{0,2}(&(p|q)=[ab])?"),
        values in proptest::collection::vec((0..2usize, short()), 0..3),
    ) {
        let mut headers = HeaderMap::new();
        for (i, value) in values {
            headers.append(["x-a", "x-b"][i], HeaderValue::try_from(value).unwrap());
        }
        let client = client();
        let facts = facts(&path, query.as_deref(), &headers, &client);
        prop_assert_eq!(fits(&block, &facts), obvious(&block, &facts));
    }
}

// ---- rewrite and redirect ----

fn rewrite_of(path: PathRewrite) -> Rewrite {
    Rewrite {
        path: Some(path),
        authority: None,
    }
}

fn rewritten(
    matched: Option<HttpMatch>,
    rule: PathRewrite,
    path: &str,
    query: Option<&str>,
) -> String {
    let cluster = super::testing::cluster(
        0,
        "a.com",
        crate::policy::model::Protocol::Http,
        super::testing::traffic_policy(),
        &[],
    );
    let mut route = plain_route(matched.into_iter().collect());
    route.action = HttpAction::Forward {
        destinations: vec![HttpDestination {
            target: Target::Cluster(Arc::clone(&cluster)),
            weight: 1,
            headers: HeaderOps::default(),
        }],
        rewrite: Some(rewrite_of(rule)),
    };
    let view = super::testing::view(cluster, Some(vec![route]));
    let (headers, client) = (HeaderMap::new(), client());
    let facts = facts(path, query, &headers, &client);
    let Ok(Routed::Forward(forward)) = super::http::decide(&view, &facts) else {
        panic!("the route forwards");
    };
    // The place of a plan leads back to it.
    let again = Forward::at(&view, forward.place()).unwrap();
    assert!(std::ptr::eq(
        again.destination.unwrap(),
        forward.destination.unwrap()
    ));
    rewrite::path(&again, &facts)
        .unwrap()
        .map_or_else(|| "unchanged".to_owned(), |path| path.as_str().to_owned())
}

#[test]
fn a_prefix_is_replaced_and_the_rest_and_the_query_stay() {
    let prefix = || Some(uri(StringMatch::Prefix("/api/v2".into())));
    let rule = || PathRewrite::Uri("/api/v1".into());
    assert_eq!(
        rewritten(prefix(), rule(), "/api/v2/users", Some("a=1&b")),
        "/api/v1/users?a=1&b"
    );
    assert_eq!(rewritten(prefix(), rule(), "/api/v2", None), "/api/v1");
    assert_eq!(rewritten(prefix(), rule(), "/api/v2x", None), "/api/v1x");
}

#[test]
fn without_a_prefix_the_whole_path_is_replaced() {
    let exact = Some(uri(StringMatch::Exact("/old".into())));
    assert_eq!(
        rewritten(exact, PathRewrite::Uri("/new".into()), "/old", Some("q")),
        "/new?q"
    );
    assert_eq!(
        rewritten(None, PathRewrite::Uri("/new".into()), "/any/thing", None),
        "/new"
    );
    assert_eq!(
        rewritten(None, PathRewrite::Uri("/same".into()), "/same", Some("q")),
        "unchanged"
    );
}

#[test]
fn a_regex_rewrites_the_path_but_not_the_query() {
    let rule = PathRewrite::Regex {
        pattern: Regex::new("/v([0-9]+)/").unwrap(),
        replacement: "/version-${1}/".into(),
    };
    assert_eq!(
        rewritten(None, rule, "/v12/x", Some("to=/v12/")),
        "/version-12/x?to=/v12/"
    );
}

fn location(redirect: &Redirect, authority: &str, path: &str, query: Option<&str>) -> String {
    let route = plain_route(vec![uri(StringMatch::Prefix("/old".into()))]);
    let (headers, client) = (HeaderMap::new(), client());
    let facts = RequestFacts {
        authority,
        ..facts(path, query, &headers, &client)
    };
    let routes = [route];
    let anything = HeaderMap::new();
    let matching = RequestFacts {
        path: "/old",
        ..super::tests::facts("/old", None, &anything, &client)
    };
    let chosen = super::http::route(&routes, &matching).unwrap();
    rewrite::location(redirect, &chosen, &facts)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

#[test]
fn redirects_keep_what_they_do_not_name() {
    let base = || Redirect {
        path: None,
        authority: None,
        scheme: None,
        port: RedirectPort::Keep,
        status: StatusCode::MOVED_PERMANENTLY,
    };
    assert_eq!(
        location(&base(), "a.com:81", "/x", Some("q=1")),
        "http://a.com:81/x?q=1"
    );
    let secure = Redirect {
        scheme: Some("https".into()),
        ..base()
    };
    assert_eq!(location(&secure, "a.com:80", "/x", None), "https://a.com/x");
    assert_eq!(
        location(&secure, "a.com:8080", "/x", None),
        "https://a.com:8080/x"
    );
    let prefix = Redirect {
        path: Some(RedirectPath::Prefix("/new".into())),
        authority: Some("b.com".into()),
        ..base()
    };
    assert_eq!(
        location(&prefix, "a.com", "/old/x", Some("q")),
        "http://b.com/new/x?q"
    );
    let full = Redirect {
        path: Some(RedirectPath::Full("/there?z=2".into())),
        port: RedirectPort::Fixed(444),
        ..base()
    };
    assert_eq!(
        location(&full, "[::1]:80", "/old", Some("q")),
        "http://[::1]:444/there?z=2"
    );
    let derived = Redirect {
        port: RedirectPort::ProtocolDefault,
        ..base()
    };
    assert_eq!(
        location(&derived, "a.com:8080", "/x", None),
        "http://a.com/x"
    );
    let request = Redirect {
        port: RedirectPort::RequestPort,
        ..base()
    };
    assert_eq!(
        location(&request, "a.com", "/x", None),
        "http://a.com:8080/x"
    );
}

// ---- header operations ----

fn variables(method: &Method) -> Variables<'_> {
    Variables {
        remote: "10.0.0.1:5000".parse().unwrap(),
        dialled: "240.240.0.9:80".parse().unwrap(),
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        version: Version::HTTP_11,
        method,
        path: "/p?q",
        authority: "a.com",
        cluster: None,
        route: "r",
        upstream: None,
        request: None,
        saved: &[],
        status: None,
        response: None,
    }
}

fn template(text: &str) -> HeaderTemplate {
    // Text and variables in turn, as the policy's compiler makes them.
    HeaderTemplate::Parts(
        text.split('%')
            .enumerate()
            .map(|(i, part)| {
                if i % 2 == 0 {
                    TemplatePart::Text(part.into())
                } else {
                    TemplatePart::Variable(part.into())
                }
            })
            .collect(),
    )
}

fn filled(text: &str, variables: &Variables<'_>) -> String {
    let value = fill(&template(text), variables).unwrap();
    value.to_str().unwrap().to_owned()
}

#[test]
fn variables_are_filled_and_unknown_ones_stay() {
    let method = Method::GET;
    let mut headers = HeaderMap::new();
    headers.insert("x-b", HeaderValue::from_static("bee"));
    let variables = Variables {
        request: Some(&headers),
        upstream: Some("203.0.113.10:443".parse().unwrap()),
        status: Some(StatusCode::NOT_FOUND),
        ..variables(&method)
    };
    let check = |text, want| assert_eq!(filled(text, &variables), want);
    check("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:5000");
    check(
        "a-%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%-b",
        "a-10.0.0.1-b",
    );
    check("%DOWNSTREAM_LOCAL_ADDRESS%", "240.240.0.9:80");
    check("%START_TIME%", "2023-11-14T22:13:20.123Z");
    check("%PROTOCOL%", "HTTP/1.1");
    check("%REQ(X-A?X-B)%", "bee");
    check("%REQ(X-B):2%", "be");
    check("%REQ(x-none)%", "-");
    check("%REQ(:path)% %REQ(:authority)%", "/p?q a.com");
    check("%UPSTREAM_HOST%", "203.0.113.10:443");
    check("%RESPONSE_CODE%", "404");
    check("%ROUTE_NAME%", "r");
    check("%NOT_A_THING%", "%NOT_A_THING%");
    assert!(!filled("%HOSTNAME%", &variables).is_empty());
    let format = HeaderTemplate::Parts(vec![TemplatePart::Variable("START_TIME(%s.%3f)".into())]);
    assert_eq!(fill(&format, &variables).unwrap(), "1700000000.123");
}

#[test]
fn operations_run_in_the_order_set_add_remove() {
    let method = Method::GET;
    let name = |text| HeaderName::from_static(text);
    let fixed = |text| HeaderTemplate::Fixed(HeaderValue::from_static(text));
    let list = HeaderList {
        set: vec![
            (name("a"), fixed("set")),
            (name("c"), template("%REQ(b)%!")),
        ],
        add: vec![(name("a"), fixed("added")), (name("gone"), fixed("x"))],
        remove: vec![name("gone"), name("b")],
    };
    let mut headers = HeaderMap::new();
    headers.insert("a", HeaderValue::from_static("old"));
    headers.insert("b", HeaderValue::from_static("bee"));
    apply_request(&list, &mut headers, &variables(&method));
    let all: Vec<_> = headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
        .collect();
    assert_eq!(all, [("a", "set"), ("a", "added"), ("c", "bee!")]);
}

#[test]
fn a_response_can_speak_of_the_request() {
    let method = Method::GET;
    let ops = HeaderOps {
        response: HeaderList {
            set: vec![(
                HeaderName::from_static("x-echo"),
                template("%REQ(x-b)% %RESP(x-r)%"),
            )],
            ..HeaderList::default()
        },
        ..HeaderOps::default()
    };
    let mut request = HeaderMap::new();
    request.insert("x-b", HeaderValue::from_static("bee"));
    let saved = save(
        [&ops].into_iter(),
        &Variables {
            request: Some(&request),
            ..variables(&method)
        },
    );
    drop(request);
    let mut response = HeaderMap::new();
    response.insert("x-r", HeaderValue::from_static("are"));
    let variables = Variables {
        saved: &saved,
        status: Some(StatusCode::OK),
        ..variables(&method)
    };
    apply_response(&ops.response, &mut response, &variables);
    assert_eq!(response["x-echo"], "bee are");
}

// ---- splits and opaque routes ----

#[test]
fn weights_divide_the_draws() {
    let things = [("a", 3u32), ("never", 0), ("b", 1)];
    let mut counts = [0u32; 3];
    fastrand::seed(7);
    for _ in 0..4000 {
        counts[super::http::draw(&things, |one| one.1).unwrap()] += 1;
    }
    assert_eq!(counts[1], 0);
    assert!((2850..3150).contains(&counts[0]), "{counts:?}");
    assert_eq!(super::http::draw(&[("only", 0u32)], |one| one.1), Some(0));
}

#[test]
fn opaque_routes_match_name_network_and_port() {
    let missing = |name: &str| vec![(Target::Missing(name.into()), 1)];
    let routes = [
        OpaqueRoute {
            matches: vec![OpaqueMatch {
                sni_hosts: vec![HostPattern::Suffix(".a.com".into())],
                port: Some(443),
                ..OpaqueMatch::default()
            }],
            destinations: missing("sni"),
        },
        OpaqueRoute {
            matches: vec![OpaqueMatch {
                destination_subnets: vec!["10.0.0.0/8".parse().unwrap()],
                ..OpaqueMatch::default()
            }],
            destinations: missing("net"),
        },
    ];
    let client = client();
    let found = |sni, address: &str, port| {
        let facts = ConnectionFacts {
            sni,
            tls: sni.is_some(),
            address: address.parse().unwrap(),
            port,
            client: &client,
        };
        opaque::route(&routes, &facts).map(|route| match &route.destinations[0].0 {
            Target::Missing(name) => name.to_string(),
            Target::Cluster(_) => panic!("no cluster here"),
        })
    };
    assert_eq!(
        found(Some("x.a.com"), "1.1.1.1", 443).as_deref(),
        Some("sni")
    );
    assert_eq!(found(Some("x.a.com"), "1.1.1.1", 444), None);
    assert_eq!(
        found(Some("a.com"), "10.1.1.1", 443).as_deref(),
        Some("net")
    );
    assert_eq!(found(None, "10.1.1.1", 1).as_deref(), Some("net"));
    assert_eq!(found(None, "11.1.1.1", 443), None);
}
