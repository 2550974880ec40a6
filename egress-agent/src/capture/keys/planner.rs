//! A plan that is kept, so that a change costs what it changes.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{AddressBook, Scopes, declared, exact, scopes_of, settle, value};
use crate::capture::MapKey;
use crate::policy::snapshot::{Service, ServiceId, Snapshot};
use egress_common::ServiceValue;

/// What may have changed since the last plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Services, and the addresses of those alone.
    Policy,
    /// Addresses of any service, too.
    Addresses,
}

/// Keys and what they should have; `None`: nothing.
pub type PlanChanges = Vec<(MapKey, Option<ServiceValue>)>;

/// Who claims which key. What the keys have follows from that, and is not kept
/// here.
#[derive(Debug, Default)]
pub struct Planner {
    snapshot: Arc<Snapshot>,
    addresses: HashMap<ServiceId, Addresses>,
    /// The service that claimed a key first.
    claims: HashMap<MapKey, Claim>,
    /// Those that claim it too. Nearly no key has any.
    others: HashMap<MapKey, Vec<Claim>>,
}

/// The addresses with which a service was planned.
#[derive(PartialEq, Eq, Debug)]
struct Addresses {
    assigned: Box<[(Ipv4Addr, Ipv6Addr)]>,
    resolved: Arc<[IpAddr]>,
}

/// A service that wants a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Claim {
    service: ServiceId,
    /// The policy says so; it was not merely resolved.
    declared: bool,
}

impl Planner {
    /// The snapshot of the last call.
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// What of [`plan`](super::plan) is not as it was after the last call, with
    /// some keys perhaps that are.
    pub fn update(
        &mut self,
        snapshot: &Arc<Snapshot>,
        scopes: &mut Scopes,
        book: &impl AddressBook,
        changed: Changed,
    ) -> PlanChanges {
        let mut touched: HashSet<MapKey> = HashSet::new();
        let before = std::mem::replace(&mut self.snapshot, Arc::clone(snapshot));
        let difference = snapshot.since(&before);
        for service in difference.gone {
            self.forget(service, scopes, &mut touched);
        }
        for service in difference.new {
            self.learn(service, found(service, book), scopes, &mut touched);
        }
        let mut look = |service: &Arc<Service>| {
            let addresses = found(service, book);
            if self.addresses.get(&service.id) != Some(&addresses) {
                self.forget(service, scopes, &mut touched);
                self.learn(service, addresses, scopes, &mut touched);
            }
        };
        match changed {
            Changed::Addresses => snapshot.services.iter().for_each(look),
            // Names below a wildcard host come and go by themselves.
            Changed::Policy => {
                let wild = snapshot.wildcards.iter().flat_map(|(_, list)| list);
                wild.for_each(&mut look);
            }
        }
        let values = touched.into_iter().map(|key| (key, self.value(key)));
        values.collect()
    }

    fn forget(&mut self, service: &Service, scopes: &mut Scopes, touched: &mut HashSet<MapKey>) {
        let Some(addresses) = self.addresses.remove(&service.id) else {
            return;
        };
        for (key, _) in keys(service, &addresses, scopes) {
            touched.insert(key);
            let mut others = self.others.remove(&key).unwrap_or_default();
            others.retain(|claim| claim.service != service.id);
            if let Entry::Occupied(mut first) = self.claims.entry(key)
                && first.get().service == service.id
            {
                if others.is_empty() {
                    first.remove();
                } else {
                    first.insert(others.remove(0));
                }
            }
            if !others.is_empty() {
                self.others.insert(key, others);
            }
        }
    }

    fn learn(
        &mut self,
        service: &Service,
        addresses: Addresses,
        scopes: &mut Scopes,
        touched: &mut HashSet<MapKey>,
    ) {
        for (key, declared) in keys(service, &addresses, scopes) {
            touched.insert(key);
            let claim = Claim {
                service: service.id,
                declared,
            };
            match self.claims.entry(key) {
                Entry::Vacant(free) => {
                    free.insert(claim);
                }
                Entry::Occupied(_) => self.others.entry(key).or_default().push(claim),
            }
        }
        self.addresses.insert(service.id, addresses);
    }

    /// Whose a key is: of those that declare it the first, else as those settle
    /// it that resolve to it.
    fn value(&self, key: MapKey) -> Option<ServiceValue> {
        let first = self.claims.get(&key)?;
        let others = self.others.get(&key).map_or(&[][..], Vec::as_slice);
        let claiming = |declared: bool| {
            let claims = std::iter::once(first).chain(others);
            let claims = claims.filter(move |c| c.declared == declared);
            let services = claims.filter_map(|claim| self.snapshot.service(claim.service));
            let mut services: Vec<&Service> = services.map(|service| &**service).collect();
            // The order of the snapshot.
            services.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            services
        };
        match claiming(true).first() {
            Some(service) => Some(value(service, key)),
            None => settle(&claiming(false), key),
        }
    }
}

fn found(service: &Service, book: &impl AddressBook) -> Addresses {
    Addresses {
        assigned: book.virtual_addresses(service).into(),
        resolved: book.resolved(service),
    }
}

/// Every key that a service wants, and whether the policy says so.
fn keys(service: &Service, addresses: &Addresses, scopes: &mut Scopes) -> Vec<(MapKey, bool)> {
    let mut keys = Vec::new();
    for scope in scopes_of(service, scopes) {
        let own = declared(service, scope, addresses);
        keys.extend(own.into_iter().map(|key| (key, true)));
        let found = addresses.resolved.iter();
        keys.extend(found.map(|ip| (exact(scope, service.key.port, *ip), false)));
    }
    keys
}

impl AddressBook for Addresses {
    fn virtual_addresses(&self, _service: &Service) -> Vec<(Ipv4Addr, Ipv6Addr)> {
        self.assigned.to_vec()
    }

    fn resolved(&self, _service: &Service) -> Arc<[IpAddr]> {
        Arc::clone(&self.resolved)
    }
}
