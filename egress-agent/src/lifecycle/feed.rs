//! Follows the names among the endpoints of the policy: their addresses go to
//! the endpoint sets, and tell the kernel which real addresses are registered.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};

use crate::endpoint::resolve::{Answer, Resolvers};
use crate::endpoint::{EndpointSet, Live, is_at};
use crate::policy::model::{EndpointAddress, EndpointSpec, Resolution};
use crate::policy::snapshot::{ClusterKey, Service};

/// The tasks that feed the endpoint sets. Must live in a `LocalSet`.
pub(super) struct Feed {
    resolvers: Resolvers,
    followed: HashMap<ClusterKey, Followed>,
    /// What was reconciled last.
    live: Arc<Live>,
    /// Told when the addresses of some host changed.
    pub(super) changed: Arc<Notify>,
}

struct Followed {
    specs: Arc<[EndpointSpec]>,
    task: AbortHandle,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    pub(super) fn new(resolvers: Resolvers) -> Self {
        Self {
            resolvers,
            followed: HashMap::new(),
            live: Arc::default(),
            changed: Arc::default(),
        }
    }

    /// Follows exactly the clusters of `live` whose endpoints have names.
    pub(super) fn reconcile(&mut self, live: &Arc<Live>) {
        let last = std::mem::replace(&mut self.live, Arc::clone(live));
        let mut leaving: HashMap<&ClusterKey, Followed> = HashMap::new();
        for (place, (cluster, _)) in last.pairs().enumerate() {
            if !is_at(cluster, place, &live.snapshot)
                && let Some(followed) = self.followed.remove(&cluster.key)
            {
                leaving.insert(&cluster.key, followed);
            }
        }
        for (place, (cluster, set)) in live.pairs().enumerate() {
            if is_at(cluster, place, &last.snapshot)
                || set.is_dialled()
                || cluster.target.resolution == Resolution::Static
            {
                continue;
            }
            let kept = leaving
                .remove(&cluster.key)
                .filter(|followed| followed.specs == cluster.endpoints);
            let namespace = &cluster.key.service.namespace;
            let followed = kept.unwrap_or_else(|| self.follow(namespace, set, &cluster.endpoints));
            self.followed.insert(cluster.key.clone(), followed);
        }
    }

    fn follow(
        &self,
        namespace: &str,
        set: &Arc<EndpointSet>,
        specs: &Arc<[EndpointSpec]>,
    ) -> Followed {
        let mut endpoints = self.resolvers.of(namespace).endpoints(specs);
        let set = Arc::clone(set);
        let changed = Arc::clone(&self.changed);
        let task = spawn_local(async move {
            loop {
                let now = endpoints.current();
                let error = now.errors.first().map(|error| Arc::from(error.to_string()));
                match error {
                    None if now.pending && now.endpoints.is_empty() => {}
                    None => set.update(now.endpoints),
                    // Names that have not been asked for yet take none away.
                    Some(error) if now.pending && now.endpoints.is_empty() => {
                        set.resolution_failed(error);
                    }
                    Some(error) => set.update_despite(now.endpoints, error),
                }
                changed.notify_one();
                if !endpoints.can_change() {
                    return;
                }
                endpoints.changed().await;
            }
        });
        Followed {
            specs: Arc::clone(specs),
            task: task.abort_handle(),
        }
    }

    /// The addresses that the host of a service resolves to at present. Only
    /// the host's own name counts: other names among the endpoints are not
    /// what an application asks for.
    pub(super) fn addresses_of(&self, service: &Service) -> Arc<[IpAddr]> {
        let resolved = matches!(
            service.resolution,
            Resolution::Dns | Resolution::DnsRoundRobin
        );
        let own = service.key.host.exact().filter(|host| {
            resolved
                && service.endpoints.iter().any(
                    |spec| matches!(&spec.address, EndpointAddress::Name(name) if name == *host),
                )
        });
        own.map_or_else(
            || Arc::from([]),
            |host| {
                let resolver = self.resolvers.of(&service.key.namespace);
                let answer: Arc<Answer> = Arc::clone(&resolver.watch(host).borrow());
                Arc::clone(&answer.addresses)
            },
        )
    }
}
