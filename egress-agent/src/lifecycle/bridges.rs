//! Where one room asks for something that another one knows: small adapters,
//! so that neither imports the other.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::capture::keys::{self, ScopeNames, Scopes};
use crate::capture::{Caller, Kernel, MapKey};
use crate::dns::registry::{NewAddress, Publish, Published};
use crate::dns::server::{Asked, ResolverTable};
use crate::dns::virtual_address::{Holding, VirtualAddresses};
use crate::identify::{self, HostNames};
use crate::workload::directory::Directory;

/// Names behind virtual addresses, for the flow.
pub(super) struct Names(pub(super) Arc<VirtualAddresses>);

impl HostNames for Names {
    fn host_of(&self, address: IpAddr) -> Option<Arc<str>> {
        let holding = self.0.reverse(address)?;
        self.0.touch(&holding);
        Some(Arc::clone(&holding.name))
    }
}

/// Workloads behind cgroups, for the flow.
#[derive(Clone)]
pub(super) struct Callers(pub(super) Directory);

impl Callers {
    /// The policy namespace of a caller.
    pub(super) fn namespace(&self, caller: &Caller) -> Arc<str> {
        identify::Callers::workload_of(self, caller)
            .client
            .namespace
    }
}

impl identify::Callers for Callers {
    fn workload_of(&self, caller: &Caller) -> identify::Workload {
        // The first connection of a cgroup reads one small file in /proc.
        let found = self
            .0
            .known(caller.cgroup)
            .or_else(|| self.0.find(caller.cgroup, caller.pid))
            .unwrap_or_else(|| self.0.stranger());
        identify::Workload {
            client: found.client.clone(),
            name: Arc::clone(&found.name),
            instance: match &found.pod {
                Some(pod) => Some(Arc::clone(&pod.name)),
                None => (!found.cgroup.is_empty()).then(|| Arc::clone(&found.cgroup)),
            },
        }
    }
}

/// Resolvers behind slots, for the DNS servers.
pub(super) struct Resolvers {
    pub(super) kernel: Arc<Kernel>,
    pub(super) scopes: ScopeNames,
    /// Namespace of callers that no rule names.
    pub(super) default: Arc<str>,
}

impl ResolverTable for Resolvers {
    fn v4(&self, slot: u32) -> Option<Asked> {
        self.told(self.kernel.resolver(slot))
    }

    fn v6(&self, slot: u32) -> Option<Asked> {
        self.told(self.kernel.resolver6(usize::try_from(slot).ok()?))
    }
}

impl Resolvers {
    fn told<E: std::fmt::Display>(
        &self,
        answer: Result<Option<(SocketAddr, u32)>, E>,
    ) -> Option<Asked> {
        match answer {
            Ok(found) => found.map(|(resolver, scope)| Asked {
                resolver,
                namespace: self
                    .scopes
                    .get(scope)
                    .unwrap_or_else(|| Arc::clone(&self.default)),
            }),
            Err(error) => {
                tracing::error!("cannot tell which resolver was asked: {error}");
                None
            }
        }
    }
}

/// Makes kernel entries for names under wildcard hosts, before the first
/// answer with their address goes out.
#[derive(Clone)]
pub(super) struct Derived {
    pub(super) kernel: Arc<Kernel>,
    pub(super) scopes: Arc<Mutex<Scopes>>,
    /// Keys by name, so that they can be withdrawn.
    pub(super) made: Arc<Mutex<HashMap<Arc<str>, Vec<MapKey>>>>,
}

impl Publish for Derived {
    fn publish(&self, new: NewAddress) -> Published<'_> {
        let entries = {
            let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
            let address = (new.address.v4(), new.address.v6());
            keys::derived(&new.services, &mut scopes, address)
        };
        let mut result = Ok(());
        let mut made = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            if let Err(error) = self.kernel.add_service_key(key, value) {
                result = Err(error.into());
                break;
            }
            made.push(key);
        }
        self.made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(new.name, made);
        Box::pin(std::future::ready(result))
    }

    fn withdraw(&self, gone: &[Arc<Holding>]) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        for key in gone
            .iter()
            .filter_map(|holding| made.remove(&holding.name))
            .flatten()
        {
            if let Err(error) = self.kernel.remove_service_key(&key) {
                tracing::warn!("cannot remove the kernel entry of a released name: {error}");
            }
        }
    }
}
