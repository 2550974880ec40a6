//! Secrets of the Kubernetes API server that policies name. Each is read and
//! watched by its name alone, so that the agent may be allowed these and no
//! others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;
use zeroize::{Zeroize, Zeroizing};

use super::{SecretData, Secrets};
use crate::kubernetes::KubernetesError;
use crate::kubernetes::client::Clients;
use crate::kubernetes::follow::{Event, follow};
use crate::kubernetes::health::Board;
use crate::policy::model::{Identity, Trust};
use crate::policy::snapshot::{ServiceKey, Snapshot};

/// Namespace and name.
pub type Name = (Arc<str>, Arc<str>);

/// Secrets that are watched at most.
const LIMIT: usize = 1024;
/// Watches on one connection; servers allow 100 at the same time or more.
const PER_CONNECTION: usize = 64;
/// Before a watch that ended is tried again.
const AGAIN: Duration = Duration::from_mins(1);

/// Secrets that a snapshot names, in the namespaces where they would be looked
/// for: of the callers on this node, of the rule, and the root namespace.
pub fn wanted(snapshot: &Snapshot, callers: &BTreeSet<Arc<str>>) -> BTreeSet<Name> {
    let services: HashMap<&ServiceKey, _> = snapshot
        .services
        .iter()
        .map(|service| (&service.key, service))
        .collect();
    let mut wanted = BTreeSet::new();
    for cluster in &snapshot.clusters {
        let Some(tls) = cluster.tls_for_cleartext_http() else {
            continue;
        };
        let mut names: Vec<Arc<str>> = Vec::new();
        if let Identity::Secret(name) = &tls.identity {
            names.push(Arc::from(&**name));
        }
        if let Trust::Secret(name) = &tls.trust {
            names.push(Arc::from(&**name));
            names.push(format!("{name}-cacert").into());
        }
        if names.is_empty() {
            continue;
        }
        let service = services.get(&cluster.key.service);
        let callers = callers.iter().filter(|namespace| {
            service.is_some_and(|service| service.visibility.includes(namespace))
        });
        let own = std::iter::once(&cluster.key.service.namespace);
        for namespace in own.chain(callers).chain(&tls.secret_namespaces) {
            for name in &names {
                if is_name(namespace) && is_name(name) {
                    wanted.insert((Arc::clone(namespace), Arc::clone(name)));
                }
            }
        }
    }
    wanted
}

/// Whether it can stand in a request: a DNS subdomain name.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

/// Watches the Secrets that are wanted.
#[derive(Debug)]
pub struct Watches {
    clients: Clients,
    secrets: Arc<Secrets>,
    board: Board,
    running: BTreeMap<Name, Running>,
    /// How many watches each connection carries.
    connections: Rc<RefCell<Vec<Carrier>>>,
}

struct Carrier {
    client: kube::Client,
    watches: usize,
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Carrier")
            .field("watches", &self.watches)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Running {
    task: JoinHandle<()>,
    carrier: usize,
}

impl Watches {
    /// None yet.
    pub fn new(clients: Clients, secrets: Arc<Secrets>, board: Board) -> Self {
        Self {
            clients,
            secrets,
            board,
            running: BTreeMap::new(),
            connections: Rc::default(),
        }
    }

    /// Watches exactly these from now on. Those that are no longer wanted are
    /// forgotten. On the calling thread, which must be in a `LocalSet`.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn watch(&mut self, mut wanted: BTreeSet<Name>) -> Result<(), KubernetesError> {
        if wanted.len() > LIMIT {
            tracing::error!(
                wanted = wanted.len(),
                limit = LIMIT,
                "policies name too many Secrets; the last ones are not read"
            );
            wanted = wanted.into_iter().take(LIMIT).collect();
        }
        let gone: Vec<Name> = self
            .running
            .keys()
            .filter(|name| !wanted.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(running) = self.running.remove(&name) {
                running.task.abort();
                if let Some(carrier) = self.connections.borrow_mut().get_mut(running.carrier) {
                    carrier.watches -= 1;
                }
            }
            self.secrets.publish_cluster(name.0, name.1, None);
        }
        for name in wanted {
            if self.running.contains_key(&name) {
                continue;
            }
            let (client, carrier) = self.carrier()?;
            let (namespace, secret) = (Arc::clone(&name.0), Arc::clone(&name.1));
            let task = spawn_local(keep(
                client,
                Arc::clone(&self.secrets),
                self.board.clone(),
                namespace,
                secret,
            ));
            self.running.insert(name, Running { task, carrier });
        }
        Ok(())
    }

    /// A client whose connection has room for one more watch.
    fn carrier(&self) -> Result<(kube::Client, usize), KubernetesError> {
        let mut connections = self.connections.borrow_mut();
        let free = connections
            .iter()
            .position(|carrier| carrier.watches < PER_CONNECTION);
        let place = if let Some(place) = free {
            place
        } else {
            connections.push(Carrier {
                client: self.clients.client()?,
                watches: 0,
            });
            connections.len() - 1
        };
        let carrier = connections
            .get_mut(place)
            .ok_or_else(|| KubernetesError::Access("no client".into()))?;
        carrier.watches += 1;
        Ok((carrier.client.clone(), place))
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

/// Keeps one Secret as the server has it. What was there stays when the server
/// cannot be reached or begins to refuse.
async fn keep(
    client: kube::Client,
    secrets: Arc<Secrets>,
    board: Board,
    namespace: Arc<str>,
    name: Arc<str>,
) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let fields = format!("metadata.name={name}");
    let row = board.watch_optional(&format!("secrets {namespace}/{name}"));
    loop {
        follow(&api, Some(&fields), &row, |event| {
            let data = match event {
                Event::Listed(list) => list.into_iter().next().map(data),
                Event::Applied(secret) => Some(data(secret)),
                Event::Deleted(_) => None,
            };
            row.objects(usize::from(data.is_some()));
            secrets.publish_cluster(Arc::clone(&namespace), Arc::clone(&name), data);
        })
        .await;
        // The namespace is not there.
        sleep(AGAIN).await;
    }
}

/// The values, wiped when they are dropped.
fn data(mut secret: Secret) -> SecretData {
    for text in secret.string_data.iter_mut().flatten() {
        text.1.zeroize();
    }
    let values = secret.data.take().unwrap_or_default();
    values
        .into_iter()
        .map(|(key, value)| (key.into(), Arc::new(Zeroizing::new(value.0))))
        .collect()
}
