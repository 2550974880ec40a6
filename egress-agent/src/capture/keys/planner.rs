//! A plan that is kept, so that a change costs what it changes.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{AddressBook, Plan, Scopes, declared, exact, scopes_of, settle, value};
use crate::capture::MapKey;
use crate::policy::snapshot::{Service, ServiceId, Snapshot};

/// What may have changed since the last plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Services, and the addresses of those alone.
    Policy,
    /// Addresses of any service, too.
    Addresses,
}

/// The plan of the last snapshot, and whose its keys are.
#[derive(Debug, Default)]
pub struct Planner {
    services: HashMap<ServiceId, Known>,
    claims: HashMap<MapKey, Vec<Claim>>,
    plan: Plan,
}

/// A service as it was planned.
#[derive(Debug)]
struct Known {
    service: Arc<Service>,
    addresses: Addresses,
    keys: Box<[(MapKey, bool)]>,
}

#[derive(PartialEq, Eq, Debug)]
struct Addresses {
    assigned: Vec<(Ipv4Addr, Ipv6Addr)>,
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
    /// Everything that the kernel's service maps should hold for `snapshot`: the
    /// same as [`plan`](super::plan) gives.
    pub fn update(
        &mut self,
        snapshot: &Snapshot,
        scopes: &mut Scopes,
        book: &impl AddressBook,
        changed: Changed,
    ) -> &Plan {
        let mut touched: HashSet<MapKey> = HashSet::new();
        let gone = self.services.keys();
        let gone = gone.filter(|id| !snapshot.by_id.contains_key(id));
        for id in gone.copied().collect::<Vec<_>>() {
            self.forget(id, &mut touched);
        }
        for service in &snapshot.services {
            let known = self.services.get(&service.id);
            let same = known.is_some_and(|known| Arc::ptr_eq(&known.service, service));
            // Names below a wildcard host come and go by themselves.
            let settled = changed == Changed::Policy && service.key.host.exact().is_some();
            if same && settled {
                continue;
            }
            let addresses = Addresses {
                assigned: book.virtual_addresses(service),
                resolved: book.resolved(service),
            };
            if same && known.is_some_and(|known| known.addresses == addresses) {
                continue;
            }
            self.forget(service.id, &mut touched);
            self.learn(service, addresses, scopes, &mut touched);
        }
        for key in touched {
            match self.value(key) {
                Some(value) => self.plan.insert(key, value),
                None => self.plan.remove(&key),
            };
        }
        &self.plan
    }

    fn forget(&mut self, id: ServiceId, touched: &mut HashSet<MapKey>) {
        let Some(known) = self.services.remove(&id) else {
            return;
        };
        for (key, _) in known.keys {
            if let Some(claims) = self.claims.get_mut(&key) {
                claims.retain(|claim| claim.service != id);
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
            touched.insert(key);
        }
    }

    fn learn(
        &mut self,
        service: &Arc<Service>,
        addresses: Addresses,
        scopes: &mut Scopes,
        touched: &mut HashSet<MapKey>,
    ) {
        let mut keys = Vec::new();
        for scope in scopes_of(service, scopes) {
            let own = declared(service, scope, &addresses);
            keys.extend(own.into_iter().map(|key| (key, true)));
            let found = addresses.resolved.iter();
            keys.extend(found.map(|ip| (exact(scope, service.key.port, *ip), false)));
        }
        for (key, declared) in &keys {
            self.claims.entry(*key).or_default().push(Claim {
                service: service.id,
                declared: *declared,
            });
            touched.insert(*key);
        }
        self.services.insert(
            service.id,
            Known {
                service: Arc::clone(service),
                addresses,
                keys: keys.into(),
            },
        );
    }

    /// Whose a key is: of those that declare it the first, else as those settle
    /// it that resolve to it.
    fn value(&self, key: MapKey) -> Option<egress_common::ServiceValue> {
        let claims = self.claims.get(&key)?;
        let claiming = |declared: bool| {
            let claims = claims
                .iter()
                .filter(move |claim| claim.declared == declared);
            let services = claims.filter_map(|claim| self.services.get(&claim.service));
            let mut services: Vec<&Service> = services.map(|known| &*known.service).collect();
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

impl AddressBook for Addresses {
    fn virtual_addresses(&self, _service: &Service) -> Vec<(Ipv4Addr, Ipv6Addr)> {
        self.assigned.clone()
    }

    fn resolved(&self, _service: &Service) -> Arc<[IpAddr]> {
        Arc::clone(&self.resolved)
    }
}
