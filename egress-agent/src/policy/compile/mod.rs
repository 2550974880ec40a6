//! Documents → snapshot.
//!
//! [`services`] makes a service of each host and port; [`rules`] finds the
//! DestinationRule and [`virtual_services`] the VirtualService that a client
//! gets for it; [`clusters`] fills in the policy; [`views`] puts them together
//! for every kind of client, and [`path`] decides between kernel and agent.
//! Nothing here rejects a document: what does not fit another one is warned
//! about.

mod across;
mod clusters;
mod headers;
pub mod hosts;
mod ids;
mod path;
mod policy;
mod problems;
mod routes;
mod rules;
mod services;
mod tls;
mod views;
mod virtual_services;

#[cfg(test)]
mod matching_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Options;
use super::diagnostic::Diagnostic;
use super::document::{Document, Documents, Spec};
use super::model::{HostPattern, Visibility};
use super::schema::Text;
use super::snapshot::{Lost, Service, ServiceId, Snapshot};

pub use ids::Ids;
use problems::Problems;

/// Compiles the documents, all of which are valid. What comes with the
/// snapshot are warnings about documents that do not fit each other.
pub fn compile(
    ids: &mut Ids,
    documents: &Documents,
    options: &Options,
) -> (Snapshot, Vec<Diagnostic>) {
    let generation = ids.begin();
    let mut problems = Problems::default();
    let mut by_age: Vec<&Arc<Document>> = documents.list.iter().collect();
    by_age.sort_by(|a, b| a.by_age(b));

    let rules = rules::Rules::new(&by_age, options, &mut problems);
    let virtuals = virtual_services::VirtualServices::new(&by_age, options);
    let mut shells = services::shells(&by_age, ids, &mut problems);
    virtuals.add_services(&mut shells, ids, options);
    let mut compiler = views::Compiler::new(options, &rules, &virtuals, &shells, &mut problems);
    let mut services = Vec::with_capacity(shells.len());
    let mut lost: HashMap<ServiceId, Vec<Lost>> = HashMap::new();
    for index in 0..shells.len() {
        if let Some((service, losers)) = compiler.service(index) {
            if !losers.is_empty() {
                lost.insert(service.id, losers);
            }
            services.push(Arc::new(service));
        }
    }
    let clusters = compiler.into_clusters();
    across::check(&shells, &rules, &virtuals, options, &mut problems);
    ids.end();

    services.sort_by(|a, b| a.key.cmp(&b.key));
    let (by_host, wildcards) = index_hosts(&services);
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
    let snapshot = Snapshot {
        generation,
        by_id: services.iter().map(|s| (s.id, Arc::clone(s))).collect(),
        clusters,
        by_host,
        wildcards,
        secrets: secrets.collect(),
        lost,
        services,
    };
    (snapshot, problems.into_list())
}

type ByHost = HashMap<Arc<str>, Vec<Arc<Service>>>;
type Wildcards = Vec<(Arc<str>, Vec<Arc<Service>>)>;

fn index_hosts(services: &[Arc<Service>]) -> (ByHost, Wildcards) {
    let mut by_host = ByHost::new();
    let mut suffixes: BTreeMap<Arc<str>, Vec<Arc<Service>>> = BTreeMap::new();
    for service in services {
        match &service.key.host {
            HostPattern::Exact(name) => by_host.entry(Arc::clone(name)).or_default(),
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
