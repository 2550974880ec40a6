//! Objects, kept documents, verdicts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::time::{Duration, SystemTime};

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use proptest::prelude::*;
use serde_json::json;

use super::kept::Kept;
use super::object::Object;
use super::report::Verdict;
use crate::policy::Options;
use crate::policy::store::{ObjectChange, SourceName, Store};

fn resource() -> ApiResource {
    let gvk = GroupVersionKind::gvk("networking.istio.io", "v1beta1", "ServiceEntry");
    ApiResource::from_gvk_with_plural(&gvk, "serviceentries")
}

fn object() -> serde_json::Value {
    json!({
        // Items of a list have no kind of their own.
        "metadata": {
            "name": "api", "namespace": "payments", "uid": "u", "resourceVersion": "7",
            "generation": 3, "creationTimestamp": "2026-01-31T12:00:00Z",
            "labels": { "team": "yes" },
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" },
            "managedFields": [
                { "manager": "kubectl", "time": "2026-02-01T00:00:00Z" },
                { "manager": "egress", "subresource": "status", "time": "2026-03-01T00:00:00Z" },
            ],
        },
        "spec": {
            "hosts": ["api.example"], "resolution": "DNS", "location": "MESH_EXTERNAL",
            "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }],
        },
        "status": { "conditions": [{ "type": "Other" }] },
    })
}

fn read(value: serde_json::Value) -> Object {
    let object: DynamicObject = serde_json::from_value(value).unwrap();
    Object::read(&resource(), object)
}

#[test]
fn an_object_becomes_a_document_that_is_valid() {
    let read = read(object());
    assert_eq!(&*read.name, "ServiceEntry/payments/api");
    // A write to the status is no change of the document.
    let at: SystemTime = "2026-02-01T00:00:00Z"
        .parse::<jiff::Timestamp>()
        .unwrap()
        .into();
    assert_eq!(read.modified, at);
    assert_eq!(read.meta.generation, 3);
    assert_eq!(read.meta.conditions.len(), 1);
    for hidden in ["status", "managedFields", "last-applied", "resourceVersion"] {
        assert!(!read.text.contains(hidden), "{}", read.text);
    }
    let mut store = Store::new(Options::default());
    let problems = store.replace_objects(vec![ObjectChange {
        name: read.name,
        modified: read.modified,
        text: Some(read.text),
    }]);
    assert!(problems.is_empty(), "{problems:?}");
    store.compile();
    let status = store.documents().remove(0);
    assert!(status.in_force());
    assert_eq!(Verdict::of(&status).reason, "Accepted");
    let SourceName::Object(name) = &status.source else {
        panic!("{:?}", status.source);
    };
    // Deleted.
    store.replace_objects(vec![ObjectChange {
        name: name.clone(),
        modified: SystemTime::now(),
        text: None,
    }]);
    store.compile();
    assert!(store.documents().is_empty());
}

#[test]
fn a_rejected_object_says_why_and_that_the_previous_one_stays() {
    let mut store = Store::new(Options::default());
    let mut give = |value: serde_json::Value| {
        let read = read(value);
        store.replace_objects(vec![ObjectChange {
            name: read.name,
            modified: read.modified,
            text: Some(read.text),
        }]);
        store.compile();
        Verdict::of(&store.documents()[0])
    };
    give(object());
    let mut bad = object();
    bad["spec"]["resolutoin"] = json!("DNS");
    let verdict = give(bad);
    assert_eq!(verdict.reason, "Rejected");
    assert!(
        verdict.message.contains("resolutoin"),
        "{}",
        verdict.message
    );
    assert!(
        verdict
            .message
            .ends_with("the previous version stays in force"),
        "{}",
        verdict.message
    );
    // Never longer than an Event may be.
    let mut worse = object();
    worse["spec"]["hosts"] = (0..500).map(|n| json!(format!("höst {n}"))).collect();
    assert!(give(worse).message.len() <= 1024);
}

#[test]
fn a_file_goes_before_an_older_object_and_comes_back_when_it_is_gone() {
    let home = tempfile::tempdir().unwrap();
    let mut store = Store::open(Options::default(), home.path()).unwrap();
    let older = read(object());
    store.replace_objects(vec![ObjectChange {
        name: older.name.clone(),
        modified: older.modified,
        text: Some(older.text),
    }]);
    store.compile();
    let mut newer = object();
    newer["spec"]["ports"][0]["number"] = json!(8080);
    let newer = read(newer);
    store.apply(newer.text, false).unwrap();
    store.compile();
    let port = |store: &Store| store.snapshot().services[0].key.port;
    assert_eq!(port(&store), 8080);
    store
        .delete_text("{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: api, namespace: payments}}".into(), false)
        .unwrap();
    store.compile();
    assert_eq!(port(&store), 80);
}

proptest! {
    #[test]
    fn what_is_kept_reads_back(
        name in "[A-Za-z]{1,10}/[a-z]{1,10}/[a-z.]{1,40}",
        text in "\\PC{0,200}",
        seconds in 0_u64..4_000_000_000,
    ) {
        let home = tempfile::tempdir().unwrap();
        let kept = Kept::open(home.path()).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        kept.set(&name, Some((modified, &text))).unwrap();
        let found = kept.load();
        prop_assert_eq!(found.len(), 1);
        let document = &found[&*name];
        prop_assert_eq!(&document.text, &text);
        prop_assert_eq!(document.modified, modified);
        kept.set(&name, None).unwrap();
        kept.set(&name, None).unwrap();
        prop_assert!(kept.load().is_empty());
    }

    #[test]
    fn what_is_damaged_is_passed_over(cut in 0_usize..200, flip in 0_usize..200) {
        let home = tempfile::tempdir().unwrap();
        let kept = Kept::open(home.path()).unwrap();
        kept.set("ServiceEntry/a/b", Some((SystemTime::now(), "kind: ServiceEntry\n"))).unwrap();
        let directory = home.path().join("kubernetes");
        let file = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
        let whole = fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        damaged.truncate(cut.min(whole.len() - 1));
        fs::write(&file, &damaged).unwrap();
        prop_assert!(kept.load().is_empty());
        let mut damaged = whole.clone();
        let place = flip % damaged.len();
        damaged[place] ^= 1;
        fs::write(&file, &damaged).unwrap();
        // Of the head only the time may be another one.
        for (name, document) in kept.load() {
            prop_assert_eq!(&*name, "ServiceEntry/a/b");
            prop_assert_eq!(document.text, "kind: ServiceEntry\n");
        }
    }
}
