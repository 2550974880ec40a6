#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::policy::Options;
use crate::policy::compile::{Ids, compile};
use crate::policy::document::Documents;
use crate::policy::load::load_text;
use crate::policy::snapshot::Client;

const FILES: [(&str, &str); 4] = [
    (
        "payments.yaml",
        include_str!("../../../tests/data/explain/payments.yaml"),
    ),
    (
        "partner.yaml",
        include_str!("../../../tests/data/explain/partner.yaml"),
    ),
    (
        "legacy.yaml",
        include_str!("../../../tests/data/explain/legacy.yaml"),
    ),
    (
        "databases.yaml",
        include_str!("../../../tests/data/explain/databases.yaml"),
    ),
];

fn snapshot() -> Snapshot {
    let options = Options::default();
    let mut documents = Documents::default();
    for (name, text) in FILES {
        let loaded = load_text(name, text, &options);
        assert!(loaded.is_valid(), "{name}: {:?}", loaded.diagnostics);
        documents.list.extend(loaded.documents.list);
    }
    compile(&mut Ids::default(), &documents, &options).0
}

fn query(target: &str, namespace: &str) -> Query {
    let client = Client {
        namespace: namespace.into(),
        labels: Arc::default(),
    };
    Query::new(Target::parse(target).unwrap(), client)
}

fn plain(report: &Explanation) -> String {
    anstream::adapter::strip_str(&text::text(report)).to_string()
}

fn said(query: &Query) -> String {
    plain(&explain(&snapshot(), query, &AsWritten))
}

#[test]
fn a_url_takes_one_route_and_leaves_as_tls() {
    let query = query(
        "http://api.payments.example.com:443/v1/charges/7",
        "production",
    );
    assert_snapshot!(said(&query.method("POST").unwrap()));
}

#[test]
fn a_client_that_speaks_tls_is_told_what_it_misses() {
    assert_snapshot!(said(&query(
        "https://api.payments.example.com/old/x?y=1",
        "production"
    )));
}

#[test]
fn mutual_tls_names_the_credential_and_the_rule_that_lost() {
    assert_snapshot!(said(&query("api.partner.example.com:443", "production")));
}

#[test]
fn a_rule_of_the_callers_namespace_goes_first_and_no_verification_is_a_warning() {
    assert_snapshot!(said(&query(
        "http://api.partner.example.com:443/",
        "careless"
    )));
}

#[test]
fn weights_rewrites_faults_and_what_is_missing() {
    let query = query("http://legacy.corp.example.com/api/v2/users?x=1", "default");
    assert_snapshot!(said(&query.header("X-Tenant: a").unwrap()));
}

#[test]
fn a_request_that_no_route_takes() {
    assert_snapshot!(said(&query("http://192.0.2.100/api/v2/users", "default")));
}

#[test]
fn a_port_shows_all_routes() {
    assert_snapshot!(said(&query("legacy.corp.example.com:80", "default")));
}

#[test]
fn the_kernel_needs_no_agent_for_a_database() {
    assert_snapshot!(said(&query("postgres://db.example.com/prod", "default")));
}

#[test]
fn a_whole_port_takes_names_that_nobody_registered() {
    assert_snapshot!(said(&query("other.example.com:3306", "default")));
}

#[test]
fn udp_is_refused() {
    assert_snapshot!(said(&query("198.51.100.7:443", "default")));
}

#[test]
fn wildcards_cover_names_below_them() {
    let snapshot = snapshot();
    let report = explain(
        &snapshot,
        &query("https://a.cloud.example.com", "x"),
        &AsWritten,
    );
    assert_eq!(report.service.unwrap().host, "*.cloud.example.com");
    let report = explain(
        &snapshot,
        &query("https://cloud.example.com", "x"),
        &AsWritten,
    );
    assert!(!report.registered);
}

#[test]
fn what_is_not_registered_says_why_and_what_may_have_been_meant() {
    let said = |target, namespace| {
        let report = explain(&snapshot(), &query(target, namespace), &AsWritten);
        assert!(!report.registered);
        assert!(report.path.is_none() && report.service.is_none());
        let nothing = report.unregistered.unwrap();
        format!("{}\n{}", nothing.reason, nothing.suggestions.join("\n"))
    };
    let list = [
        said("https://api.payment.example.com", "production"),
        said("https://api.payments.example.com", "default"),
        said("https://legacy.corp.example.com", "default"),
        said("a.cloud.example.com", "default"),
        said("nothing.like.it:1", "default"),
        said("10.1.1.10:5432", "default"),
        said("192.0.2.100:443", "default"),
    ];
    assert_snapshot!(list.join("\n\n"));
}

struct Agent;

impl LiveView for Agent {
    fn endpoints(&self, cluster: &snapshot::Cluster) -> Option<Vec<LiveEndpoint>> {
        (cluster.target.port == 5432).then(|| {
            vec![LiveEndpoint {
                address: "10.1.1.10:5432".into(),
                weight: 1,
                health: "ejected".into(),
                detail: Some("for 12s".into()),
                connections: 3,
                ..LiveEndpoint::default()
            }]
        })
    }

    fn virtual_addresses(&self, _: &str) -> Vec<IpAddr> {
        vec![Ipv4Addr::new(240, 240, 1, 2).into()]
    }

    fn registry_only(&self) -> Option<bool> {
        Some(true)
    }
}

#[test]
fn a_running_agent_adds_health_and_virtual_addresses() {
    let report = explain(
        &snapshot(),
        &query("db.example.com:5432", "default"),
        &Agent,
    );
    let text = plain(&report);
    assert!(
        text.contains("10.1.1.10:5432, ejected (for 12s), 3 open"),
        "{text}"
    );
    assert!(text.contains("virtual address 240.240.1.2"), "{text}");
    assert!(
        text.contains("no endpoint of db.example.com:5432 is healthy now"),
        "{text}"
    );
    let report = explain(&snapshot(), &query("x.y:1", "default"), &Agent);
    assert!(report.unregistered.unwrap().outcome.starts_with("refused"));
}

#[test]
fn json_comes_back_as_it_went() {
    let report = explain(
        &snapshot(),
        &query("http://legacy.corp.example.com/health", "default"),
        &Agent,
    );
    let value = serde_json::to_value(&report).unwrap();
    let back: Explanation = serde_json::from_value(value).unwrap();
    assert_eq!(back, report);
    // An agent of another version may leave fields out, or have more.
    let lean: Explanation = serde_json::from_str(r#"{"target":"a:1","newer":true}"#).unwrap();
    assert!(plain(&lean).starts_with("a:1\n"));
}

#[test]
fn text_of_documents_does_not_steer_the_terminal() {
    let report = Explanation {
        target: "a\u{1b}]0;x\u{7}\n".into(),
        warnings: vec!["b\u{1b}[2Jc".into()],
        ..Explanation::default()
    };
    let text = text::text(&report);
    assert!(
        !text.contains("\u{1b}]") && !text.contains("\u{1b}[2J"),
        "{text:?}"
    );
}

#[test]
fn destinations_are_read_as_people_write_them() {
    let read = |text: &str| {
        let target = Target::parse(text).unwrap();
        (target.host.to_string(), target.port, target.path_and_query)
    };
    let path = |text: &str| Some(text.into());
    assert_eq!(
        read("HTTPS://User@A.B.:8443/x?y#z"),
        ("a.b".into(), Some(8443), path("/x?y"))
    );
    assert_eq!(
        read("http://a.b?q=1"),
        ("a.b".into(), Some(80), path("/?q=1"))
    );
    assert_eq!(read("postgres://a.b/db"), ("a.b".into(), Some(5432), None));
    assert_eq!(read("a.b"), ("a.b".into(), None, None));
    assert_eq!(
        read("[2001:db8::1]:443"),
        ("2001:db8::1".into(), Some(443), None)
    );
    assert_eq!(read("2001:db8::1"), ("2001:db8::1".into(), None, None));
    for wrong in [
        "", "a b", "a:0", "a:65536", "a:+1", "a/b", "http://", "a:x", "[::1", "*.a:1", "é:1",
    ] {
        assert!(Target::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn callers_are_told_apart() {
    assert_eq!(From::parse("4711"), Ok(From::Process(4711)));
    let cgroup = "/system.slice/a.service";
    assert_eq!(From::parse(cgroup), Ok(From::Cgroup(cgroup.into())));
    let Ok(From::Client(client)) = From::parse("payments,app=web") else {
        panic!("no client");
    };
    assert_eq!(&*client.namespace, "payments");
    assert_eq!(client.labels.get("app").map(|value| &**value), Some("web"));
    for wrong in ["", "Pay", "a,b", "99999999999"] {
        assert!(From::parse(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_question_panics(
        target in "((https?|tls|x)://)?[a-z0-9.:@\\[\\]*-]{0,12}(/[^ ]{0,8})?|.*",
        namespace in "production|careless|default|",
    ) {
        let _ = From::parse(&target);
        if let Ok(target) = Target::parse(&target) {
            let client = Client { namespace: namespace.as_str().into(), labels: Arc::default() };
            let report = explain(&snapshot(), &Query::new(target, client), &AsWritten);
            let _ = text::text(&report);
        }
    }
}
