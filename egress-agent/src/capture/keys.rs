//! From a snapshot to the entries of the kernel's service maps: a pure
//! function, so that a change of policy or of an address is the difference of
//! two plans.
//!
//! Precedence where several services want one key: what `addresses` or a
//! virtual address says goes before an address that was merely resolved; among
//! equals the first service in the snapshot's order has it. An address that
//! several services resolve to goes to the agent, where Host or SNI tells; if
//! none of them speaks a protocol that tells, it is left alone.

mod planner;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use planner::{Changed, PlanChanges, Planner};

use super::{MapKey, address};
use crate::numbers::{Fingerprint, Known, fingerprint};
use crate::policy::model::{Protocol, Resolution, Visibility};
use crate::policy::snapshot::{OnAgentFailure, Path, Service, Snapshot};
use egress_common::{
    Address, ENTRY_NAME_DECIDES, ENTRY_REAL_ADDRESS, ExactKey, FAILURE_CLOSED, FAILURE_OPEN,
    NetworkKey, NetworkPrefix, SCOPE_ALL, ServiceValue, VERDICT_DIRECT, VERDICT_PROXY,
    VERDICT_REFUSE,
};

/// What the kernel's service maps should hold.
pub type Plan = HashMap<MapKey, ServiceValue>;

/// Numbers of namespaces, as the kernel knows them. A number is never given to
/// another namespace, by this agent or one that goes on with its numbers.
#[derive(Debug, Default)]
pub struct Scopes {
    numbers: HashMap<Arc<str>, u32>,
    known: Known,
    last: u32,
    names: ScopeNames,
}

/// The namespaces behind scope numbers, for any thread.
#[derive(Clone, Debug, Default)]
pub struct ScopeNames(Arc<ArcSwap<HashMap<u32, Arc<str>>>>);

impl ScopeNames {
    /// The namespace with this number.
    pub fn get(&self, number: u32) -> Option<Arc<str>> {
        self.0.load().get(&number).cloned()
    }
}

impl Scopes {
    /// Goes on with the numbers that an agent before gave out.
    pub fn go_on_with(known: Known) -> Self {
        Self {
            numbers: HashMap::new(),
            last: known.last(),
            known,
            names: ScopeNames::default(),
        }
    }

    /// The number of a namespace, from 1 up.
    pub fn number(&mut self, namespace: &Arc<str>) -> u32 {
        if let Some(number) = self.numbers.get(namespace) {
            return *number;
        }
        let known = self.known.get(&fingerprint(&[namespace.as_bytes()]));
        let number = known.unwrap_or_else(|| {
            self.last = self.last.saturating_add(1);
            self.last
        });
        self.numbers.insert(namespace.clone(), number);
        let mut names = HashMap::clone(&self.names.0.load());
        names.insert(number, namespace.clone());
        self.names.0.store(Arc::new(names));
        number
    }

    /// All numbers given out by this agent.
    pub fn all(&self) -> Vec<(Fingerprint, u32)> {
        let all = self.numbers.iter();
        all.map(|(name, number)| (fingerprint(&[name.as_bytes()]), *number))
            .collect()
    }

    /// How many namespaces have a number.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The way back from numbers to names.
    pub fn names(&self) -> ScopeNames {
        self.names.clone()
    }
}

/// What a plan needs to know about addresses.
pub trait AddressBook {
    /// The virtual addresses of a host, and of every name below a wildcard
    /// host that was asked for.
    fn virtual_addresses(&self, service: &Service) -> Vec<(Ipv4Addr, Ipv6Addr)>;
    /// The addresses that the host of a service resolves to at present.
    fn resolved(&self, service: &Service) -> Arc<[IpAddr]>;
}

/// Everything that the kernel's service maps should hold for `snapshot`.
pub fn plan(snapshot: &Snapshot, scopes: &mut Scopes, book: &impl AddressBook) -> Plan {
    let mut plan = Plan::with_capacity(snapshot.services.len() * 2);
    for service in &snapshot.services {
        let scopes = scopes_of(service, scopes);
        for &scope in &scopes {
            for key in declared(service, scope, book) {
                let value = value(service, key);
                plan.entry(key).or_insert(value);
            }
        }
    }
    for (key, claims) in resolved(snapshot, scopes, book) {
        // A declared address always has precedence.
        if let Entry::Vacant(vacant) = plan.entry(key)
            && let Some(value) = settle(&claims, key)
        {
            vacant.insert(value);
        }
    }
    plan
}

/// Entries of one name below a wildcard host, whose virtual addresses were just
/// given out; `services` are those that it may belong to, the most specific
/// host first.
pub fn derived(
    services: &[Arc<Service>],
    scopes: &mut Scopes,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
) -> Plan {
    let mut plan = Plan::new();
    for service in services {
        for &scope in &scopes_of(service, scopes) {
            for ip in [v4.into(), v6.into()] {
                let key = exact(scope, service.key.port, ip);
                plan.entry(key).or_insert_with(|| value(service, key));
            }
        }
    }
    plan
}

/// The services that resolve to each address, in the snapshot's order.
fn resolved<'a>(
    snapshot: &'a Snapshot,
    scopes: &mut Scopes,
    book: &impl AddressBook,
) -> HashMap<MapKey, Vec<&'a Service>> {
    let mut claims: HashMap<MapKey, Vec<&Service>> = HashMap::new();
    for service in &snapshot.services {
        let addresses = book.resolved(service);
        for &scope in &scopes_of(service, scopes) {
            for ip in &*addresses {
                claims
                    .entry(exact(scope, service.key.port, *ip))
                    .or_default()
                    .push(service);
            }
        }
    }
    claims
}

/// Whose an address is that was merely resolved. One that speaks a protocol
/// which names its host: the agent looks at the name, since any other name may
/// live at the same address. A single service that does not: its own. Several
/// of those: nobody's.
fn settle(claims: &[&Service], key: MapKey) -> Option<ServiceValue> {
    let mut value = match (claims.iter().find(|service| tells(service)), claims) {
        (Some(service), _) => ServiceValue {
            verdict: VERDICT_PROXY,
            flags: ENTRY_NAME_DECIDES,
            ..value(service, key)
        },
        (None, [service]) => value(service, key),
        (None, _) => return None,
    };
    value.flags |= ENTRY_REAL_ADDRESS;
    Some(value)
}

/// Whether a connection to the service carries the name of its host.
const fn tells(service: &Service) -> bool {
    service.protocol.client_speaks_first()
}

fn scopes_of(service: &Service, scopes: &mut Scopes) -> Vec<u32> {
    match &service.visibility {
        // In its own namespace too, so that it goes before an entry of another
        // namespace that is exported to all.
        Visibility::All => vec![scopes.number(&service.key.namespace), SCOPE_ALL],
        Visibility::Namespaces(names) => names.iter().map(|name| scopes.number(name)).collect(),
    }
}

/// Keys that the policy itself gives a service.
fn declared(service: &Service, scope: u32, book: &impl AddressBook) -> Vec<MapKey> {
    let port = service.key.port;
    let mut keys = Vec::new();
    for (v4, v6) in book.virtual_addresses(service) {
        keys.push(exact(scope, port, v4.into()));
        keys.push(exact(scope, port, v6.into()));
    }
    for net in &service.addresses {
        if net.prefix_len() == net.max_prefix_len() {
            keys.push(exact(scope, port, net.addr()));
        } else {
            let mapped = if net.network().is_ipv4() { 96 } else { 0 };
            let bits = mapped + u32::from(net.prefix_len());
            keys.push(network(scope, port, address(net.network()), bits));
        }
    }
    if service.resolution == Resolution::None && service.addresses.is_empty() {
        keys.push(network(scope, port, [0; 16], 0));
    }
    keys
}

fn exact(scope: u32, port: u16, ip: IpAddr) -> MapKey {
    MapKey::Exact(ExactKey {
        scope,
        port,
        reserved: 0,
        address: address(ip),
    })
}

/// `bits` of the address count.
const fn network(scope: u32, port: u16, address: Address, bits: u32) -> MapKey {
    MapKey::Network(NetworkPrefix {
        bits: NetworkKey::FIXED_BITS + bits,
        data: NetworkKey {
            scope: scope.to_be_bytes(),
            port: port.to_be_bytes(),
            reserved: [0; 2],
            address,
        },
    })
}

fn value(service: &Service, key: MapKey) -> ServiceValue {
    let bits = match key {
        MapKey::Exact(_) => 128,
        MapKey::Network(prefix) => prefix.bits - NetworkKey::FIXED_BITS,
    };
    let whole_port = bits == 0;
    ServiceValue {
        service: service.id.0,
        verdict: match (&service.path, service.protocol) {
            (_, Protocol::Udp) => VERDICT_REFUSE,
            (Path::Direct(_), _) => VERDICT_DIRECT,
            (Path::Proxy(_), _) => VERDICT_PROXY,
        },
        on_failure: match service.on_agent_failure {
            OnAgentFailure::Closed => FAILURE_CLOSED,
            OnAgentFailure::Open => FAILURE_OPEN,
        },
        specificity: u8::try_from(bits).unwrap_or(128),
        // A whole port belongs to every host on it; a protocol that names its
        // host must name this one.
        flags: if whole_port && tells(service) {
            ENTRY_NAME_DECIDES
        } else {
            0
        },
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
