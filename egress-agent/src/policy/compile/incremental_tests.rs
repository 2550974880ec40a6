//! Compiling changes against compiling everything.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::{Compiler, Ids, compile};
use crate::policy::Options;
use crate::policy::document::{Document, DocumentId, Documents};
use crate::policy::load::load_text;
use crate::policy::render::render;
use crate::policy::snapshot::{Cluster, Snapshot};

const HOSTS: [&str; 8] = [
    "a.x.com", "b.x.com", "c.y.com", "d.y.com", "e.com", "*.x.com", "*.y.com", "f.z.org",
];
const SPACES: [&str; 2] = ["one", "two"];

/// A document of one of a few names, which meets others in its hosts.
fn text() -> impl Strategy<Value = String> {
    let host = || prop::sample::select(&HOSTS[..]);
    let space = || prop::sample::select(&SPACES[..]);
    let entry = (0..5_u8, space(), host(), 80..83_u16, 0..4_u8, 0..3_u8).prop_map(
        |(name, space, host, port, form, to)| {
            let to = ["*", ".", "two"][usize::from(to)];
            let (protocol, rest) = match form {
                0 => ("HTTP", "resolution: STATIC, endpoints: [{address: 192.0.2.1, labels: {v: a}}, {address: 192.0.2.2}]"),
                1 => ("TCP", "resolution: NONE"),
                2 => ("TLS", "resolution: NONE"),
                _ => ("HTTP", "resolution: NONE, addresses: [192.0.2.9]"),
            };
            format!("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: n{name}, namespace: {space}}}\nspec: {{hosts: [\"{host}\"], exportTo: [\"{to}\"], ports: [{{number: {port}, name: p, protocol: {protocol}}}, {{number: 90, name: q, protocol: HTTP}}], {rest}}}\n")
        },
    );
    let rule = (0..4_u8, space(), host(), 0..4_u8).prop_map(|(name, space, host, form)| {
        let rest = match form {
            0 => "trafficPolicy: {tls: {mode: SIMPLE}}",
            1 => "subsets: [{name: a, labels: {v: a}}, {name: b, labels: {v: b}}]",
            2 => "trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}, subsets: [{name: a}]",
            _ => "trafficPolicy: {loadBalancer: {simple: RANDOM}}, exportTo: [.]",
        };
        format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: n{name}, namespace: {space}}}\nspec: {{host: \"{host}\", {rest}}}\n")
    });
    let route = (0..4_u8, space(), host(), host(), 0..3_u8).prop_map(
        |(name, space, host, to, form)| {
            let rest = match form {
                0 => format!("http: [{{route: [{{destination: {{host: \"{to}\"}}}}]}}]"),
                1 => format!("http: [{{match: [{{uri: {{prefix: /a}}}}], route: [{{destination: {{host: \"{to}\", subset: a, port: {{number: 90}}}}}}]}}]"),
                _ => format!("tcp: [{{route: [{{destination: {{host: \"{to}\"}}}}]}}]"),
            };
            format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: n{name}, namespace: {space}}}\nspec: {{hosts: [\"{host}\"], {rest}}}\n")
        },
    );
    let secret = (0..2_u8, space(), "[a-c]").prop_map(|(name, space, value)| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: n{name}, namespace: {space}}}\nstringData: {{ca.crt: {value}}}\n")
    });
    prop_oneof![4 => entry, 3 => rule, 3 => route, 1 => secret]
}

/// A snapshot without what may differ: places of clusters and numbers.
fn canon(snapshot: &Snapshot) -> Vec<String> {
    let numbers = regex::Regex::new(r"ServiceId\(\s*\d+,?\s*\)|index: \d+").unwrap();
    let mut out: Vec<String> = snapshot
        .services
        .iter()
        .map(|service| {
            let lost = snapshot.lost.get(&service.id);
            let text = format!("{service:?} {lost:?}");
            numbers.replace_all(&text, "_").into_owned()
        })
        .collect();
    let mut clusters: Vec<String> = snapshot
        .clusters
        .iter()
        .map(|cluster| {
            numbers
                .replace_all(&format!("{cluster:?}"), "_")
                .into_owned()
        })
        .collect();
    clusters.sort_unstable();
    out.extend(clusters);
    let hosts: BTreeMap<_, Vec<_>> = snapshot
        .by_host
        .iter()
        .map(|(host, list)| (host, list.iter().map(|s| &s.key).collect()))
        .collect();
    out.push(format!("{hosts:?}"));
    let wild: Vec<(_, Vec<_>)> = snapshot
        .wildcards
        .iter()
        .map(|(host, list)| (host, list.iter().map(|s| &s.key).collect()))
        .collect();
    out.push(format!("{wild:?} {:?}", snapshot.secrets));
    out
}

/// What a snapshot promises about itself.
fn whole(snapshot: &Snapshot) {
    for (place, cluster) in snapshot.clusters.iter().enumerate() {
        assert_eq!(cluster.index, place);
    }
    let listed = |cluster: &Arc<Cluster>| Arc::ptr_eq(&snapshot.clusters[cluster.index], cluster);
    assert_eq!(snapshot.by_id.len(), snapshot.services.len());
    assert!(snapshot.services.is_sorted_by(|a, b| a.key < b.key));
    for service in &snapshot.services {
        assert!(Arc::ptr_eq(&snapshot.by_id[&service.id], service));
        for view in &service.views {
            assert!(listed(&view.cluster), "{:?}", service.key);
            assert!(view.subsets.values().all(listed));
        }
    }
    let held: usize = snapshot.by_host.values().map(Vec::len).sum();
    let wild: usize = snapshot.wildcards.iter().map(|(_, list)| list.len()).sum();
    assert_eq!(held + wild, snapshot.services.len());
}

fn document(text: &str) -> Arc<Document> {
    // A file for each document.
    let name = text
        .split("spec")
        .next()
        .unwrap_or_default()
        .replace('\n', " ");
    let loaded = load_text(&name, text, &Options::default());
    assert!(loaded.is_valid(), "{text}\n{:?}", loaded.diagnostics);
    Arc::clone(&loaded.documents.list[0])
}

proptest! {
    #![proptest_config(crate::policy::cases(200))]

    #[test]
    fn changes_lead_to_what_compiling_everything_gives(
        steps in prop::collection::vec((prop::collection::vec(text(), 1..3), any::<bool>()), 1..14)
    ) {
        let options = Options::default();
        let mut compiler = Compiler::default();
        let mut documents: BTreeMap<DocumentId, Arc<Document>> = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        let mut given = HashSet::new();
        for (texts, remove) in steps {
            let mut changes: BTreeMap<DocumentId, Option<Arc<Document>>> = BTreeMap::new();
            for text in texts {
                let document = document(&text);
                let gone = remove && documents.contains_key(&document.id);
                if gone {
                    documents.remove(&document.id);
                    changes.insert(document.id.clone(), None);
                } else {
                    documents.insert(document.id.clone(), Arc::clone(&document));
                    changes.insert(document.id.clone(), Some(document));
                }
            }
            let snapshot = compiler.update(changes, &options, false);
            let list = documents.values().cloned().collect();
            let (wanted, warnings) = compile(&mut Ids::default(), &Documents { list }, &options);
            whole(&snapshot);
            prop_assert_eq!(canon(&snapshot), canon(&wanted));
            let said = |list: &[_]| {
                let mut list: Vec<String> = list.iter().map(|w| render(w, false)).collect();
                list.sort_unstable();
                list
            };
            prop_assert_eq!(said(compiler.warnings()), said(&warnings));
            // A service keeps its number while it is there, and no other gets it.
            let now: BTreeMap<_, _> =
                snapshot.services.iter().map(|s| (s.key.clone(), s.id)).collect();
            for (key, id) in &now {
                match numbers.get(key) {
                    Some(before) => prop_assert_eq!(before, id),
                    None => prop_assert!(given.insert(*id), "{:?} was given before", id),
                }
            }
            numbers = now;
        }
    }
}

#[test]
fn what_a_change_cannot_act_on_stays_the_same_value() {
    let options = Options::default();
    let mut compiler = Compiler::default();
    let entry = |n: usize, port: u16| {
        document(&format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e{n}}}\nspec: {{hosts: [e{n}.com], ports: [{{number: {port}, name: p, protocol: HTTP}}]}}\n"
        ))
    };
    let all = (0..10).map(|n| entry(n, 80));
    let before = compiler.update(all.map(|d| (d.id.clone(), Some(d))), &options, false);
    let changed = entry(4, 81);
    let after = compiler.update([(changed.id.clone(), Some(changed))], &options, false);
    assert_eq!(after.generation, before.generation + 1);
    for service in &before.services {
        let same = |other: &&Arc<_>| Arc::ptr_eq(other, service);
        let kept = after.services.iter().any(|other| same(&other));
        assert_eq!(kept, !service.key.host.matches("e4.com"));
    }
    // One that goes from the middle: the last cluster takes its place.
    let gone = entry(2, 80);
    let last = compiler.update([(gone.id.clone(), None)], &options, false);
    whole(&last);
    assert_eq!(last.clusters.len(), 9);
    let kept = |s: &&Arc<_>| after.services.iter().any(|other| Arc::ptr_eq(other, s));
    assert_eq!(last.services.iter().filter(kept).count(), 8);
}
