#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use proptest::prelude::*;

use super::names::*;
use super::regexp;
use crate::policy::Options;
use crate::policy::load::load_text;

#[test]
fn hosts() {
    for host in [
        "a.example.com",
        "a.example.com.",
        "A-1.b",
        "123",
        "foo",
        "*",
        "*.com",
        "*foo.com",
        "*-foo.com",
        "1.2.3.x",
    ] {
        assert_eq!(wildcard_host(host), Ok(()), "{host}");
    }
    for host in [
        "", ".", "a..b", "a.b-", "-a.b", "foo*.com", "a.*.com", "*.*.com", "1.2.3.4", "1.1.1",
        "*-", "*--a", "a_b.c", "a/b",
    ] {
        assert!(wildcard_host(host).is_err(), "{host}");
    }
    assert!(fqdn("*.com").is_err() && fqdn("123").is_err() && fqdn("a.").is_ok());
    assert!(wildcard_host(&"a".repeat(64)).is_err());
    assert!(wildcard_host(&["abcdefg"; 32].join(".")).is_ok());
    assert!(wildcard_host(&["abcdefg"; 33].join(".")).is_err());
    assert!(gateway_host("outbound_.80_._.e2e.foobar.mesh", true).is_ok());
    assert!(gateway_host("outbound_.x_._.e2e.mesh", true).is_err());
    assert!(gateway_host("outbound_.80_._.e2e.foobar.mesh", false).is_err());
}

#[test]
fn addresses_and_networks() {
    for text in [
        "192.0.2.1",
        "2001:db8::1",
        "fe80::1%eth0",
        "192.0.2.1/24",
        "::/0",
        "1.1.1.1/0",
    ] {
        assert!(subnet(text).is_ok(), "{text}");
    }
    for text in [
        "",
        "1.1.1",
        "01.1.1.1",
        "1.1.1.1/33",
        "1.1.1.1/08",
        "1.1.1.1/",
        "1.1.1.1/+8",
        "1.1.1.1/8/8",
        "::1/129",
        "a",
        "fe80::1%eth0/64",
    ] {
        assert!(subnet(text).is_err(), "{text}");
    }
}

#[test]
fn labels() {
    for key in ["app", "a/b", "example.com/App_1.x", "a"] {
        assert!(label_key(key), "{key}");
    }
    for key in ["", "/a", "a/", "-a", "a-", "a b", "a..b/c", "a/b/c"] {
        assert!(!label_key(key), "{key}");
    }
    assert!(label_value("") && label_value("a.B_c-1") && !label_value("a b") && !label_value("-"));
    assert!(!label_value(&"a".repeat(64)) && !label_key(&"a".repeat(64)));
}

#[test]
fn regular_expressions_are_re2s() {
    for text in [
        "a+",
        "a??",
        "(?i)abc",
        "(?P<x>a)",
        "(?<x>a)",
        "[[:alpha:]]",
        "[]a]",
        "[^]a]",
        r"\d+\.",
        r"\pL",
        r"\Qa*b\E",
        "a{2,3}",
        "a{,3}",
        "{",
        "a}",
        "x{",
        r"\x{10}",
        r"\01",
        "[a&&b]",
        "[a--]",
        "",
        r"\/",
        r"[\w.-]+",
        "a|",
        "()",
        "(?U)a+",
        "(?-s:.)",
        r"[\]]",
        "é+",
    ] {
        assert!(
            regexp::compile(text).is_ok(),
            "{text}: {:?}",
            regexp::compile(text)
        );
    }
    for text in [
        "(?!a)",
        "(?=a)",
        "(?<=a)",
        "(?<!a)",
        r"(a)\1",
        "a**",
        "a++",
        "a{1001}",
        "a{3,2}",
        "[",
        "(",
        ")",
        "a)(b",
        "*a",
        "?",
        r"\",
        r"\y",
        r"\u0041",
        "(?x)a",
        "[b-a]",
        "[[:foo:]]",
        "(?P<a>x)(?P<a>y)",
        "(?#c)",
        "[]",
        "a{2}{3}",
        r"\C",
        "(?P=a)",
    ] {
        assert!(regexp::compile(text).is_err(), "{text}");
    }
    assert!(regexp::compile(&"a".repeat(1024)).is_ok());
    assert!(regexp::compile(&"a".repeat(1025)).is_err());
    let whole = regexp::compile("a|bc").unwrap();
    assert!(whole.is_match("bc") && !whole.is_match("abc") && !whole.is_match("bcd"));
    assert!(!regexp::compile(r"\d").unwrap().is_match("٣"));
    assert!(regexp::compile(r"[\D]").unwrap().is_match("٣"));
    assert!(regexp::compile(r"\Qa.b\E").unwrap().is_match("a.b"));
    assert!(regexp::compile("x{").unwrap().is_match("x{"));
    assert_eq!(regexp::replacement(r"/\1/$x\\"), r"/${1}/$$x\");
}

/// Rules of a DestinationRule's `trafficPolicy`, of which the given text is
/// the body.
fn policy_rules(body: &str) -> Vec<&'static str> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r}}\nspec:\n  host: a.example.com\n  trafficPolicy: {body}\n"
    );
    let loaded = load_text("f", &text, &Options::default());
    loaded.diagnostics.iter().map(|d| d.rule).collect()
}

fn route_rules(body: &str) -> Vec<&'static str> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v}}\nspec:\n  hosts: [a.example.com]\n  http:\n  - {body}\n"
    );
    let loaded = load_text("f", &text, &Options::default());
    loaded.diagnostics.iter().map(|d| d.rule).collect()
}

#[test]
fn rules_of_traffic_policies() {
    for (body, rules) in [
        ("{}", vec!["empty"]),
        ("{tls: {}}", vec![]),
        ("{connectionPool: {}}", vec!["empty"]),
        ("{connectionPool: {tcp: {}}}", vec![]),
        (
            "{connectionPool: {tcp: {maxConnections: -1}}}",
            vec!["number-range"],
        ),
        (
            "{connectionPool: {tcp: {connectTimeout: 0s}}}",
            vec!["duration-range"],
        ),
        (
            "{connectionPool: {tcp: {connectTimeout: 1.5ms}}}",
            vec!["duration-range"],
        ),
        ("{connectionPool: {tcp: {idleTimeout: 0s}}}", vec![]),
        (
            "{connectionPool: {tcp: {connectTimeout: \"10\"}}}",
            vec!["duration"],
        ),
        (
            "{connectionPool: {http: {http2KeepAlive: {interval: 1s}}}}",
            vec!["required"],
        ),
        ("{outlierDetection: {consecutive5xxErrors: null}}", vec![]),
        ("{outlierDetection: {interval: null}}", vec!["null"]),
        (
            "{outlierDetection: {maxEjectionPercent: 101}}",
            vec!["percentage"],
        ),
        (
            "{loadBalancer: {simple: ROUND_ROBIN, consistentHash: {useSourceIp: true}}}",
            vec!["one-of"],
        ),
        ("{loadBalancer: {simple: round_robin}}", vec!["enum"]),
        (
            "{loadBalancer: {consistentHash: {httpHeaderName: a, maglev: {tableSize: 8}}}}",
            vec!["maglev-size"],
        ),
        (
            "{loadBalancer: {consistentHash: {httpHeaderName: a, maglev: {tableSize: 5000011}}}}",
            vec!["maglev-size"],
        ),
        (
            "{loadBalancer: {consistentHash: {httpHeaderName: a, maglev: {tableSize: 65537}}}}",
            vec![],
        ),
        (
            "{loadBalancer: {warmup: {duration: 1s, aggression: 0}}}",
            vec!["number-range"],
        ),
        ("{tls: {mode: MUTUAL}}", vec!["tls-mutual", "tls-mutual"]),
        (
            "{tls: {mode: SIMPLE, insecureSkipVerify: true, credentialName: a}}",
            vec!["tls-skip-verify"],
        ),
        (
            "{tls: {mode: SIMPLE, credentialName: a, caCrl: b}}",
            vec!["tls-credential"],
        ),
        (
            "{tunnel: {targetHost: a, targetPort: 1}, proxyProtocol: {}}",
            vec!["one-of"],
        ),
        ("{portLevelSettings: [{tls: {}}]}", vec!["required"]),
        ("{portLevelSettings: [{port: {number: 80}}]}", vec!["empty"]),
        ("{tsl: {}}", vec!["unknown-field", "empty"]),
    ] {
        let mut found = policy_rules(body);
        let mut wanted = rules;
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{body}");
    }
}

#[test]
fn a_longer_prefix_behind_a_shorter_one_is_never_reached() {
    let rules = |second: &str| {
        let to = "route: [{destination: {host: a.example.com}}]";
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v}}\nspec:\n  hosts: [a.example.com]\n  http:\n  - {{match: [{{uri: {{prefix: /a}}, method: {{exact: GET}}}}], {to}}}\n  - {{match: [{second}], {to}}}\n"
        );
        let loaded = load_text("f", &text, &Options::default());
        loaded
            .diagnostics
            .iter()
            .map(|d| d.rule)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        rules("{uri: {prefix: /ab}, method: {exact: GET}}"),
        ["shadowed"]
    );
    assert_eq!(rules("{uri: {prefix: /ab}, method: {exact: PUT}}"), [""; 0]);
    assert_eq!(
        rules("{uri: {prefix: /a}, method: {exact: GET}}"),
        ["duplicate-match"]
    );
}

#[test]
fn rules_of_routes() {
    let to = "route: [{destination: {host: a.example.com}}]";
    for (body, rules) in [
        (format!("{{{to}}}"), vec![]),
        ("{name: x}".into(), vec!["required"]),
        (format!("{{{to}, redirect: {{uri: /}}}}"), vec!["one-of"]),
        ("{redirect: {}}".into(), vec!["required"]),
        (
            "{redirect: {uri: /, redirectCode: 299}}".into(),
            vec!["http-status"],
        ),
        (
            "{directResponse: {status: 601}}".into(),
            vec!["http-status"],
        ),
        (
            "{directResponse: {status: 200, body: {bytes: \"?\"}}}".into(),
            vec!["base64"],
        ),
        (format!("{{{to}, timeout: 0s}}"), vec!["duration-range"]),
        (
            format!("{{{to}, retries: {{retryOn: 5xx}}}}"),
            vec!["retry-attempts"],
        ),
        (
            format!("{{{to}, retries: {{attempts: 1, retryOn: \"5xx, reset\"}}}}"),
            vec!["retry-on"],
        ),
        (
            format!("{{{to}, retries: {{attempts: 1, retryOn: \"503,unavailable\"}}}}"),
            vec![],
        ),
        (
            format!("{{{to}, match: [{{uri: {{prefix: \"\"}}}}]}}"),
            vec![],
        ),
        (
            format!("{{{to}, match: [{{method: {{prefix: \"\"}}}}]}}"),
            vec!["match-empty"],
        ),
        (
            format!("{{{to}, match: [{{uri: {{regex: \"(?!a)\"}}}}]}}"),
            vec!["regex"],
        ),
        (
            format!("{{{to}, match: [{{headers: {{\"a b\": {{exact: x}}}}}}]}}"),
            vec!["header-name"],
        ),
        (
            format!("{{{to}, match: [{{headers: {{\"@request.auth.claims.a\": {{exact: x}}}}}}]}}"),
            vec!["header-claim"],
        ),
        (
            format!("{{{to}, headers: {{request: {{set: {{a: \"100%\"}}}}}}}}"),
            vec!["header-value"],
        ),
        (
            format!("{{{to}, headers: {{request: {{set: {{a: \"100%%\", b: \"%REQ()%\"}}}}}}}}"),
            vec!["header-value"],
        ),
        (
            format!("{{{to}, headers: {{request: {{set: {{a: \"100%%\", b: \"%REQ(xy)%\"}}}}}}}}"),
            vec![],
        ),
        (
            format!("{{{to}, headers: {{request: {{remove: [Host]}}}}}}"),
            vec!["header-name"],
        ),
        (
            format!(
                "{{{to}, headers: {{request: {{set: {{\":authority\": a}}, add: {{host: b}}}}}}}}"
            ),
            vec!["authority-twice"],
        ),
        (
            format!("{{{to}, fault: {{delay: {{fixedDelay: 1s}}}}}}"),
            vec!["fault-percentage"],
        ),
        (
            format!(
                "{{{to}, fault: {{abort: {{httpStatus: 503, percentage: {{value: 0.00001}}}}}}}}"
            ),
            vec!["percentage"],
        ),
        (
            "{route: [{destination: {host: a}}, {destination: {host: b}}]}".into(),
            vec!["weights"],
        ),
        (
            "{route: [{destination: {host: a}, weight: -1}]}".into(),
            vec!["number-range"],
        ),
        (
            "{route: [{destination: {host: a, port: {}}}]}".into(),
            vec!["port-range"],
        ),
    ] {
        assert_eq!(route_rules(&body), rules, "{body}");
    }
}

proptest! {
    #[test]
    fn no_expression_panics(text in "[-a-z0-9(){}\\[\\]|*+?.^$\\\\:&~<>,]{0,24}") {
        let _ = regexp::compile(&text);
    }

    #[test]
    fn no_replacement_breaks_the_crates_syntax(text in "[a-z0-9$\\\\{}]{0,12}") {
        let regex = regex::Regex::new("(x)").unwrap();
        let replaced = regex.replace("x", regexp::replacement(&text)).into_owned();
        let plain: String = text.chars().filter(|c| !matches!(c, '\\' | '0'..='9')).collect();
        let kept: String = replaced.chars().filter(|c| !matches!(c, '\\' | '0'..='9')).collect();
        // References give `x` or nothing; everything else stays.
        prop_assert_eq!(kept.replace('x', ""), plain.replace('x', ""));
    }
}
