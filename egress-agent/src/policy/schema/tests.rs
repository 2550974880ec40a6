#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::*;
use crate::policy::Options;
use crate::policy::load::load_text;
use crate::policy::yaml::to_yaml;

#[test]
fn durations_are_gos() {
    let nanoseconds = |text: &str| parse_duration(text).map(|t| t.nanoseconds);
    for (text, value) in [
        ("0", 0),
        ("-0", 0),
        ("10s", 10_000_000_000),
        ("1.5s", 1_500_000_000),
        ("1h30m", 5_400_000_000_000),
        ("300ms", 300_000_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        ("-1.5h", -5_400_000_000_000),
        ("+5m", 300_000_000_000),
        ("2us3ns", 2_003),
        ("1\u{b5}s", 1_000),
        ("1h0.5m", 3_630_000_000_000),
    ] {
        assert_eq!(nanoseconds(text), Some(value), "{text}");
    }
    for text in [
        "",
        "5",
        "s",
        "1d",
        "1 s",
        "1s ",
        ".s",
        "1..5s",
        "-",
        "+",
        "1e3s",
        "3000000h",
        "99999999999999999999s",
    ] {
        assert_eq!(nanoseconds(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn durations_print_as_they_read(nanoseconds in any::<i64>()) {
        prop_assume!(nanoseconds != i64::MIN);
        let interval = Interval { nanoseconds };
        prop_assert_eq!(parse_duration(&format_duration(interval)), Some(interval));
    }
}

/// An object with some of the fields.
fn some(fields: Vec<(&'static str, BoxedStrategy<Json>)>) -> BoxedStrategy<Json> {
    let strategies: Vec<_> = fields
        .into_iter()
        .map(|(name, value)| prop::option::of(value.prop_map(move |value| (name, value))))
        .collect();
    strategies
        .prop_map(|fields| {
            let fields = fields.into_iter().flatten();
            Json::Object(
                fields
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            )
        })
        .boxed()
}

fn text() -> BoxedStrategy<Json> {
    "[a-z][a-z0-9]{1,6}".prop_map(|text| json!(text)).boxed()
}

fn any_text() -> BoxedStrategy<Json> {
    "[ -~\u{e9}\u{4e2d}]{1,12}"
        .prop_filter("a template", |text| !text.contains('%'))
        .prop_map(|text| json!(text))
        .boxed()
}

fn host() -> BoxedStrategy<Json> {
    "[a-z]{1,5}\\.example\\.(com|org)"
        .prop_map(|text| json!(text))
        .boxed()
}

fn time() -> BoxedStrategy<Json> {
    (1_i64..10_000_000)
        .prop_map(|ms| {
            let nanoseconds = ms * 1_000_000;
            json!(format_duration(Interval { nanoseconds }))
        })
        .boxed()
}

fn number(low: i64, high: i64) -> BoxedStrategy<Json> {
    (low..=high).prop_map(|n| json!(n)).boxed()
}

fn flag() -> BoxedStrategy<Json> {
    any::<bool>().prop_map(|b| json!(b)).boxed()
}

fn words(words: &'static [&'static str]) -> BoxedStrategy<Json> {
    prop::sample::select(words)
        .prop_map(|word| json!(word))
        .boxed()
}

fn list(item: BoxedStrategy<Json>, least: usize, most: usize) -> BoxedStrategy<Json> {
    prop::collection::vec(item, least..=most)
        .prop_map(Json::Array)
        .boxed()
}

fn map(key: &'static str, value: BoxedStrategy<Json>) -> BoxedStrategy<Json> {
    prop::collection::btree_map(key, value, 1..4)
        .prop_map(|map| Json::Object(map.into_iter().collect::<Map<_, _>>()))
        .boxed()
}

fn with(mut object: Json, more: &[(&str, Json)]) -> Json {
    for (name, value) in more {
        object
            .as_object_mut()
            .unwrap()
            .insert((*name).to_owned(), value.clone());
    }
    object
}

fn traffic_policy() -> BoxedStrategy<Json> {
    let tcp = some(vec![
        ("maxConnections", number(0, 99)),
        ("connectTimeout", time()),
        ("idleTimeout", time()),
        (
            "tcpKeepalive",
            some(vec![("time", time()), ("probes", number(0, 9))]),
        ),
    ]);
    let http = some(vec![
        ("http2MaxRequests", number(0, 99)),
        ("h2UpgradePolicy", words(&["UPGRADE", "DO_NOT_UPGRADE"])),
        ("idleTimeout", time()),
    ]);
    let pool = (tcp, http)
        .prop_map(|(tcp, http)| json!({"tcp": tcp, "http": http}))
        .boxed();
    let cookie = (text(), some(vec![("path", any_text()), ("ttl", time())]))
        .prop_map(|(name, rest)| json!({"httpCookie": with(rest, &[("name", name)])}))
        .boxed();
    let hash = cookie
        .prop_map(|hash| json!({"consistentHash": hash}))
        .boxed();
    let simple = words(&["RANDOM", "ROUND_ROBIN", "LEAST_REQUEST"])
        .prop_map(|word| json!({"simple": word}))
        .boxed();
    let balancer = prop_oneof![hash, simple].boxed();
    let outlier = some(vec![
        ("consecutive5xxErrors", number(0, 9)),
        ("interval", time()),
        ("maxEjectionPercent", number(0, 100)),
    ]);
    let tls = (
        words(&["SIMPLE", "ISTIO_MUTUAL", "DISABLE"]),
        some(vec![
            ("sni", host()),
            ("caCertificates", any_text()),
            ("subjectAltNames", list(host(), 1, 3)),
        ]),
    )
        .prop_map(|(mode, tls)| with(tls, &[("mode", mode)]))
        .boxed();
    let blocks = |tls: BoxedStrategy<Json>| {
        some(vec![
            ("loadBalancer", balancer.clone()),
            ("connectionPool", pool.clone()),
            ("outlierDetection", outlier.clone()),
            ("tls", tls),
        ])
    };
    let port = (number(1, 65535), blocks(tls.clone()))
        .prop_map(|(number, blocks)| {
            with(
                blocks,
                &[
                    ("port", json!({"number": number})),
                    ("tls", json!({"mode": "SIMPLE"})),
                ],
            )
        })
        .boxed();
    (
        blocks(tls),
        list(port, 1, 2),
        some(vec![(
            "percent",
            (0_u8..=100).prop_map(|n| json!(f64::from(n))).boxed(),
        )]),
    )
        .prop_map(|(blocks, ports, budget)| {
            with(
                blocks,
                &[("portLevelSettings", ports), ("retryBudget", budget)],
            )
        })
        .boxed()
}

fn destination_rule() -> BoxedStrategy<Json> {
    let subset = (text(), map("[a-z]{2,5}", text()), traffic_policy())
        .prop_map(|(name, labels, policy)| json!([{"name": name, "labels": labels, "trafficPolicy": policy}]))
        .boxed();
    (
        host(),
        some(vec![
            ("trafficPolicy", traffic_policy()),
            ("subsets", subset),
            (
                "exportTo",
                words(&[".", "*"]).prop_map(|w| json!([w])).boxed(),
            ),
        ]),
    )
        .prop_map(|(host, rest)| with(rest, &[("host", host)]))
        .boxed()
}

fn service_entry() -> BoxedStrategy<Json> {
    let port = (
        1_u16..=65535,
        words(&["HTTP", "tls", "TCP", "HTTPS"]),
        prop::option::of(1_u16..=65535),
    )
        .prop_map(|(number, protocol, target)| {
            let mut port = json!([{"number": number, "name": "p1", "protocol": protocol}]);
            if let Some(target) = target {
                port[0]["targetPort"] = json!(target);
            }
            port
        });
    let endpoint = (
        any::<std::net::Ipv4Addr>(),
        some(vec![
            ("weight", number(0, 9)),
            ("labels", map("[a-z]{2,5}", text())),
            ("locality", any_text()),
            (
                "ports",
                number(1, 65535).prop_map(|n| json!({"p1": n})).boxed(),
            ),
        ]),
    )
        .prop_map(|(address, rest)| with(rest, &[("address", json!(address))]))
        .boxed();
    (
        host(),
        port,
        list(endpoint, 1, 4),
        some(vec![("subjectAltNames", list(any_text(), 1, 2))]),
    )
        .prop_map(|(host, ports, endpoints, rest)| {
            with(
                rest,
                &[
                    ("hosts", json!([host])),
                    ("ports", ports),
                    ("endpoints", endpoints),
                    ("resolution", json!("STATIC")),
                ],
            )
        })
        .boxed()
}

fn string_match() -> BoxedStrategy<Json> {
    prop_oneof![
        any_text().prop_map(|text| json!({"exact": text})),
        any_text().prop_map(|text| json!({"prefix": text})),
        Just(json!({"regex": "a+(b|c)"})),
        Just(json!({})),
    ]
    .boxed()
}

fn virtual_service() -> BoxedStrategy<Json> {
    let rule = some(vec![
        ("uri", string_match()),
        ("method", string_match()),
        ("headers", map("[a-z]{2,6}", string_match())),
        ("withoutHeaders", map("[a-z]{2,6}", string_match())),
        ("queryParams", map("[a-z]{2,6}", string_match())),
        ("port", number(1, 65535)),
        ("ignoreUriCase", flag()),
        ("sourceLabels", map("[a-z]{2,6}", text())),
        ("sourceNamespace", text()),
    ]);
    let operations = some(vec![
        ("set", map("x-[a-z]{1,4}", any_text())),
        ("add", map("x-[a-z]{1,4}", any_text())),
        ("remove", list(text(), 1, 2)),
    ]);
    let retries = (
        number(1, 5),
        some(vec![
            ("perTryTimeout", time()),
            ("retryOn", words(&["5xx,reset", "503"])),
            ("retryRemoteLocalities", flag()),
        ]),
    )
        .prop_map(|(attempts, rest)| with(rest, &[("attempts", attempts)]))
        .boxed();
    let fault = (number(0, 100), time())
        .prop_map(|(percent, time)| json!({"delay": {"fixedDelay": time, "percentage": {"value": f64::from(u8::try_from(percent.as_i64().unwrap()).unwrap())}}}))
        .boxed();
    let destination = (
        host(),
        some(vec![
            ("subset", text()),
            (
                "port",
                number(1, 65535).prop_map(|n| json!({"number": n})).boxed(),
            ),
        ]),
    )
        .prop_map(|(host, rest)| with(rest, &[("host", host)]))
        .boxed();
    let route = (
        list(rule, 1, 2),
        destination.clone(),
        some(vec![
            ("name", any_text()),
            ("timeout", time()),
            ("retries", retries),
            ("fault", fault),
            ("mirror", destination),
            (
                "headers",
                some(vec![
                    ("request", operations.clone()),
                    ("response", operations),
                ]),
            ),
            (
                "rewrite",
                any_text().prop_map(|uri| json!({"uri": uri})).boxed(),
            ),
        ]),
    )
        .prop_map(|(rules, to, rest)| {
            with(
                rest,
                &[("match", rules), ("route", json!([{"destination": to}]))],
            )
        })
        .boxed();
    (host(), list(route, 1, 3))
        .prop_map(|(host, http)| json!({"hosts": [host], "http": http}))
        .boxed()
}

fn reads_back(kind: &str, spec: &Json) {
    let document = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "a", "namespace": "shop", "labels": {"app": "yes"}, "annotations": {"x/y": " z: #"}},
        "spec": spec,
    });
    let text = to_yaml(&document);
    let loaded = load_text("f", &text, &Options::default());
    assert!(loaded.is_valid(), "{:#?}\n{text}", loaded.diagnostics);
    let read = loaded.documents.list[0].to_json();
    assert_eq!(read, document, "{text}");
    // And once more, from what we print ourselves.
    let again = load_text("f", &to_yaml(&read), &Options::default());
    assert_eq!(again.documents.list[0].to_json(), document);
}

proptest! {
    #![proptest_config(crate::policy::cases(128))]

    #[test]
    fn a_destination_rule_reads_back_the_same(spec in destination_rule()) {
        reads_back("DestinationRule", &spec);
    }

    #[test]
    fn a_service_entry_reads_back_the_same(spec in service_entry()) {
        reads_back("ServiceEntry", &spec);
    }

    #[test]
    fn a_virtual_service_reads_back_the_same(spec in virtual_service()) {
        reads_back("VirtualService", &spec);
    }
}
