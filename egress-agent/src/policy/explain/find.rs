//! The service that a destination is, or what may have been meant.

use std::net::IpAddr;
use std::sync::Arc;

use super::query::Query;
use super::report::{Lost, Unregistered};
use super::words;
use crate::policy::model::{Protocol, Resolution, Visibility};
use crate::policy::schema::reader::nearest;
use crate::policy::snapshot::{Service, Snapshot};

/// What was found.
pub(super) enum Found<'s> {
    /// This.
    Service(&'s Arc<Service>),
    /// No service; the outcome is still to be filled in.
    Nothing(Unregistered),
}

/// Names that are proposed at most.
const SUGGESTIONS: usize = 8;

pub(super) fn find<'s>(snapshot: &'s Snapshot, query: &'s Query) -> Found<'s> {
    let target = &query.target;
    let namespace = &query.client.namespace;
    if let Some(ip) = target.ip() {
        return by_address(snapshot, query, ip);
    }
    let named: Vec<&Arc<Service>> = snapshot.services_of(&target.host, namespace).collect();
    match (target.port, named.as_slice()) {
        (Some(port), named) => {
            if let Some(service) = named.iter().find(|service| service.key.port == port) {
                return Found::Service(service);
            }
            if let Some(service) = whole_port(snapshot, namespace, port) {
                return Found::Service(service);
            }
        }
        (None, [only]) => return Found::Service(only),
        (None, []) => {}
        (None, _) => {
            return nothing(
                format!("{} has several ports, and none is named", target.host),
                ports(&named),
            );
        }
    }
    if named.is_empty() {
        unknown_name(snapshot, query)
    } else {
        let port = target.port.unwrap_or_default();
        nothing(
            format!("{} is registered, but not for port {port}", target.host),
            ports(&named),
        )
    }
}

fn nothing<'s>(reason: String, suggestions: Vec<String>) -> Found<'s> {
    Found::Nothing(Unregistered {
        reason,
        outcome: String::new(),
        suggestions,
    })
}

fn ports(services: &[&Arc<Service>]) -> Vec<String> {
    services.iter().map(|service| entry(service)).collect()
}

fn entry(service: &Service) -> String {
    format!(
        "{}:{} ({}, {}:{})",
        service.key.host, service.key.port, service.entry, service.entry.source, service.entry.line
    )
}

/// A name that nothing registers for this caller.
fn unknown_name<'s>(snapshot: &Snapshot, query: &Query) -> Found<'s> {
    let host = &query.target.host;
    let namespace = &query.client.namespace;
    let hidden: Vec<&Arc<Service>> = snapshot
        .services
        .iter()
        .filter(|service| service.key.host.matches(host))
        .collect();
    if let [first, ..] = hidden.as_slice() {
        let reason = match &first.visibility {
            Visibility::Namespaces(list) if !list.is_empty() => {
                let list: Vec<&str> = list.iter().map(|name| &**name).collect();
                format!(
                    "{host} is registered by {}, whose exportTo names {} and not {namespace}",
                    first.entry,
                    list.join(", ")
                )
            }
            _ => format!(
                "{host} is registered by {}, which is exported to nobody",
                first.entry
            ),
        };
        return nothing(reason, ports(&hidden));
    }
    let visible = |list: &[Arc<Service>]| list.iter().any(|s| s.visibility.includes(namespace));
    let names = snapshot
        .by_host
        .iter()
        .filter(|(_, list)| visible(list))
        .map(|(name, _)| &**name);
    let near = nearest(host, names);
    let services = near
        .and_then(|name| snapshot.by_host.get(name))
        .into_iter()
        .flatten();
    let mut suggestions: Vec<String> = services.map(|service| entry(service)).collect();
    suggestions.truncate(SUGGESTIONS);
    nothing(format!("no ServiceEntry registers {host}"), suggestions)
}

/// Whether a service takes any address on its port: nothing but the port tells
/// it apart, and its protocol names no host.
pub(super) fn any_address(service: &Service) -> bool {
    service.resolution == Resolution::None
        && service.addresses.is_empty()
        && !service.protocol.is_http()
        && !service.protocol.is_tls()
}

fn whole_port<'s>(snapshot: &'s Snapshot, namespace: &str, port: u16) -> Option<&'s Arc<Service>> {
    snapshot
        .services
        .iter()
        .filter(|service| service.key.port == port && service.visibility.includes(namespace))
        .filter(|service| any_address(service))
        // The own namespace's stands before that of others.
        .min_by_key(|service| *service.key.namespace != *namespace)
}

fn by_address<'s>(snapshot: &'s Snapshot, query: &'s Query, ip: IpAddr) -> Found<'s> {
    let namespace = &query.client.namespace;
    let covering = |service: &Service| {
        let named = service.key.host.exact().and_then(|name| name.parse().ok()) == Some(ip);
        let bits = service.addresses.iter().filter(|net| net.contains(&ip));
        let bits = bits.map(|net| u32::from(net.prefix_len()) + 1).max();
        bits.or(named.then_some(129))
    };
    let visible = || {
        let list = snapshot.services.iter();
        list.filter(|service| service.visibility.includes(namespace))
    };
    let all: Vec<(u32, &Arc<Service>)> = visible()
        .filter_map(|service| Some((covering(service)?, service)))
        .collect();
    let Some(port) = query.target.port else {
        if let [(_, only)] = all.as_slice() {
            return Found::Service(only);
        }
        let list: Vec<&Arc<Service>> = all.iter().map(|(_, service)| *service).collect();
        let reason = if list.is_empty() {
            format!("no ServiceEntry has {ip} among its addresses")
        } else {
            format!("{ip} has several ports, and none is named")
        };
        return nothing(reason, ports(&list));
    };
    let own = |service: &Service| *service.key.namespace == **namespace;
    let best = all
        .iter()
        .filter(|(_, service)| service.key.port == port)
        // The longer prefix wins; then the own namespace.
        .max_by_key(|(bits, service)| (*bits, own(service)));
    if let Some((_, service)) = best {
        return Found::Service(service);
    }
    if let Some(service) = whole_port(snapshot, namespace, port) {
        return Found::Service(service);
    }
    let mut suggestions: Vec<String> = all.iter().map(|(_, service)| entry(service)).collect();
    let written = visible().filter(|service| {
        let at = format!("{ip}");
        let has = |e: &crate::policy::model::EndpointSpec| words::address(e).starts_with(&at);
        service.resolution != Resolution::None && service.endpoints.iter().any(has)
    });
    suggestions
        .extend(written.map(|service| format!("{}, which has it as an endpoint", entry(service))));
    suggestions.truncate(SUGGESTIONS);
    nothing(
        format!("no ServiceEntry has {ip} among its addresses for port {port}"),
        suggestions,
    )
}

/// Other entries that claim what `service` got.
pub(super) fn rivals(snapshot: &Snapshot, service: &Service, query: &Query) -> Vec<Lost> {
    let namespace = &query.client.namespace;
    let host = &query.target.host;
    let exact = service.key.host.exact().is_some();
    snapshot
        .services
        .iter()
        .filter(|other| other.id != service.id && other.key.port == service.key.port)
        .filter(|other| query.target.ip().is_none() && other.key.host.matches(host))
        .filter(|other| other.entry != service.entry)
        .filter(|other| other.protocol != Protocol::Udp)
        .map(|other| Lost {
            document: words::document(&other.entry),
            reason: if !other.visibility.includes(namespace) {
                format!("its exportTo does not name {namespace}")
            } else if other.key.host.exact().is_none() && exact {
                format!(
                    "its host {} is a wildcard, and an exact host goes first",
                    other.key.host
                )
            } else if other.key.host == service.key.host {
                if *service.key.namespace == **namespace {
                    format!("{} is of the caller's own namespace", service.entry)
                } else {
                    format!("{} goes before it", service.entry)
                }
            } else {
                format!(
                    "its host {} is wider than {}",
                    other.key.host, service.key.host
                )
            },
        })
        .collect()
}
