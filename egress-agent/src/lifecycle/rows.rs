//! Rows of the admin API, made of what the rooms tell.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::admin::{Query, view};
use crate::endpoint::{EndpointSet, EndpointState, EndpointStatus, Live};
use crate::policy::explain::{Route, routes_of};
use crate::policy::model::{DocumentRef, HostPattern, Protocol, Resolution, Visibility};
use crate::policy::snapshot::{Client, Path, Service, Snapshot};
use crate::secret::{CertificateSummary, SecretLabels, SecretStatus};

/// A service, as its own namespace sees it; `assigned` are its virtual
/// addresses.
pub(super) fn service(
    live: &Live,
    service: &Service,
    assigned: impl Iterator<Item = IpAddr>,
) -> view::Service {
    let owner = Client {
        namespace: Arc::clone(&service.key.namespace),
        labels: Arc::default(),
    };
    let own = service.view(&owner).or_else(|| service.views.last());
    let base = own.and_then(|view| live.sets.get(view.cluster.index));
    let states = base.map_or_else(Vec::new, |set| set.status().endpoints);
    let present: Vec<_> = states.iter().filter(|e| !is_leaving(e)).collect();
    let healthy = |e: &&&EndpointStatus| e.state == EndpointState::Healthy;
    let (path, reason) = match &service.path {
        Path::Direct(reason) => ("direct", reason),
        Path::Proxy(reason) => ("proxy", reason),
    };
    view::Service {
        namespace: service.key.namespace.to_string(),
        host: service.key.host.to_string(),
        port: service.key.port,
        port_name: service.port_name.to_string(),
        protocol: protocol(service.protocol).to_owned(),
        resolution: resolution(service.resolution).to_owned(),
        path: path.to_owned(),
        reason: reason.to_string(),
        addresses: assigned
            .map(|address| address.to_string())
            .chain(service.addresses.iter().map(ToString::to_string))
            .collect(),
        healthy: present.iter().filter(healthy).count(),
        endpoints: present.len(),
        connections: sets_of(live, service)
            .flat_map(|set| set.status().endpoints)
            .map(|e| open_connections(&e))
            .sum(),
        service_entry: document_name(&service.entry),
        destination_rule: own
            .and_then(|view| view.destination_rule.as_deref())
            .map(document_name),
        virtual_service: own
            .and_then(|view| view.virtual_service.as_deref())
            .map(document_name),
        export_to: match &service.visibility {
            Visibility::All => vec!["*".to_owned()],
            Visibility::Namespaces(names) => names.iter().map(ToString::to_string).collect(),
        },
    }
}

/// The sets of a service under every rule, its subsets included.
fn sets_of<'a>(live: &'a Live, service: &Service) -> impl Iterator<Item = &'a Arc<EndpointSet>> {
    let views = service.views.iter();
    let clusters = views.flat_map(|view| view.subsets.values().chain([&view.cluster]));
    let places: BTreeSet<usize> = clusters
        // A part of a wildcard host shares the sets of the whole.
        .filter(|cluster| cluster.key.service == service.key)
        .map(|cluster| cluster.index)
        .collect();
    places.into_iter().filter_map(|place| live.sets.get(place))
}

/// The endpoints of a set.
pub(super) fn endpoints(set: &EndpointSet) -> impl Iterator<Item = view::Endpoint> + use<> {
    let status = set.status();
    let (host, namespace, port) = (status.host, status.namespace, status.port);
    let subset = status.subset.unwrap_or_default();
    let http = set.cluster().target.protocol.is_http();
    status.endpoints.into_iter().map(move |endpoint| {
        let (health, reason) = health(&endpoint.state);
        let last = endpoint.last_failure.as_ref();
        view::Endpoint {
            namespace: namespace.to_string(),
            host: host.clone(),
            port,
            subset: subset.to_string(),
            name: endpoint.name.as_ref().map(ToString::to_string),
            weight: endpoint.weight,
            priority: endpoint
                .priority
                .and_then(|level| u32::try_from(level).ok())
                .unwrap_or_default(),
            health: health.to_owned(),
            reason,
            active: open_connections(&endpoint).max(endpoint.active_requests.into()),
            connections: open_connections(&endpoint),
            requests: if http {
                endpoint.active_requests.into()
            } else {
                0
            },
            total: endpoint.picks,
            failed: endpoint.failures,
            ejections: endpoint.ejections,
            last_failure: last.map_or_else(String::new, |last| last.what.clone()),
            last_failure_seconds: last.map(|last| last.ms_ago / 1000),
            locality: endpoint.locality,
            address: endpoint.address,
        }
    })
}

/// The routes in force: of each service, those of its VirtualServices.
pub(super) fn routes(snapshot: &Snapshot, query: &Query) -> Vec<view::Route> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for service in &snapshot.services {
        if !chosen(query, &service.key.host, &service.key.namespace) {
            continue;
        }
        for view in &service.views {
            let Some(document) = &view.virtual_service else {
                continue;
            };
            let (host, port) = (service.key.host.to_string(), service.key.port);
            for (kind, route) in routes_of(view) {
                let row = view::Route {
                    host: host.clone(),
                    port,
                    clients: view
                        .clients
                        .namespace
                        .as_ref()
                        .map_or_else(|| "*".to_owned(), ToString::to_string),
                    virtual_service: document_name(document),
                    kind: kind.to_owned(),
                    number: route.number,
                    action: action(&route),
                    name: route.name,
                    matches: route.matches,
                };
                let words = format!("{row:?}");
                if seen.insert(words) {
                    out.push(row);
                }
            }
        }
    }
    out
}

/// Where a route leads, and what it does that is not usual.
fn action(route: &Route) -> String {
    let mut parts = Vec::new();
    if let Some(answer) = &route.answer {
        parts.push(answer.clone());
    }
    let several = route.destinations.len() > 1;
    let to = route.destinations.iter().map(|to| {
        let missing = if to.missing { " (missing: 503 NC)" } else { "" };
        if several {
            format!("{}% {}{missing}", to.percent, to.cluster)
        } else {
            format!("{}{missing}", to.cluster)
        }
    });
    let to: Vec<String> = to.collect();
    if !to.is_empty() {
        parts.push(format!("to {}", to.join(", ")));
    }
    let unusual = route.actions.iter().filter(|setting| !setting.default);
    parts.extend(unusual.map(|setting| format!("{}: {}", setting.field, setting.value)));
    parts.join("; ")
}

pub(super) fn is_direct(service: &Service) -> bool {
    matches!(service.path, Path::Direct(_))
}

/// Whether `host` and `namespace` of a query choose this service: the host as
/// it is written, or a name under it.
pub(super) fn chosen(query: &Query, host: &HostPattern, namespace: &str) -> bool {
    query
        .get("namespace")
        .is_none_or(|wanted| wanted == namespace)
        && query.get("host").is_none_or(|wanted| {
            let wanted = wanted.to_ascii_lowercase();
            host.to_string() == wanted || host.matches(&wanted)
        })
}

pub(super) fn open_connections(endpoint: &EndpointStatus) -> u64 {
    u64::from(endpoint.active_connections) + u64::from(endpoint.direct_connections)
}

fn is_leaving(endpoint: &EndpointStatus) -> bool {
    matches!(
        endpoint.state,
        EndpointState::Draining { .. } | EndpointState::Gone
    )
}

/// The word for a state, and the story behind it.
pub(super) fn health(state: &EndpointState) -> (&'static str, String) {
    match state {
        EndpointState::Healthy => ("healthy", String::new()),
        EndpointState::Ejected {
            reason,
            times,
            until,
            ..
        } => {
            let again = match times {
                0 | 1 => String::new(),
                n => format!(", {n} times in a row"),
            };
            ("ejected", format!("{reason} until {until}{again}"))
        }
        EndpointState::Unhealthy { reason } => ("unhealthy", reason.clone()),
        EndpointState::Draining { until, .. } => (
            "draining",
            format!("no longer in DNS; its connections are closed at {until}"),
        ),
        EndpointState::Gone => (
            "draining",
            "no longer in DNS; its connections go on until they end".to_owned(),
        ),
    }
}

/// As `ports[].protocol` is written.
const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Https => "HTTPS",
        Protocol::Http2 => "HTTP2",
        Protocol::Grpc => "GRPC",
        Protocol::GrpcWeb => "GRPC-WEB",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Mongo => "MONGO",
        Protocol::Mysql => "MYSQL",
        Protocol::Redis => "REDIS",
        Protocol::Udp => "UDP",
        Protocol::Unset => "",
    }
}

/// As `resolution` is written.
const fn resolution(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::None => "NONE",
        Resolution::Static => "STATIC",
        Resolution::Dns => "DNS",
        Resolution::DnsRoundRobin => "DNS_ROUND_ROBIN",
        Resolution::DynamicDns => "DYNAMIC_DNS",
    }
}

fn document_name(document: &DocumentRef) -> view::DocumentName {
    view::DocumentName {
        kind: document.kind.to_owned(),
        namespace: document.namespace.to_string(),
        name: document.name.to_string(),
    }
}

pub(super) fn names_same(labels: &SecretLabels, status: &SecretStatus) -> bool {
    (&labels.name, labels.mode, &labels.trust) == (&status.name, status.mode, &status.trust)
}

/// One row for each certificate; one without where there is none to show.
pub(super) fn secret_rows(status: &SecretStatus, used_by: &[String], list: &mut Vec<view::Secret>) {
    let credential = |name: &str| format!("{}/{name}", status.namespace);
    let row = |kind: &str, name: String, certificate: Option<&CertificateSummary>| view::Secret {
        kind: kind.to_owned(),
        source: match name.as_str() {
            file if file.starts_with('/') => file.to_owned(),
            _ => status.trust.clone(),
        },
        name,
        state: status.state.to_owned(),
        subject: certificate.map_or_else(String::new, |c| c.subject.clone()),
        issuer: certificate.map_or_else(String::new, |c| c.issuer.clone()),
        days_left: certificate.map(|c| c.days_left(jiff::Timestamp::now())),
        version: status.version,
        warnings: status.warnings.clone(),
        alternative_names: certificate.map_or_else(Vec::new, |c| c.names.clone()),
        not_before: certificate.map_or_else(String::new, |c| c.not_before.to_string()),
        not_after: certificate.map_or_else(String::new, |c| c.not_after.to_string()),
        serial: certificate.map_or_else(String::new, |c| c.serial.clone()),
        used_by: used_by.to_vec(),
        error: status.error.clone(),
    };
    let before = list.len();
    // One that cannot be read has its row too, with the reason.
    if status.mode != "SIMPLE" {
        let name = match status.name.as_str() {
            file if file.starts_with('/') => file.to_owned(),
            name if status.mode == "ISTIO_MUTUAL" => name.to_owned(),
            name => credential(name),
        };
        list.push(row("certificate", name, status.certificate.as_ref()));
    }
    let trust = match status.trust.strip_prefix("credential ") {
        Some(name) => credential(name),
        None => status.trust.clone(),
    };
    for authority in &status.authorities {
        list.push(row("ca", trust.clone(), Some(authority)));
    }
    if list.len() == before {
        list.push(row("ca", trust, None));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::endpoint::{Options as SetOptions, Registry};
    use crate::policy::Options;
    use crate::policy::compile::{Ids, compile};
    use crate::policy::load::load_text;

    const POLICY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec:
  hosts: [api.example.com]
  addresses: [192.0.2.7]
  resolution: STATIC
  exportTo: [., web]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 5432, name: db, protocol: TCP}]
  endpoints: [{address: 192.0.2.1, labels: {v: a}}, {address: 192.0.2.2, weight: 3}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api, namespace: shop}
spec:
  host: api.example.com
  subsets: [{name: a, labels: {v: a}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api, namespace: shop}
spec:
  hosts: [api.example.com]
  http:
  - name: old
    match: [{uri: {prefix: /v1}}]
    redirect: {uri: /v2, redirectCode: 308}
  - route:
    - {destination: {host: api.example.com, subset: a}, weight: 1}
    - {destination: {host: nowhere.example.com}, weight: 3}
    timeout: 3s
  tcp:
  - route: [{destination: {host: api.example.com}}]
";

    fn live() -> Arc<Live> {
        let options = Options::default();
        let loaded = load_text("f", POLICY, &options);
        assert!(loaded.is_valid(), "{:?}", loaded.diagnostics);
        let (snapshot, _) = compile(&mut Ids::default(), &loaded.documents, &options);
        Registry::new(SetOptions::default()).apply(Arc::new(snapshot))
    }

    #[tokio::test]
    async fn a_service_is_told_as_its_own_namespace_sees_it() {
        let live = live();
        let http = &live.snapshot.services[0];
        let row = service(&live, http, std::iter::once("240.240.0.9".parse().unwrap()));
        assert_eq!((row.host.as_str(), row.port), ("api.example.com", 80));
        assert_eq!(
            (row.namespace.as_str(), row.port_name.as_str()),
            ("shop", "http")
        );
        assert_eq!(
            (row.protocol.as_str(), row.resolution.as_str()),
            ("HTTP", "STATIC")
        );
        assert_eq!(row.addresses, ["240.240.0.9", "192.0.2.7/32"]);
        assert_eq!((row.healthy, row.endpoints, row.connections), (2, 2, 0));
        assert_eq!((row.path.as_str(), row.reason.is_empty()), ("proxy", false));
        assert_eq!(row.service_entry.kind, "ServiceEntry");
        assert_eq!(row.destination_rule.unwrap().name, "api");
        assert_eq!(row.virtual_service.unwrap().name, "api");
        assert_eq!(row.export_to, ["shop", "web"]);
    }

    #[tokio::test]
    async fn the_sets_of_a_service_are_its_own_and_its_subsets() {
        let live = live();
        for service in &live.snapshot.services {
            let subsets: Vec<_> = sets_of(&live, service)
                .map(|set| (set.key().service.port, set.key().subset.to_string()))
                .collect();
            let port = service.key.port;
            assert_eq!(subsets.len(), 2, "{subsets:?}");
            assert!(subsets.contains(&(port, String::new())));
            assert!(subsets.contains(&(port, "a".to_owned())));
        }
    }

    #[tokio::test]
    async fn endpoints_are_told_with_their_weight_and_health() {
        let live = live();
        let set = &live.sets[live.snapshot.services[0].views[0].cluster.index];
        let rows: Vec<_> = endpoints(set).collect();
        assert_eq!(rows.len(), 2);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.address.as_str(), row.weight, row.health.as_str()))
            .collect();
        assert!(told.contains(&("192.0.2.1:80", 1, "healthy")), "{told:?}");
        assert!(told.contains(&("192.0.2.2:80", 3, "healthy")), "{told:?}");
    }

    #[tokio::test]
    async fn routes_are_told_in_words_and_chosen_by_host() {
        let live = live();
        let all = routes(&live.snapshot, &Query::parse(""));
        let told: Vec<_> = all
            .iter()
            .map(|row| (row.port, row.kind.as_str(), row.number, row.name.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (80, "http", 1, "old"),
                (80, "http", 2, ""),
                (5432, "tcp", 1, "")
            ]
        );
        assert_eq!(all[0].matches, ["path starts with /v1"]);
        assert_eq!(all[0].action, "redirect 308");
        assert!(all[1].matches.is_empty());
        let action = &all[1].action;
        for part in [
            "25% api.example.com:80 subset a",
            "75% ",
            "missing: 503 NC",
            "timeout: 3s",
        ] {
            assert!(action.contains(part), "{part} is not in {action}");
        }
        assert_eq!(all[2].action, "to api.example.com:5432");
        assert_eq!(all[2].virtual_service.name, "api");
        let none = routes(&live.snapshot, &Query::parse("host=other.example.com"));
        assert!(none.is_empty());
        let named = routes(
            &live.snapshot,
            &Query::parse("host=API.example.com&namespace=shop"),
        );
        assert_eq!(named.len(), 3);
    }

    #[test]
    fn a_query_chooses_by_host_or_by_a_name_under_it() {
        let host = HostPattern::Suffix(".example.com".into());
        for (query, fits) in [
            ("", true),
            ("host=*.example.com", true),
            ("host=a.EXAMPLE.com", true),
            ("host=example.com", false),
            ("namespace=shop", true),
            ("namespace=other&host=a.example.com", false),
        ] {
            assert_eq!(chosen(&Query::parse(query), &host, "shop"), fits, "{query}");
        }
    }

    #[test]
    fn states_have_a_word_and_a_story() {
        assert_eq!(health(&EndpointState::Healthy), ("healthy", String::new()));
        let (word, story) = health(&EndpointState::Gone);
        assert_eq!(word, "draining");
        assert!(story.contains("no longer in DNS"));
        let (word, story) = health(&EndpointState::Unhealthy {
            reason: "timeout".into(),
        });
        assert_eq!((word, story.as_str()), ("unhealthy", "timeout"));
    }
}
