//! What the agent writes into the maps: settings, services, scopes, listeners,
//! heartbeat; and the resolvers that it reads back.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use egress_common::{Config, LAYOUT_VERSION, Listeners, RESOLVER_SLOTS, Resolver, ServiceValue};

use super::direct::{DirectControl, DirectPlan};
use super::error::CaptureError;
use super::kernel::Kernel;
use super::keys::PlanChanges;
use super::origins;
use super::services::{Changes, MapKey, Services};
use super::sys;
use crate::numbers::Fingerprint;
use crate::policy::snapshot::ServiceId;

/// What the kernel programs go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelSettings {
    /// Scope of callers whose cgroup has none.
    pub default_scope: u32,
    /// Age of the heartbeat past which the agent counts as down.
    pub heartbeat_limit: Duration,
    /// Refuse what is not registered.
    pub registry_only: bool,
    /// Capture DNS.
    pub dns: bool,
    /// Emit log lines.
    pub log: bool,
    /// What `connect` and `sendmsg` fail with under `registry_only`; 0 means
    /// ECONNREFUSED.
    pub errno: u8,
    /// Remember unregistered destinations.
    pub observe: bool,
}

#[derive(Debug)]
pub(super) struct Control {
    pub(super) config: Config,
    pub(super) services: Services,
    pub(super) scopes: HashMap<u64, u32>,
    pub(super) direct: DirectControl,
    pub(super) numbers: HashMap<Fingerprint, u64>,
    /// Numbers of services that are gone.
    pub(super) unused: Vec<(Fingerprint, u32)>,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            config: sys::zeroed(),
            services: Services::default(),
            scopes: HashMap::new(),
            direct: DirectControl::default(),
            numbers: HashMap::new(),
            unused: Vec::new(),
        }
    }
}

impl Kernel {
    /// Learns from the maps what an agent before left there, or one that took
    /// over for a moment: from then on differences alone are written.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn adopt(&self) -> Result<(), CaptureError> {
        let mut fresh = Control::new();
        let config = |error| CaptureError::map("CONFIG", error);
        if let Some(config) = self.maps.config.get(&0).map_err(config)? {
            fresh.config = config;
        }
        fresh.services.adopt(self.maps.store.entries()?);
        fresh.scopes = self
            .maps
            .cgroups
            .entries()
            .map_err(|error| CaptureError::map("CGROUPS", error))?;
        fresh.numbers = self
            .maps
            .numbers
            .entries()
            .map_err(|error| CaptureError::map("NUMBERS", error))?;
        fresh.direct = self.maps.direct.adopt()?;
        *self.control() = fresh;
        Ok(())
    }

    /// What the direct path was left with, by service.
    pub fn adopted_plans(&self) -> Vec<(ServiceId, DirectPlan)> {
        self.control().direct.all()
    }

    /// From now on entries of real addresses that were found in pinned maps go
    /// when the policy or DNS does not name them any more. Until then they
    /// stay, since the names are not resolved yet.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn forget_adopted(&self) -> Result<usize, CaptureError> {
        self.control().services.forget_adopted(&self.maps.store)
    }

    /// Makes the entries of the policy equal to `desired`.
    ///
    /// # Errors
    /// When a map is full or cannot be written; the call can be repeated.
    pub fn sync_services(
        &self,
        desired: &HashMap<MapKey, ServiceValue>,
    ) -> Result<Changes, CaptureError> {
        let control = &mut *self.control();
        let networks = desired.keys().any(|key| matches!(key, MapKey::Network(_)));
        self.announce_networks(control, networks)?;
        let changes = control.services.sync(&self.maps.store, desired)?;
        self.confirm_networks(control)?;
        Ok(changes)
    }

    /// Changes entries of the policy: those that are named, and at the first
    /// call those of an agent before that no service wants. `is_service` tells
    /// which numbers of services there are.
    ///
    /// # Errors
    /// When a map is full or cannot be written; what is missing is written with
    /// the next call.
    pub fn change_services(
        &self,
        changes: PlanChanges,
        is_service: impl Fn(u32) -> bool,
    ) -> Result<Changes, CaptureError> {
        let control = &mut *self.control();
        let mut new = changes.iter().filter(|(_, value)| value.is_some());
        let networks = new.any(|(key, _)| matches!(key, MapKey::Network(_)));
        self.announce_networks(control, networks)?;
        let changes = control
            .services
            .change(&self.maps.store, changes, is_service)?;
        self.confirm_networks(control)?;
        Ok(changes)
    }

    fn confirm_networks(&self, control: &mut Control) -> Result<(), CaptureError> {
        let networks = control.services.has_networks();
        self.write_config(control, |config| config.networks = u8::from(networks))
    }

    /// Adds an entry for an address that was found at run time. It stands below
    /// an entry of the policy with the same key.
    ///
    /// # Errors
    /// When a map is full or cannot be written.
    pub fn add_service_key(&self, key: MapKey, value: ServiceValue) -> Result<(), CaptureError> {
        let control = &mut *self.control();
        self.announce_networks(control, matches!(key, MapKey::Network(_)))?;
        control.services.add(&self.maps.store, key, value)
    }

    /// Removes an entry that [`Self::add_service_key`] made; false when there
    /// was none.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_service_key(&self, key: &MapKey) -> Result<bool, CaptureError> {
        self.control().services.remove(&self.maps.store, key)
    }

    /// The programs look at `NETWORKS` only when told that it has entries.
    fn announce_networks(&self, control: &mut Control, any: bool) -> Result<(), CaptureError> {
        if any {
            self.write_config(control, |config| config.networks = 1)?;
        }
        Ok(())
    }

    /// Names the agent's listeners in the namespace with this cookie.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn set_listeners(&self, cookie: u64, listeners: &Listeners) -> Result<(), CaptureError> {
        self.maps
            .namespaces
            .set(&cookie, listeners)
            .map_err(|error| CaptureError::map("NAMESPACES", error))
    }

    /// Forgets the listeners in a namespace; false when there were none.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_listeners(&self, cookie: u64) -> Result<bool, CaptureError> {
        self.maps
            .namespaces
            .remove(&cookie)
            .map_err(|error| CaptureError::map("NAMESPACES", error))
    }

    /// Names the agent's listeners in a namespace that has none yet; false when
    /// it has (those of a self-test).
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn add_listeners(&self, cookie: u64, listeners: &Listeners) -> Result<bool, CaptureError> {
        let failed = |error| CaptureError::map("NAMESPACES", error);
        self.maps
            .namespaces
            .make(&cookie, listeners)
            .map_err(failed)?;
        let there = self.maps.namespaces.get(&cookie).map_err(failed)?;
        Ok(there.as_ref() == Some(listeners))
    }

    /// Forgets the listeners in all namespaces but these: what an agent before
    /// this one left in maps that outlive it.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn retain_listeners(&self, keep: impl Fn(u64) -> bool) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::map("NAMESPACES", error);
        for cookie in self.maps.namespaces.keys().map_err(failed)? {
            if !keep(cookie) {
                self.maps.namespaces.remove(&cookie).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Forgets these listeners in a namespace, unless it has others by now (a
    /// successor's).
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn withdraw_listeners(&self, cookie: u64, own: &Listeners) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::map("NAMESPACES", error);
        if self.maps.namespaces.get(&cookie).map_err(failed)?.as_ref() == Some(own) {
            self.maps.namespaces.remove(&cookie).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the scopes of cgroups (by cgroup id) equal to `desired`.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn sync_scopes(&self, desired: &HashMap<u64, u32>) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::map("CGROUPS", error);
        let control = &mut *self.control();
        if !desired.is_empty() {
            self.write_config(control, |config| config.scopes = 1)?;
        }
        for (cgroup, scope) in desired {
            if control.scopes.get(cgroup) != Some(scope) {
                self.maps.cgroups.set(cgroup, scope).map_err(failed)?;
                control.scopes.insert(*cgroup, *scope);
            }
        }
        let gone: Vec<u64> = control
            .scopes
            .keys()
            .filter(|cgroup| !desired.contains_key(cgroup))
            .copied()
            .collect();
        for cgroup in gone {
            self.maps.cgroups.remove(&cgroup).map_err(failed)?;
            control.scopes.remove(&cgroup);
        }
        let any = !control.scopes.is_empty();
        self.write_config(control, |config| config.scopes = u8::from(any))
    }

    /// The IPv4 resolver behind a slot, as applications addressed it, and the
    /// scope of those. `None`: nobody asked through this slot.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn resolver(&self, slot: u32) -> Result<Option<(SocketAddr, u32)>, CaptureError> {
        if slot >= RESOLVER_SLOTS {
            return Ok(None);
        }
        let found = self
            .maps
            .resolvers
            .get(&slot)
            .map_err(|error| CaptureError::map("RESOLVERS", error))?;
        Ok(found.and_then(|found| asked(&found)))
    }

    /// The IPv6 resolver behind the listener `dns6[slot]`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn resolver6(&self, slot: usize) -> Result<Option<(SocketAddr, u32)>, CaptureError> {
        let table = self
            .maps
            .resolvers6
            .get(&0)
            .map_err(|error| CaptureError::map("RESOLVERS6", error))?;
        Ok(table
            .and_then(|table| table.resolvers.get(slot).copied())
            .and_then(|found| asked(&found)))
    }

    /// Tells the programs what to go by. Until this is called they let
    /// everything pass.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn configure(&self, settings: &KernelSettings) -> Result<(), CaptureError> {
        let control = &mut *self.control();
        self.write_config(control, |config| {
            config.layout = LAYOUT_VERSION;
            config.default_scope = settings.default_scope;
            config.heartbeat_limit_ns =
                u64::try_from(settings.heartbeat_limit.as_nanos()).unwrap_or(u64::MAX);
            config.outbound = if settings.registry_only {
                egress_common::OUTBOUND_REGISTRY_ONLY
            } else {
                egress_common::OUTBOUND_ALLOW_ANY
            };
            config.dns = u8::from(settings.dns);
            config.log = u8::from(settings.log);
            config.outbound_errno = settings.errno;
            config.observe = u8::from(settings.observe);
        })
    }

    pub(super) fn write_config(
        &self,
        control: &mut Control,
        change: impl FnOnce(&mut Config),
    ) -> Result<(), CaptureError> {
        let mut wanted = control.config;
        change(&mut wanted);
        if wanted != control.config {
            self.maps
                .config
                .set(&0, &wanted)
                .map_err(|error| CaptureError::map("CONFIG", error))?;
            control.config = wanted;
        }
        Ok(())
    }

    /// Says that the agent is alive.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn heartbeat(&self) -> Result<(), CaptureError> {
        self.write_heartbeat(super::monotonic_ns())
    }

    /// Says that connections may wait for the next agent for so long: the sockets
    /// on which they do stay open. Should they be closed meanwhile, the
    /// programs see that and do as if this agent were dead.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn heartbeat_ahead(&self, time: Duration) -> Result<(), CaptureError> {
        let ahead = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.write_heartbeat(super::monotonic_ns().saturating_add(ahead))
    }

    /// Says that the agent is not there to take connections, from now on until
    /// the next [`Self::heartbeat`].
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn stop_heartbeat(&self) -> Result<(), CaptureError> {
        self.write_heartbeat(0)
    }

    fn write_heartbeat(&self, at: u64) -> Result<(), CaptureError> {
        self.maps
            .heartbeat
            .set(&0, &at)
            .map_err(|error| CaptureError::map("HEARTBEAT", error))
    }

    pub(super) fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn asked(resolver: &Resolver) -> Option<(SocketAddr, u32)> {
    let address = SocketAddr::new(origins::ip(&resolver.address), resolver.port);
    (resolver.port != 0).then_some((address, resolver.scope))
}
