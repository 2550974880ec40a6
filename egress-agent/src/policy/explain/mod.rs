//! What a snapshot decides for a destination, and why.
//!
//! [`query`] reads the question, [`find`] the service that it is about,
//! [`traffic`] says which route applies by what the application speaks,
//! [`cluster`] under which settings it leaves, and [`text`] writes the
//! [`report`] for people. What only a running agent knows comes in through
//! [`LiveView`]; [`AsWritten`] knows nothing of it.

mod cluster;
mod find;
mod limits;
pub mod query;
pub mod report;
pub mod text;
mod traffic;
mod words;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use crate::policy::model::{Protocol, Visibility};
use crate::policy::snapshot::{self, OnAgentFailure, Snapshot};
use find::Found;
pub use query::{From, Query, QueryError, Target};
pub use report::{Explanation, Route};

/// What only a running agent knows.
pub trait LiveView {
    /// Endpoints of a cluster with their health; `None`: not known, and those
    /// that are written are shown.
    fn endpoints(&self, cluster: &snapshot::Cluster) -> Option<Vec<LiveEndpoint>>;

    /// Virtual addresses of a host.
    fn virtual_addresses(&self, _host: &str) -> Vec<IpAddr> {
        Vec::new()
    }

    /// Whether unregistered destinations are refused; `None`: not known.
    fn registry_only(&self) -> Option<bool> {
        None
    }
}

/// An endpoint of a running agent.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LiveEndpoint {
    /// Address and port, or Unix socket.
    pub address: String,
    /// Name that it was resolved from.
    pub resolved_from: Option<String>,
    /// Weight.
    pub weight: u32,
    /// Locality.
    pub locality: String,
    /// `healthy`, `ejected`, `unhealthy` or `draining`.
    pub health: String,
    /// More on its health, such as until when it is ejected.
    pub detail: Option<String>,
    /// Open connections.
    pub connections: u64,
}

/// Without an agent: what is written is all that is known.
#[derive(Clone, Copy, Debug)]
pub struct AsWritten;

impl LiveView for AsWritten {
    fn endpoints(&self, _: &snapshot::Cluster) -> Option<Vec<LiveEndpoint>> {
        None
    }
}

/// What `snapshot` decides.
pub fn explain(snapshot: &Snapshot, query: &Query, live: &dyn LiveView) -> Explanation {
    let target = &query.target;
    let mut out = Explanation {
        target: target.text.to_string(),
        host: target.host.to_string(),
        port: target.port,
        caller: report::Caller {
            namespace: query.client.namespace.to_string(),
            labels: words::labels(&query.client.labels),
            name: query.caller.as_deref().map(str::to_owned),
        },
        ..Explanation::default()
    };
    let service = match find::find(snapshot, query) {
        Found::Service(service) => service,
        Found::Nothing(mut unregistered) => {
            unregistered.outcome = match live.registry_only() {
                Some(true) => "refused: only registered destinations may be reached",
                Some(false) => "passes on untouched",
                None => "passes on untouched, or is refused where the agent's `outbound` is registry-only",
            }
            .to_owned();
            out.unregistered = Some(unregistered);
            return out;
        }
    };
    out.registered = true;
    out.port = Some(service.key.port);
    out.service = Some(describe(service, query, live));
    out.documents.push(words::document(&service.entry));
    out.path = Some(path(service));
    out.lost = lost(snapshot, service, query);
    let Some(view) = service.view(&query.client) else {
        return out;
    };
    if let Some(document) = &view.virtual_service {
        out.documents.push(words::document(document));
    }
    let shown = traffic::describe(service, view, query);
    out.traffic = shown.traffic;
    out.clusters = shown
        .clusters
        .iter()
        .map(|cluster| cluster::describe(snapshot, cluster, query, live))
        .collect();
    for cluster in &out.clusters {
        if let Some(document) = &cluster.destination_rule
            && !out.documents.contains(document)
        {
            out.documents.push(document.clone());
        }
    }
    out.warnings = shown.warnings;
    if find::any_address(service) && !service.key.host.matches(&query.target.host) {
        out.warnings.push(format!(
            "{} itself is not registered: it is taken for {} since {} tells it apart by nothing but the port",
            query.target.host, service.key.host, service.entry
        ));
    }
    for cluster in &out.clusters {
        cluster::warnings(cluster, &mut out.warnings);
    }
    out
}

/// What the traffic of a query goes to, and the host that it asks for; `None`
/// where no service matches.
pub fn destinations(
    snapshot: &Snapshot,
    query: &Query,
) -> Option<(Arc<str>, Vec<Arc<snapshot::Cluster>>)> {
    let Found::Service(service) = find::find(snapshot, query) else {
        return None;
    };
    let view = service.view(&query.client)?;
    let shown = traffic::describe(service, view, query);
    let host = match service.key.host.exact() {
        Some(host) => Arc::clone(host),
        None => Arc::clone(&query.target.host),
    };
    Some((host, shown.clusters))
}

fn describe(service: &snapshot::Service, query: &Query, live: &dyn LiveView) -> report::Service {
    report::Service {
        namespace: service.key.namespace.to_string(),
        host: service.key.host.to_string(),
        port: service.key.port,
        port_name: service.port_name.to_string(),
        protocol: words::protocol(service.protocol).to_owned(),
        export_to: match &service.visibility {
            Visibility::All => vec!["*".to_owned()],
            Visibility::Namespaces(list) => list.iter().map(ToString::to_string).collect(),
        },
        recognized_by: recognized_by(service, query, live),
    }
}

/// Every route of a view in words, with its kind: `http`, `tls` or `tcp`.
pub fn routes_of(view: &snapshot::View) -> Vec<(&'static str, Route)> {
    traffic::routes_of(view)
}

/// How a connection is known to be meant for a service.
fn recognized_by(service: &snapshot::Service, query: &Query, live: &dyn LiveView) -> Vec<String> {
    let mut out: Vec<String> = service
        .addresses
        .iter()
        .map(|net| words::network(*net))
        .collect();
    if service.virtual_address {
        let name = service.key.host.exact().unwrap_or(&query.target.host);
        let known = live.virtual_addresses(name);
        if known.is_empty() {
            out.push("a virtual address that captured DNS gives its name".to_owned());
        }
        out.extend(known.iter().map(|ip| format!("virtual address {ip}")));
    } else if service.addresses.is_empty() {
        let port = service.key.port;
        out.push(if find::any_address(service) {
            format!("any address on port {port}")
        } else {
            "the name in the ClientHello or the Host header".to_owned()
        });
    }
    out
}

fn path(service: &snapshot::Service) -> report::Path {
    let (path, reason) = match &service.path {
        snapshot::Path::Direct(reason) if service.protocol == Protocol::Udp => ("refused", reason),
        snapshot::Path::Direct(reason) => ("direct", reason),
        snapshot::Path::Proxy(reason) => ("proxy", reason),
    };
    let (word, meaning) = match (path, service.on_agent_failure) {
        ("proxy", OnAgentFailure::Closed) => (
            "closed",
            "connect fails with ECONNREFUSED; connections that are open are cut",
        ),
        ("proxy", OnAgentFailure::Open) => (
            "open",
            "the kernel picks an endpoint, and nothing else of the policy acts",
        ),
        _ => ("", "nothing changes: the kernel needs no agent for it"),
    };
    report::Path {
        path: path.to_owned(),
        reason: reason.to_string(),
        on_agent_failure: word.to_owned(),
        while_agent_is_down: meaning.to_owned(),
    }
}

/// Documents that lost, as far as this caller is concerned.
fn lost(snapshot: &Snapshot, service: &snapshot::Service, query: &Query) -> Vec<report::Lost> {
    let mut out: Vec<report::Lost> = Vec::new();
    let list = snapshot.lost.get(&service.id).into_iter().flatten();
    // Where the caller's namespace gets something of its own, what is said of
    // all others does not hold for it.
    let view = service.view(&query.client);
    let namespace = view.and_then(|view| view.clients.namespace.as_ref());
    for lost in list.filter(|lost| lost.namespace.as_ref() == namespace) {
        let lost = report::Lost {
            document: words::document(&lost.document),
            reason: lost.reason.to_string(),
        };
        if !out.contains(&lost) {
            out.push(lost);
        }
    }
    for other in find::rivals(snapshot, service, query) {
        out.push(other);
    }
    out
}
