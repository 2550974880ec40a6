//! The rooms of a running agent, and how a change reaches all of them.
//!
//! A change of policy is applied in an order that leaves no gap: names get
//! their virtual addresses, workers see the new snapshot, then the kernel gets
//! its entries, and only then does DNS answer by it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::StartError;
use super::bridges::Derived;
use super::feed::Feed;
use crate::capture::keys::{AddressBook, Changed, Planner, ScopeNames, Scopes};
use crate::capture::{AllowedNetwork, Kernel, KernelSettings, Numbered, OutboundControl};
use crate::dns::names;
use crate::dns::registry::{Publish, Registry as Names};
use crate::dns::virtual_address::VirtualAddresses;
use crate::endpoint::resolve::Resolvers;
use crate::endpoint::{Live, Options, Registry as Sets, is_at};
use crate::policy::schema::secret::Secret;
use crate::policy::snapshot::{Service, ServiceId, Snapshot};
use crate::secret::{SecretData, Secrets};
use crate::settings::Settings;
use crate::settings::value::Outbound;
use crate::workload::directory::Directory;

/// The shared parts, owned by the control runtime.
pub(super) struct Node {
    pub(super) kernel: Arc<Kernel>,
    pub(super) names: Arc<Names>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) directory: Directory,
    pub(super) resolvers: Resolvers,
    pub(super) sets: Sets,
    pub(super) feed: Feed,
    scopes: Arc<Mutex<Scopes>>,
    planner: Mutex<Planner>,
    derived: Derived,
    published: BTreeMap<(Arc<str>, Arc<str>), Arc<Secret>>,
}

/// Addresses of the services of one snapshot.
struct Book<'a> {
    snapshot: &'a Arc<Snapshot>,
    names: &'a Names,
    feed: &'a Feed,
}

impl AddressBook for Book<'_> {
    fn virtual_addresses(&self, service: &Service) -> Vec<(Ipv4Addr, Ipv6Addr)> {
        let addresses = self.names.addresses_of(self.snapshot, service);
        addresses.iter().map(|a| (a.v4(), a.v6())).collect()
    }

    fn resolved(&self, service: &Service) -> Arc<[IpAddr]> {
        // Where connections do not say whose they are, an address that other
        // names may share is not enough to tell.
        let wildcard = service.key.host.exact().is_none();
        if wildcard && names::claims(service) && service.protocol.client_speaks_first() {
            return self.names.real().under(&service.key.host).into();
        }
        self.feed.addresses_of(service)
    }
}

impl Node {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        settings: &Settings,
        directory: Directory,
        resolvers: Resolvers,
        secrets: Arc<Secrets>,
    ) -> Result<Self, StartError> {
        let known = kernel.known(Numbered::Scope).map_err(StartError::Capture)?;
        let scopes = Arc::new(Mutex::new(Scopes::go_on_with(known)));
        let derived = Derived {
            kernel: Arc::clone(&kernel),
            scopes: Arc::clone(&scopes),
            made: Arc::default(),
        };
        let addresses = Arc::new(VirtualAddresses::open(&settings.state_dir));
        Ok(Self {
            names: Arc::new(Names::new(addresses, derived.clone())),
            live: Arc::default(),
            sets: Sets::new(Options {
                locality: settings.locality.clone().unwrap_or_default(),
                drain_grace: settings.dns_drain_grace,
            }),
            feed: Feed::new(resolvers.clone()),
            published: BTreeMap::new(),
            kernel,
            secrets,
            directory,
            resolvers,
            scopes,
            planner: Mutex::default(),
            derived,
        })
    }

    /// The namespaces behind scope numbers.
    pub(super) fn scope_names(&self) -> ScopeNames {
        self.scopes().names()
    }

    fn scopes(&self) -> MutexGuard<'_, Scopes> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a snapshot in force everywhere.
    ///
    /// # Errors
    /// When the kernel's maps cannot be written; what was not written is tried
    /// again with the next change.
    pub(super) async fn apply(&mut self, snapshot: Arc<Snapshot>) -> Result<(), StartError> {
        let began = Instant::now();
        let generation = snapshot.generation;
        let assignment = self.names.prepare(&snapshot);
        let named = began.elapsed();
        self.publish_secrets(&snapshot);
        let live = self.sets.apply(Arc::clone(&snapshot));
        self.feed.reconcile(&live);
        let fed = began.elapsed();
        self.load_credentials(&snapshot);
        self.live.store(live);
        let stored = began.elapsed();
        self.sync_kernel(&snapshot, Changed::Policy)?;
        let written = began.elapsed();
        if assignment.is_new()
            && let Err(error) = self.names.addresses().save().await
        {
            tracing::warn!("virtual addresses are not kept: {error}");
        }
        let released = self.names.install(snapshot, &assignment).await;
        self.derived.withdraw(&released);
        let took = began.elapsed();
        tracing::debug!(
            generation,
            ?named,
            ?fed,
            ?stored,
            ?written,
            ?took,
            "policy in force"
        );
        Ok(())
    }

    /// Writes to the kernel what differs: after a change of policy or of
    /// addresses.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub(super) fn sync_kernel(
        &self,
        snapshot: &Arc<Snapshot>,
        changed: Changed,
    ) -> Result<(), StartError> {
        let book = Book {
            snapshot,
            names: &self.names,
            feed: &self.feed,
        };
        let mut planner = self.planner.lock().unwrap_or_else(PoisonError::into_inner);
        self.keep_numbers(snapshot, planner.snapshot())?;
        let first = planner.snapshot().services.is_empty();
        let known = self.scopes().len();
        let plan = planner.update(snapshot, &mut self.scopes(), &book, changed);
        let scopes = self.scopes().all();
        let kept = if scopes.len() == known {
            Ok(())
        } else {
            self.kernel.keep_numbers(Numbered::Scope, &scopes)
        };
        let is_service = |number| snapshot.by_id.contains_key(&ServiceId(number));
        let changes = self
            .kernel
            .change_services(plan, is_service)
            .map_err(StartError::Capture)?;
        tracing::debug!(?changes, "kernel entries");
        kept.map_err(StartError::Capture)?;
        // Which cgroups there are does not follow from the policy.
        if first { self.sync_scopes() } else { Ok(()) }
    }

    /// As [`sync_kernel`](Self::sync_kernel), after the maps were written by
    /// another agent.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub(super) fn sync_kernel_anew(&self, snapshot: &Arc<Snapshot>) -> Result<(), StartError> {
        *self.planner.lock().unwrap_or_else(PoisonError::into_inner) = Planner::default();
        self.sync_kernel(snapshot, Changed::Addresses)?;
        self.sync_scopes()
    }

    /// Writes what the numbers mean, before they are used.
    fn keep_numbers(&self, snapshot: &Snapshot, before: &Snapshot) -> Result<(), StartError> {
        let number = |service: &Arc<Service>| (service.key.fingerprint(), service.id.0);
        // The first one: what an agent before numbered may be gone.
        let kept = if before.services.is_empty() {
            let services: Vec<_> = snapshot.services.iter().map(number).collect();
            self.kernel.keep_numbers(Numbered::Service, &services)
        } else {
            let difference = snapshot.since(before);
            let new: Vec<_> = difference.new.into_iter().map(number).collect();
            let gone: Vec<_> = difference.gone.into_iter().map(number).collect();
            self.kernel.change_numbers(&new, &gone)
        };
        kept.map_err(StartError::Capture)
    }

    /// Tells the kernel which cgroups belong to which namespace.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub(super) fn sync_scopes(&self) -> Result<(), StartError> {
        let matching = match self.directory.matching() {
            Ok(matching) => matching,
            Err(error) => {
                tracing::warn!("cannot look at the cgroups: {error}");
                return Ok(());
            }
        };
        let mut scopes = self.scopes();
        let desired: HashMap<u64, u32> = matching
            .into_iter()
            .map(|(cgroup, workload)| (cgroup, scopes.number(&workload.client.namespace)))
            .collect();
        let all = scopes.all();
        drop(scopes);
        self.kernel
            .keep_numbers(Numbered::Scope, &all)
            .map_err(StartError::Capture)?;
        self.kernel
            .sync_scopes(&desired)
            .map_err(StartError::Capture)
    }

    /// Tells the kernel programs what to go by.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub(super) fn configure(&self, settings: &Settings, dns: bool) -> Result<(), StartError> {
        let default_scope = self.scopes().number(&settings.namespace.0);
        let outbound = OutboundControl {
            registry_only: settings
                .outbound_in
                .iter()
                .map(|one| {
                    let scope = self.scopes().number(&one.namespace.0);
                    (scope, one.outbound == Outbound::RegistryOnly)
                })
                .collect(),
            allowed: settings
                .outbound_allow
                .iter()
                .map(|one| AllowedNetwork {
                    network: one.network,
                    port: one.port,
                })
                .collect(),
        };
        let scopes = self.scopes().all();
        self.kernel
            .keep_numbers(Numbered::Scope, &scopes)
            .map_err(StartError::Capture)?;
        // What is allowed is known before anything is refused.
        self.kernel
            .sync_outbound(&outbound)
            .map_err(StartError::Capture)?;
        self.kernel
            .configure(&KernelSettings {
                default_scope,
                heartbeat_limit: settings.heartbeat_limit,
                registry_only: settings.outbound == Outbound::RegistryOnly,
                dns,
                log: settings.kernel_log.is_on(),
                errno: u8::try_from(settings.outbound_errno.errno().raw_os_error())
                    .unwrap_or_default(),
                observe: settings.observe.is_on(),
            })
            .map_err(StartError::Capture)
    }

    /// Reads all TLS material now, so that no connection waits for a disk, and
    /// forgets what no policy names any more.
    fn load_credentials(&self, snapshot: &Snapshot) {
        self.load_header_values(snapshot);
        let before = Arc::clone(&self.live.load().snapshot);
        let changed = |from: &Snapshot, to: &Snapshot| {
            let clusters = from.clusters.iter().enumerate();
            let changed = clusters.filter(|(place, cluster)| !is_at(cluster, *place, to));
            let changed = changed.map(|(_, cluster)| Arc::clone(cluster));
            let tls =
                changed.filter_map(|cluster| Some((cluster.tls_for_cleartext_http()?, cluster)));
            tls.collect::<Vec<_>>()
        };
        let new = changed(snapshot, &before);
        let wanted = new
            .iter()
            .map(|(tls, cluster)| (tls, &cluster.key.service.namespace));
        self.secrets.prepare(wanted);
        for (tls, cluster) in &new {
            if let Err(error) = self
                .secrets
                .client_config(tls, &cluster.key.service.namespace)
            {
                tracing::warn!(
                    host = %cluster.target.host,
                    port = cluster.target.port,
                    "connections will be refused: {error}"
                );
            }
        }
        let stays: HashSet<_> = new.iter().map(|(tls, _)| tls).collect();
        if changed(&before, snapshot)
            .iter()
            .all(|(tls, _)| stays.contains(tls))
        {
            return;
        }
        let clusters = snapshot.clusters.iter();
        let used: HashSet<_> = clusters
            .filter_map(|c| c.tls_for_cleartext_http())
            .collect();
        self.secrets.retain(|tls| used.contains(tls));
    }

    /// The same for what requests are given (`inject-credential`).
    fn load_header_values(&self, snapshot: &Snapshot) {
        let mut used = HashSet::new();
        for cluster in &snapshot.clusters {
            let Some(credential) = &cluster.policy.credential else {
                continue;
            };
            used.insert(credential);
            let namespace = &cluster.key.service.namespace;
            if let Err(error) = self.secrets.header_value(credential, namespace) {
                tracing::warn!(
                    host = %cluster.target.host,
                    port = cluster.target.port,
                    "requests will be refused: {error}"
                );
            }
        }
        self.secrets
            .retain_header_values(|credential| used.contains(credential));
    }

    /// Gives the `Secret` documents of the policy to the secret room.
    fn publish_secrets(&mut self, snapshot: &Snapshot) {
        let before = std::mem::replace(&mut self.published, snapshot.secrets.clone());
        for (namespace, name) in before.keys() {
            if !snapshot
                .secrets
                .contains_key(&(Arc::clone(namespace), Arc::clone(name)))
            {
                let (namespace, name) = (Arc::clone(namespace), Arc::clone(name));
                self.secrets.publish(namespace, name, None);
            }
        }
        for (key, secret) in &snapshot.secrets {
            if before.get(key).is_some_and(|old| Arc::ptr_eq(old, secret)) {
                continue;
            }
            let data: SecretData = secret
                .data
                .iter()
                .map(|(key, value)| (key.clone(), Arc::new(value.clone())))
                .collect();
            let (namespace, name) = key.clone();
            self.secrets.publish(namespace, name, Some(data));
        }
    }
}
