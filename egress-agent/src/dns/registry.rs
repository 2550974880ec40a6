//! What all workers share: the names of the policy in force, their virtual
//! addresses, and the way to the kernel for a new one.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::timeout;

use super::DnsError;
use super::answer::View;
use super::names::{self, Claim, Names};
use super::real::RealAddresses;
use super::seen::SeenNames;
use super::virtual_address::{
    Assignment, Holding, NETWORK_V4, SELF_TEST_V4, VirtualAddress, VirtualAddresses, is_virtual,
};
use crate::policy::snapshot::{Service, Snapshot};

/// A name that exists in no DNS (RFC 6761 section 6.4) and that every client
/// is answered with [`SELF_TEST_ADDRESS`]: whoever gets that answer through an
/// ordinary resolver has proven that its queries are captured.
pub const SELF_TEST_HOST: &str = "self-test.egress-agent.invalid";

/// See [`SELF_TEST_HOST`].
pub const SELF_TEST_ADDRESS: Ipv4Addr =
    Ipv4Addr::new(NETWORK_V4[0], NETWORK_V4[1], SELF_TEST_V4, 53);

/// How long a query waits for the kernel entries of a new name.
pub const PUBLISH_LIMIT: Duration = Duration::from_secs(2);

/// A name that needs kernel entries before its address may be answered.
#[derive(Clone, Debug)]
pub struct NewAddress {
    /// Host, lower case, no trailing dot.
    pub name: Arc<str>,
    /// Its address, in both families.
    pub address: VirtualAddress,
    /// The services that a connection to it may belong to, the most specific
    /// host first ([`Names::services`]); each with its own visibility.
    pub services: Vec<Arc<Service>>,
}

/// The future of [`Publish::publish`].
pub type Published<'a> =
    Pin<Box<dyn Future<Output = Result<(), Box<dyn Error + Send + Sync>>> + Send + 'a>>;

/// The capture side, as far as virtual addresses concern it.
pub trait Publish: Send + Sync + 'static {
    /// Makes the kernel entries of a name under a wildcard host. Called by any
    /// worker, at most once at a time for a name, and again for the same name
    /// after a change of policy. The query waits [`PUBLISH_LIMIT`] for it.
    fn publish(&self, new: NewAddress) -> Published<'_>;

    /// The names do not hold their addresses any more, because too many others
    /// do: their kernel entries may go. Must not wait.
    fn withdraw(&self, gone: &[Arc<Holding>]);
}

/// The shared half of the DNS room.
pub struct Registry {
    names: ArcSwap<Names>,
    /// A name of the policy has no address, as none was left.
    exhausted: AtomicBool,
    addresses: Arc<VirtualAddresses>,
    publish: Box<dyn Publish>,
    seen: SeenNames,
    real: Arc<RealAddresses>,
    /// Names whose kernel entries are being made, each with the turn of those
    /// who wait for them.
    pending: Mutex<HashMap<Arc<str>, Arc<tokio::sync::Mutex<()>>>>,
}

impl Registry {
    /// A registry of no names.
    pub fn new(addresses: Arc<VirtualAddresses>, publish: impl Publish) -> Self {
        Self {
            names: ArcSwap::from_pointee(Names::new(Arc::default())),
            exhausted: AtomicBool::new(false),
            addresses,
            publish: Box::new(publish),
            seen: SeenNames::default(),
            real: Arc::default(),
            pending: Mutex::default(),
        }
    }

    /// Names that forwarded answers told.
    pub const fn seen(&self) -> &SeenNames {
        &self.seen
    }

    /// Real addresses of names under wildcard hosts.
    pub const fn real(&self) -> &Arc<RealAddresses> {
        &self.real
    }

    /// Learns from the answer of a resolver.
    pub fn learn(&self, reply: &[u8]) {
        let Some(told) = self.seen.learn(reply) else {
            return;
        };
        if self.names.load().covers(&told.name) {
            // Our own networks are nobody's real address.
            let mut addresses = told.addresses;
            addresses.retain(|ip| !is_virtual(*ip));
            self.real.told(&told.name, &addresses, told.ttl);
        }
    }

    /// The names in force.
    pub fn names(&self) -> Arc<Names> {
        self.names.load_full()
    }

    /// The virtual addresses.
    pub fn addresses(&self) -> &Arc<VirtualAddresses> {
        &self.addresses
    }

    /// First half of a change of policy: gives every name of `snapshot` its
    /// address. The caller then makes kernel entries for `snapshot` (with
    /// [`addresses_of`](Self::addresses_of) each service), saves the addresses
    /// ([`VirtualAddresses::save`]), and calls [`install`](Self::install).
    pub fn prepare(&self, snapshot: &Arc<Snapshot>) -> Assignment {
        let names = Names::new(Arc::clone(snapshot));
        let changed = names.since(&self.names.load());
        let whole = self.exhausted.load(Ordering::Relaxed);
        let assignment = match changed.filter(|_| !whole) {
            Some(changed) => self.addresses.assign_some(
                changed,
                |name| names.claims_exactly(name),
                |name| names.covers(name),
            ),
            None => self
                .addresses
                .assign(names.exact(), |name| names.covers(name)),
        };
        self.exhausted
            .store(!assignment.refused.is_empty(), Ordering::Relaxed);
        for name in &assignment.refused {
            tracing::error!(
                name = &**name,
                "no virtual address is left; queries for this name fail"
            );
        }
        assignment
    }

    /// Second half: answers by `snapshot` from now on, and releases the
    /// addresses of names that it does not hold, which are returned. Names
    /// under wildcard hosts that were asked for since
    /// [`prepare`](Self::prepare) are published again, since their kernel
    /// entries were made for the policy before.
    pub async fn install(
        &self,
        snapshot: Arc<Snapshot>,
        assignment: &Assignment,
    ) -> Vec<Arc<Holding>> {
        for holding in &assignment.holdings {
            holding.set_ready();
        }
        let names = Arc::new(Names::new(snapshot));
        self.names.store(Arc::clone(&names));
        let released = match assignment.changed() {
            Some(changed) => self
                .addresses
                .retire_some(changed, |name| names.keeps(name)),
            None => self.addresses.retire(|name| names.keeps(name)),
        };
        for holding in self.addresses.derived_since(assignment) {
            if let Err(error) = self.publish(&holding).await {
                tracing::warn!("{error}");
            }
        }
        released
    }

    /// The virtual addresses under which the kernel should know `service` of
    /// `snapshot` (which need not be in force yet): that of its host, or those
    /// of all names under its wildcard host that were asked for, but for names
    /// that a more specific host takes from it.
    pub fn addresses_of(&self, snapshot: &Arc<Snapshot>, service: &Service) -> Vec<VirtualAddress> {
        if !names::claims(service) {
            return Vec::new();
        }
        if let Some(host) = service.key.host.exact() {
            let holding = self.addresses.get(host);
            return holding.map(|holding| holding.address).into_iter().collect();
        }
        let names = Names::new(Arc::clone(snapshot));
        let mut addresses = Vec::new();
        for holding in self.addresses.derived() {
            let name = &*holding.name;
            if service.key.host.matches(name)
                && !names::hidden(service, name, &names.services(name))
            {
                addresses.push(holding.address);
            }
        }
        addresses.sort_unstable();
        addresses
    }

    /// What a client in `namespace` sees, for [`answer`](super::answer::answer).
    pub fn view<'a>(&'a self, namespace: &'a str) -> impl View + 'a {
        NamespaceView {
            names: self.names.load_full(),
            addresses: &self.addresses,
            namespace,
        }
    }

    /// Gives a name its address and the kernel its entries, before the answer
    /// goes out. Concurrent queries for one name wait for each other.
    ///
    /// # Errors
    /// [`DnsError::Exhausted`], [`DnsError::Publish`] and
    /// [`DnsError::PublishTimeout`]; the next query tries again.
    pub async fn ensure(&self, name: &Arc<str>) -> Result<(), DnsError> {
        let turn = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(pending.entry(Arc::clone(name)).or_default())
        };
        let result = {
            let _turn = turn.lock().await;
            self.allocate(name).await
        };
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        // The map and this task hold it; a third holder is still waiting.
        if Arc::strong_count(&turn) <= 2 {
            pending.remove(name);
        }
        result
    }

    async fn allocate(&self, name: &Arc<str>) -> Result<(), DnsError> {
        let (holding, released) = self.addresses.allocate(name)?;
        if !released.is_empty() {
            tracing::info!(
                count = released.len(),
                "names under wildcard hosts give their virtual addresses back: too many are in use"
            );
            self.publish.withdraw(&released);
        }
        if holding.ready() {
            return Ok(());
        }
        self.publish(&holding).await
    }

    async fn publish(&self, holding: &Holding) -> Result<(), DnsError> {
        let name = &holding.name;
        let new = NewAddress {
            name: Arc::clone(name),
            address: holding.address,
            services: self.names.load().services(name),
        };
        match timeout(PUBLISH_LIMIT, self.publish.publish(new)).await {
            Ok(Ok(())) => {
                holding.set_ready();
                Ok(())
            }
            Ok(Err(source)) => Err(DnsError::Publish {
                name: Arc::clone(name),
                source,
            }),
            Err(_) => Err(DnsError::PublishTimeout {
                name: Arc::clone(name),
                limit: PUBLISH_LIMIT,
            }),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

struct NamespaceView<'a> {
    names: Arc<Names>,
    addresses: &'a VirtualAddresses,
    namespace: &'a str,
}

impl View for NamespaceView<'_> {
    fn claim(&self, host: &str) -> Claim {
        if host == SELF_TEST_HOST {
            return Claim::Listed(vec![SELF_TEST_ADDRESS.into()]);
        }
        self.names.claim(host, self.namespace)
    }

    fn address(&self, host: &str) -> Option<VirtualAddress> {
        let holding = self.addresses.get(host).filter(|holding| holding.ready())?;
        self.addresses.touch(&holding);
        Some(holding.address)
    }

    fn name(&self, address: IpAddr) -> Option<Arc<str>> {
        let holding = self.addresses.reverse(address)?;
        let seen = holding.held() && self.claim(&holding.name) != Claim::Forward;
        seen.then(|| Arc::clone(&holding.name))
    }
}

#[cfg(test)]
pub(super) mod tests;
