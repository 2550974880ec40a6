//! TLS material and its rotation: files, credentials and system roots become
//! ready client configurations, one for each `tls` block and namespace.
//!
//! A configuration is cached until its material changes. [`Secrets::watch`]
//! looks twice a second: new handshakes then use the new material, running
//! connections go on, and a version that cannot be used leaves the old one in
//! force and is reported by [`Secrets::status`]. What was never usable stays
//! an error, and connections that need it fail.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::RootCertStore;

use crate::policy::model::{ClientTls, Identity, Trust};

mod config;
mod describe;
mod entry;
mod error;
mod header;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod material;
mod metrics;
mod pem_key;
mod source;
mod status;
#[cfg(test)]
mod tests;
mod verify;
mod workload_api;

pub(crate) use config::iana_name;
pub use config::{Replaced, TlsConfig};
pub use describe::CertificateSummary;
use entry::Entry;
pub use error::{Purpose, SecretError};
pub use source::{MeshIdentity, SecretData, SecretSettings};
use source::{Published, Svid};
pub use status::{Labels as SecretLabels, SecretStatus};
pub use verify::{RefusedChain, take_refused};

/// How often files are looked at.
const POLL: Duration = Duration::from_millis(500);

/// How closely [`Secrets::refresh`] looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// Reads what has another inode, size or modification time.
    Files,
    /// Reads everything, and takes over what has another content.
    Contents,
    /// Builds every configuration anew.
    Everything,
}

/// Which configuration: the block, and the client's namespace where a
/// `credentialName` makes it matter.
type Key = (ClientTls, Arc<str>);

/// All TLS material in use.
#[derive(Debug)]
pub struct Secrets {
    settings: SecretSettings,
    /// Read without a lock by every handshake.
    entries: ArcSwap<HashMap<Key, Arc<Entry>>>,
    published: ArcSwap<Published>,
    /// Credentials that requests carry.
    headers: header::Headers,
    /// Those of a Kubernetes API server, behind `published`.
    cluster: ArcSwap<Published>,
    /// Identity of the SPIFFE Workload API.
    svid: ArcSwap<Svid>,
    system: SystemRoots,
    /// Held while `entries` or `published` is replaced.
    writing: Mutex<()>,
}

impl Secrets {
    /// Nothing is read before it is asked for.
    pub fn new(settings: SecretSettings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            entries: ArcSwap::default(),
            published: ArcSwap::default(),
            headers: header::Headers::default(),
            cluster: ArcSwap::default(),
            svid: ArcSwap::from_pointee(Err("it has not been asked yet".into())),
            system: SystemRoots::default(),
            writing: Mutex::new(()),
        })
    }

    /// The configuration for a `tls` block and a client in `namespace`.
    ///
    /// The first call for a block reads its files; ask once when policy is
    /// loaded, and no connection ever waits for a disk.
    ///
    /// # Errors
    /// What keeps the material from being used.
    pub fn client_config(
        &self,
        tls: &ClientTls,
        namespace: &Arc<str>,
    ) -> Result<Arc<TlsConfig>, SecretError> {
        let namespace = if uses_credential(tls) {
            namespace.clone()
        } else {
            Arc::default()
        };
        let key = (tls.clone(), namespace);
        if let Some(entry) = self.entries.load().get(&key) {
            return entry.current();
        }
        self.insert(key).current()
    }

    fn insert(&self, key: Key) -> Arc<Entry> {
        let _writing = self.write();
        if let Some(entry) = self.entries.load().get(&key) {
            return entry.clone();
        }
        let entry = Arc::new(Entry::load(self, key.0.clone(), key.1.clone()));
        let mut entries = HashMap::clone(&self.entries.load());
        entries.insert(key, entry.clone());
        self.entries.store(Arc::new(entries));
        entry
    }

    /// Reads the material of many blocks at once, so that
    /// [`client_config`](Self::client_config) finds it ready.
    pub fn prepare<'a>(&self, wanted: impl Iterator<Item = (&'a ClientTls, &'a Arc<str>)>) {
        let _writing = self.write();
        let known = self.entries.load();
        let mut new: HashMap<Key, Arc<Entry>> = HashMap::new();
        for (tls, namespace) in wanted {
            let namespace = if uses_credential(tls) {
                Arc::clone(namespace)
            } else {
                Arc::default()
            };
            let key = (tls.clone(), namespace);
            if !known.contains_key(&key) && !new.contains_key(&key) {
                let entry = Arc::new(Entry::load(self, key.0.clone(), key.1.clone()));
                new.insert(key, entry);
            }
        }
        if !new.is_empty() {
            new.extend(
                known
                    .iter()
                    .map(|(key, entry)| (key.clone(), Arc::clone(entry))),
            );
            self.entries.store(Arc::new(new));
        }
    }

    /// Forgets every configuration whose block is not among `used`: those of
    /// policies that are gone.
    pub fn retain(&self, used: impl Fn(&ClientTls) -> bool) {
        let _writing = self.write();
        let mut entries = HashMap::clone(&self.entries.load());
        entries.retain(|(tls, _), _| used(tls));
        self.entries.store(Arc::new(entries));
    }

    /// Sets (or with `None` removes) a credential held in memory: a `Secret`
    /// document. It stands in front of the secrets directory in its namespace.
    pub fn publish(&self, namespace: Arc<str>, name: Arc<str>, data: Option<SecretData>) {
        self.set(&self.published, namespace, name, data);
    }

    /// As [`publish`](Self::publish), for a Secret of a Kubernetes API server,
    /// which stands behind a document of the same name.
    pub fn publish_cluster(&self, namespace: Arc<str>, name: Arc<str>, data: Option<SecretData>) {
        self.set(&self.cluster, namespace, name, data);
    }

    fn set(
        &self,
        place: &ArcSwap<Published>,
        namespace: Arc<str>,
        name: Arc<str>,
        data: Option<SecretData>,
    ) {
        {
            let _writing = self.write();
            let old = place.load();
            let key = (namespace, name);
            if data.is_none() && !old.contains_key(&key) {
                return;
            }
            let mut published = HashMap::clone(&old);
            match data {
                Some(data) => published.insert(key, Arc::new(data)),
                None => published.remove(&key),
            };
            place.store(Arc::new(published));
        }
        self.refresh(Look::Contents);
    }

    /// Takes over an identity of the SPIFFE Workload API, or why there is none
    /// now: then the one in force stays in force.
    fn take_svid(&self, svid: Svid) {
        if svid.is_err() && self.svid.load().is_ok() {
            return;
        }
        self.svid.store(Arc::new(svid));
        self.refresh(Look::Contents);
    }

    /// Reads the system roots and all material again (SIGHUP).
    pub fn reload(&self) {
        self.system.forget();
        self.refresh(Look::Everything);
    }

    /// Follows changes of files for ever, on any tokio runtime.
    pub async fn watch(self: Arc<Self>) {
        let mut clock = tokio::time::interval(POLL);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let secrets = self.clone();
            // Files may lie on a slow disk; the runtime must not wait for it.
            if tokio::task::spawn_blocking(move || secrets.refresh(Look::Files))
                .await
                .is_err()
            {
                tracing::error!("looking at TLS material failed; it will be tried again");
            }
        }
    }

    /// Looks once at all material.
    pub fn refresh(&self, look: Look) {
        for entry in self.entries.load().values() {
            entry.refresh(self, look);
        }
        self.headers.refresh(self, look);
    }

    /// State of all material, for `proxy-config secrets`.
    pub fn status(&self) -> Vec<SecretStatus> {
        let mut list: Vec<_> = self.entries.load().values().map(|e| e.status()).collect();
        list.sort_by(|a, b| (&a.name, &a.namespace).cmp(&(&b.name, &b.namespace)));
        list
    }

    fn write(&self) -> MutexGuard<'_, ()> {
        // The guard protects no data, so a panic elsewhere leaves nothing torn.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uses_credential(tls: &ClientTls) -> bool {
    matches!(tls.identity, Identity::Secret(_)) || matches!(tls.trust, Trust::Secret(_))
}

/// The operating system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` are
/// respected), read once.
#[derive(Debug, Default)]
struct SystemRoots(ArcSwap<OnceLock<Result<Arc<RootCertStore>, SecretError>>>);

impl SystemRoots {
    fn get(&self) -> Result<Arc<RootCertStore>, SecretError> {
        self.0.load().get_or_init(load_system_roots).clone()
    }

    fn forget(&self) {
        self.0.store(Arc::default());
    }
}

fn load_system_roots() -> Result<Arc<RootCertStore>, SecretError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    let problems: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
    if added == 0 {
        return Err(SecretError::NoSystemRoots(if problems.is_empty() {
            "none found".to_owned()
        } else {
            problems.join("; ")
        }));
    }
    if !problems.is_empty() || ignored > 0 {
        tracing::warn!(
            ignored,
            problems = problems.join("; "),
            "some system roots were left out"
        );
    }
    Ok(Arc::new(roots))
}
