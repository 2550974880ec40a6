//! ServiceEntries as services: each host on each port is one.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use ipnet::IpNet;

use super::hosts::pattern;
use super::ids::Ids;
use super::{Problems, visibility};
use crate::policy::check::names::{ip, subnet};
use crate::policy::check::service_entry::port_protocol;
use crate::policy::diagnostic::Span;
use crate::policy::document::{Document, Spec};
use crate::policy::model::{
    EndpointAddress, EndpointSpec, HostPattern, Locality, Resolution, Visibility,
};
use crate::policy::schema::Text;
use crate::policy::schema::service_entry::{self as shape, Port, ServiceEntry};
use crate::policy::snapshot::{ClusterTarget, OnAgentFailure, ServiceId, ServiceKey};

/// A service before its views are known.
#[derive(Debug)]
pub(super) struct Shell<'d> {
    pub(super) id: ServiceId,
    pub(super) key: ServiceKey,
    pub(super) document: &'d Arc<Document>,
    pub(super) port_name: Arc<str>,
    pub(super) addresses: Vec<IpNet>,
    pub(super) virtual_address: bool,
    /// `endpoints` as they are for this port, or the host itself.
    pub(super) endpoints: Arc<[EndpointSpec]>,
    pub(super) visibility: Visibility,
    pub(super) target: Arc<ClusterTarget>,
    pub(super) subject_alt_names: &'d [Text],
    /// Where the host is written.
    pub(super) span: Span,
    /// A part of a wildcard service that a VirtualService is about: its
    /// clusters are those of the service with this place.
    pub(super) part_of: Option<usize>,
    pub(super) on_agent_failure: OnAgentFailure,
}

/// The services of all ServiceEntries among `documents`, which are ordered by
/// age: the oldest has a host and port that several of a namespace claim.
pub(super) fn shells<'d>(
    documents: &[&'d Arc<Document>],
    ids: &mut Ids,
    problems: &mut Problems,
) -> Vec<Shell<'d>> {
    let mut out: Vec<Shell<'d>> = Vec::new();
    let mut claimed: HashMap<ServiceKey, usize> = HashMap::new();
    for &document in documents {
        let Spec::ServiceEntry(spec) = &document.spec else {
            continue;
        };
        if spec.ports.is_empty() {
            problems
                .warn(
                    "no-ports",
                    document,
                    spec.span,
                    "the ServiceEntry has no ports, so nothing reaches its hosts through it",
                )
                .help("add `ports`");
        }
        for host in &spec.hosts {
            let pattern = pattern(host);
            for port in &spec.ports {
                let Some(number) = port.number.and_then(|n| u16::try_from(n.value).ok()) else {
                    continue;
                };
                let key = ServiceKey {
                    namespace: Arc::clone(&document.id.namespace),
                    host: pattern.clone(),
                    port: number,
                };
                match claimed.entry(key) {
                    Slot::Occupied(slot) => {
                        let Some(first) = out.get(*slot.get()) else {
                            continue;
                        };
                        let message = format!(
                            "{host}:{number} is already registered by {}, which is older and has it",
                            first.document.id,
                            host = &***host,
                        );
                        problems
                            .warn("host-claimed", document, host.span, message)
                            .help("remove the host or the port from one of them")
                            .related(&first.document.source, first.span, "registered here");
                    }
                    Slot::Vacant(slot) => {
                        let key = slot.key().clone();
                        slot.insert(out.len());
                        let id = ids.number(&key);
                        out.push(shell(document, spec, host, port, key, id));
                    }
                }
            }
        }
    }
    out
}

fn shell<'d>(
    document: &'d Arc<Document>,
    spec: &'d ServiceEntry,
    host: &Text,
    port: &'d Port,
    key: ServiceKey,
    id: ServiceId,
) -> Shell<'d> {
    let protocol = port_protocol(port);
    let resolution = match spec.resolution() {
        shape::Resolution::None => Resolution::None,
        shape::Resolution::Static => Resolution::Static,
        shape::Resolution::Dns => Resolution::Dns,
        shape::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
        shape::Resolution::DynamicDns => Resolution::DynamicDns,
    };
    let target_port = port
        .target_port
        .and_then(|p| u16::try_from(p.value).ok())
        .unwrap_or(key.port);
    let allocates = document
        .labels
        .get("networking.istio.io/enable-autoallocate-ip")
        .is_none_or(|value| !value.eq_ignore_ascii_case("false"));
    Shell {
        id,
        document,
        port_name: port.name.as_ref().map_or("", |name| &***name).into(),
        addresses: spec
            .addresses
            .iter()
            .filter_map(|a| subnet(a).ok())
            .collect(),
        virtual_address: resolution != Resolution::None && spec.addresses.is_empty() && allocates,
        endpoints: endpoints(spec, &key.host, port, key.port, target_port, resolution).into(),
        visibility: visibility(&spec.export_to, &document.id.namespace),
        target: Arc::new(ClusterTarget {
            service: id,
            host: key.host.clone(),
            port: key.port,
            target_port,
            protocol,
            resolution,
            https_port: protocol.is_tls(),
        }),
        subject_alt_names: &spec.subject_alt_names,
        span: host.span,
        key,
        part_of: None,
        on_agent_failure: on_agent_failure(document),
    }
}

/// `egress-agent.dev/on-agent-failure` of a document.
pub(super) fn on_agent_failure(document: &Document) -> OnAgentFailure {
    document
        .annotation("on-agent-failure")
        .and_then(|(value, _)| crate::policy::schema::annotation::on_agent_failure(value).ok())
        .unwrap_or_default()
}

fn endpoints(
    spec: &ServiceEntry,
    host: &HostPattern,
    port: &Port,
    number: u16,
    target_port: u16,
    resolution: Resolution,
) -> Vec<EndpointSpec> {
    let written = spec.endpoints();
    let names = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    if written.is_empty() {
        // The host itself is looked up.
        return match host.exact() {
            Some(name) if names => vec![EndpointSpec {
                address: EndpointAddress::Name(Arc::clone(name)),
                port: target_port,
                weight: 1,
                locality: Locality::default(),
                labels: std::collections::BTreeMap::new(),
            }],
            _ => Vec::new(),
        };
    }
    if !names && resolution != Resolution::Static {
        return Vec::new();
    }
    let endpoint = |endpoint: &shape::Endpoint| {
        let address = endpoint.address.as_ref().map_or("", |address| &***address);
        let own = endpoint.ports.as_ref().and_then(|ports| {
            let named =
                |(name, _): &&(Text, _)| Some(&name.value) == port.name.as_ref().map(|n| &n.value);
            ports.iter().find(named)
        });
        let labels: std::collections::BTreeMap<Box<str>, Box<str>> = endpoint
            .labels
            .iter()
            .map(|(key, value)| (key.value.clone(), value.value.clone()))
            .collect();
        Some(EndpointSpec {
            address: match address.strip_prefix("unix://") {
                Some(path) => EndpointAddress::Unix(path.into()),
                None => match ip(address) {
                    Some(ip) => EndpointAddress::Ip(ip),
                    None if address.is_empty() => return None,
                    None => {
                        let name = address.strip_suffix('.').unwrap_or(address);
                        EndpointAddress::Name(name.to_ascii_lowercase().into())
                    }
                },
            },
            port: own
                .and_then(|(_, port)| u16::try_from(port.value).ok())
                .unwrap_or(if port.target_port.is_some() {
                    target_port
                } else {
                    number
                }),
            weight: endpoint.weight.map_or(1, |weight| weight.value.max(1)),
            locality: locality(endpoint),
            labels,
        })
    };
    written.iter().filter_map(endpoint).collect()
}

/// `locality`, or a label that stands for it, whose parts dots may separate.
fn locality(endpoint: &shape::Endpoint) -> Locality {
    if let Some(written) = endpoint.locality.as_ref().filter(|text| !text.is_empty()) {
        return Locality::parse(written);
    }
    let label = |name: &str| endpoint.labels.iter().find(|(key, _)| &***key == name);
    match label("topology.istio.io/locality").or_else(|| label("istio-locality")) {
        Some((_, value)) if value.contains('/') => Locality::parse(value),
        Some((_, value)) => Locality::parse(&value.replace('.', "/")),
        None => Locality::default(),
    }
}
