//! Which block of a route fits a request.

use super::*;

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
