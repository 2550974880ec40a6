//! The rooms of a running agent, and how a change reaches all of them.
//!
//! A change of policy is applied in an order that leaves no gap: names get
//! their virtual addresses, workers see the new snapshot, then the kernel gets
//! its entries, and only then does DNS answer by it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::StartError;
use super::bridges::Derived;
use super::feed::Feed;
use crate::capture::keys::{self, AddressBook, Scopes};
use crate::capture::{Kernel, KernelSettings};
use crate::dns::registry::{Publish, Registry as Names};
use crate::dns::virtual_address::VirtualAddresses;
use crate::endpoint::resolve::Resolver;
use crate::endpoint::{Live, Options, Registry as Sets};
use crate::policy::snapshot::{Service, Snapshot};
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
    pub(super) resolver: Resolver,
    pub(super) sets: Sets,
    pub(super) feed: Feed,
    scopes: Arc<Mutex<Scopes>>,
    derived: Derived,
    published: Vec<(Arc<str>, Arc<str>)>,
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
        self.feed.addresses_of(service)
    }
}

impl Node {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        settings: &Settings,
        directory: Directory,
        resolver: Resolver,
        secrets: Arc<Secrets>,
    ) -> Self {
        let scopes = Arc::new(Mutex::new(Scopes::default()));
        let derived = Derived {
            kernel: Arc::clone(&kernel),
            scopes: Arc::clone(&scopes),
            made: Arc::default(),
        };
        let addresses = Arc::new(VirtualAddresses::open(&settings.state_dir));
        Self {
            names: Arc::new(Names::new(addresses, derived.clone())),
            live: Arc::default(),
            sets: Sets::new(Options {
                locality: settings.locality.clone().unwrap_or_default(),
                ..Options::default()
            }),
            feed: Feed::new(resolver.clone()),
            published: Vec::new(),
            kernel,
            secrets,
            directory,
            resolver,
            scopes,
            derived,
        }
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
        let assignment = self.names.prepare(&snapshot);
        self.publish_secrets(&snapshot);
        let live = self.sets.apply(Arc::clone(&snapshot));
        self.feed.reconcile(&live);
        self.load_credentials(&snapshot);
        self.live.store(live);
        self.sync_kernel(&snapshot)?;
        if let Err(error) = self.names.addresses().save().await {
            tracing::warn!("virtual addresses are not kept: {error}");
        }
        let released = self.names.install(snapshot, &assignment).await;
        self.derived.withdraw(&released);
        Ok(())
    }

    /// Writes to the kernel what differs: after a change of policy, of an
    /// address or of cgroups.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub(super) fn sync_kernel(&self, snapshot: &Arc<Snapshot>) -> Result<(), StartError> {
        let book = Book {
            snapshot,
            names: &self.names,
            feed: &self.feed,
        };
        let plan = keys::plan(snapshot, &mut self.scopes(), &book);
        let changes = self
            .kernel
            .sync_services(&plan)
            .map_err(StartError::Capture)?;
        tracing::debug!(?changes, "kernel entries");
        self.sync_scopes()
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
        drop(scopes);
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
        self.kernel
            .configure(&KernelSettings {
                default_scope,
                heartbeat_limit: settings.heartbeat_limit,
                registry_only: settings.outbound == Outbound::RegistryOnly,
                dns,
                log: settings.kernel_log.is_on(),
            })
            .map_err(StartError::Capture)
    }

    /// Reads all TLS material now, so that no connection waits for a disk, and
    /// forgets what no policy names any more.
    fn load_credentials(&self, snapshot: &Snapshot) {
        for cluster in &snapshot.clusters {
            if let Some(tls) = cluster.tls_for_cleartext_http() {
                let namespace = &cluster.key.service.namespace;
                if let Err(error) = self.secrets.client_config(&tls, namespace) {
                    tracing::warn!(
                        host = %cluster.target.host,
                        port = cluster.target.port,
                        "connections will be refused: {error}"
                    );
                }
            }
        }
        for cluster in &snapshot.clusters {
            if let Some(credential) = &cluster.policy.credential
                && let Err(error) = self
                    .secrets
                    .header_value(credential, &cluster.key.service.namespace)
            {
                tracing::warn!(
                    host = %cluster.target.host,
                    port = cluster.target.port,
                    "requests will be refused: {error}"
                );
            }
        }
        self.secrets.retain_header_values(|used| {
            snapshot
                .clusters
                .iter()
                .any(|cluster| cluster.policy.credential.as_ref() == Some(used))
        });
        self.secrets.retain(|used| {
            snapshot
                .clusters
                .iter()
                .any(|cluster| cluster.tls_for_cleartext_http().as_ref() == Some(used))
        });
    }

    /// Gives the `Secret` documents of the policy to the secret room.
    fn publish_secrets(&mut self, snapshot: &Snapshot) {
        let now: Vec<_> = snapshot.secrets.keys().cloned().collect();
        for (namespace, name) in self.published.drain(..) {
            let key = (namespace, name);
            if !snapshot.secrets.contains_key(&key) {
                self.secrets.publish(key.0, key.1, None);
            }
        }
        for ((namespace, name), secret) in &snapshot.secrets {
            let data: SecretData = secret
                .data
                .iter()
                .map(|(key, value)| (key.clone(), Arc::new(value.clone())))
                .collect();
            self.secrets
                .publish(Arc::clone(namespace), Arc::clone(name), Some(data));
        }
        self.published = now;
    }
}
