//! Documents → snapshot.
//!
//! [`services`] makes a service of each host and port; [`rules`] finds the
//! DestinationRule and [`virtual_services`] the VirtualService that a client
//! gets for it; [`clusters`] fills in the policy; [`views`] puts them together
//! for every kind of client, and [`path`] decides between kernel and agent.
//! Nothing here rejects a document: what does not fit another one is warned
//! about.

mod across;
mod bind;
mod clusters;
mod headers;
pub mod hosts;
mod ids;
mod incremental;
mod path;
mod policy;
mod problems;
mod related;
mod rivals;
mod routes;
mod rules;
mod services;
mod tls;
mod views;
mod virtual_services;

#[cfg(test)]
mod incremental_tests;
#[cfg(test)]
mod matching_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Options;
use super::diagnostic::Diagnostic;
use super::document::{Document, DocumentId, Documents, Spec};
use super::model::{HostPattern, Visibility};
use super::schema::Text;
use super::schema::secret::Secret;
use super::snapshot::{Cluster, Lost, Service, ServiceId, Snapshot};
use clusters::{Clusters, Policies, Slots};

pub use ids::Ids;
pub use incremental::Compiler;
use problems::Problems;

/// What came of some documents.
struct Part {
    services: Vec<Arc<Service>>,
    /// The document that each service comes from.
    origins: Vec<(DocumentId, ServiceId)>,
    clusters: Vec<Arc<Cluster>>,
    lost: LostMap,
    warnings: Vec<Diagnostic>,
}

type LostMap = HashMap<ServiceId, Vec<Lost>>;
type SecretMap = BTreeMap<(Arc<str>, Arc<str>), Arc<Secret>>;

/// Compiles the documents, all of which are valid. What comes with the
/// snapshot are warnings about documents that do not fit each other.
pub fn compile(
    ids: &mut Ids,
    documents: &Documents,
    options: &Options,
) -> (Snapshot, Vec<Diagnostic>) {
    let generation = ids.begin();
    let mut by_age: Vec<&Arc<Document>> = documents.list.iter().collect();
    by_age.sort_by(|a, b| a.by_age(b));
    let clusters = Clusters::new(Slots::default(), Policies::default());
    let (mut part, _) = build(ids, &by_age, options, clusters);
    ids.end();

    part.services.sort_by(|a, b| a.key.cmp(&b.key));
    let (by_host, wildcards) = index_hosts(&part.services);
    let secrets = by_age.iter().filter_map(|document| match &document.spec {
        Spec::Secret(secret) => {
            let key = (
                Arc::clone(&document.id.namespace),
                Arc::clone(&document.id.name),
            );
            Some((key, Arc::clone(secret)))
        }
        _ => None,
    });
    let services = part.services;
    let snapshot = Snapshot {
        generation,
        by_id: services.iter().map(|s| (s.id, Arc::clone(s))).collect(),
        clusters: part.clusters,
        by_host,
        wildcards,
        secrets: secrets.collect(),
        lost: part.lost,
        services,
    };
    (snapshot, part.warnings)
}

/// Compiles documents, which are ordered by age; nothing else acts on them.
fn build(
    ids: &mut Ids,
    by_age: &[&Arc<Document>],
    options: &Options,
    clusters: Clusters,
) -> (Part, Policies) {
    let mut problems = Problems::default();
    let rules = rules::Rules::new(by_age, options, &mut problems);
    let virtuals = virtual_services::VirtualServices::new(by_age, options);
    let mut shells = services::shells(by_age, ids, &mut problems);
    virtuals.add_services(&mut shells, ids, options);
    let mut compiler =
        views::Compiler::new(options, &rules, &virtuals, &shells, clusters, &mut problems);
    let mut services = Vec::with_capacity(shells.len());
    let mut origins = Vec::with_capacity(shells.len());
    let mut lost = LostMap::new();
    for (index, shell) in shells.iter().enumerate() {
        if let Some((service, losers)) = compiler.service(index) {
            if !losers.is_empty() {
                lost.insert(service.id, losers);
            }
            origins.push((shell.document.id.clone(), service.id));
            services.push(Arc::new(service));
        }
    }
    let Clusters {
        list: clusters,
        shared,
        ..
    } = compiler.into_clusters();
    across::check(&shells, &rules, &virtuals, options, &mut problems);
    let part = Part {
        services,
        origins,
        clusters,
        lost,
        warnings: problems.into_list(),
    };
    (part, shared)
}

type ByHost = HashMap<Arc<str>, Vec<Arc<Service>>>;
type Wildcards = Vec<(Arc<str>, Vec<Arc<Service>>)>;

fn index_hosts<'s>(services: impl IntoIterator<Item = &'s Arc<Service>>) -> (ByHost, Wildcards) {
    let mut by_host = ByHost::new();
    let mut suffixes: BTreeMap<Arc<str>, Vec<Arc<Service>>> = BTreeMap::new();
    for service in services {
        match &service.key.host {
            HostPattern::Exact(name) => {
                let list = by_host.entry(Arc::clone(name)).or_default();
                // Most hosts have one port.
                list.reserve_exact(1);
                list
            }
            HostPattern::Suffix(suffix) => suffixes.entry(Arc::clone(suffix)).or_default(),
        }
        .push(Arc::clone(service));
    }
    let mut wildcards: Wildcards = suffixes.into_iter().collect();
    wildcards.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    (by_host, wildcards)
}

/// `exportTo` with `.` resolved.
fn visibility(list: &[Text], own: &Arc<str>) -> Visibility {
    if list.is_empty() || list.iter().any(|entry| &***entry == "*") {
        return Visibility::All;
    }
    let names = list.iter().filter(|entry| &****entry != "~");
    Visibility::Namespaces(
        names
            .map(|entry| match &***entry {
                "." => Arc::clone(own),
                name => Arc::from(name),
            })
            .collect(),
    )
}
