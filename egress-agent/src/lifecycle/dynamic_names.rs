//! Keeps the names that clients of `DYNAMIC_DNS` clusters ask for resolved: as
//! long as a cluster has a name, its addresses are looked up again before they
//! run out, and a change of them reaches the cluster.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use tokio::task::{AbortHandle, spawn_local};

use crate::dns::real::{Guard, RealAddresses};
use crate::endpoint::resolve::{Answer, Resolver, Resolvers, State};
use crate::endpoint::resolved::{Destination, ResolvedEndpoint};
use crate::endpoint::{Changes, EndpointSet};
use crate::policy::model::{Labels, Locality, Resolution};

/// The names of one set that are followed.
struct Followed {
    set: Weak<EndpointSet>,
    names: HashMap<Arc<str>, AbortHandle>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        for task in self.names.values() {
            task.abort();
        }
    }
}

/// Follows the names of all sets, present and future. Never ends; must run in
/// a `LocalSet`.
pub(super) async fn follow(resolvers: Resolvers, real: Arc<RealAddresses>, mut changes: Changes) {
    let mut followed: HashMap<usize, Followed> = HashMap::new();
    loop {
        for set in changes.next().await {
            if set.cluster().target.resolution != Resolution::DynamicDns {
                continue;
            }
            let entry = followed
                .entry(Arc::as_ptr(&set).addr())
                .or_insert_with(|| Followed {
                    set: Arc::downgrade(&set),
                    names: HashMap::new(),
                });
            let resolver = resolvers.of(&set.cluster().key.service.namespace);
            reconcile(entry, &set, resolver, &real);
        }
        // The address of a set stays taken while its weak reference is here.
        followed.retain(|_, followed| followed.set.strong_count() > 0);
    }
}

/// Follows exactly the names that the set has.
fn reconcile(
    followed: &mut Followed,
    set: &Arc<EndpointSet>,
    resolver: &Resolver,
    real: &Arc<RealAddresses>,
) {
    let wanted: HashSet<Arc<str>> = set.names_in_use().into_iter().collect();
    followed.names.retain(|name, task| {
        let stays = wanted.contains(name);
        if !stays {
            task.abort();
        }
        stays
    });
    for name in wanted {
        followed.names.entry(name).or_insert_with_key(|name| {
            let task = spawn_local(keep(
                Arc::downgrade(set),
                Arc::clone(name),
                resolver.clone(),
                real.follow(name),
            ));
            task.abort_handle()
        });
    }
}

/// Hands each answer for a name to its set.
async fn keep(set: Weak<EndpointSet>, name: Arc<str>, resolver: Resolver, real: Guard) {
    let mut answers = resolver.watch(&name);
    loop {
        let answer = Arc::clone(&answers.borrow_and_update());
        let Some(set) = set.upgrade() else { return };
        real.set(&answer.addresses);
        match &answer.state {
            State::Pending => {}
            State::Fresh => set.update_name(&name, endpoints(&set, &name, &answer)),
            // The last good addresses stay in use.
            State::Stale { error, .. } => set.name_failed(&name, error.to_string().into(), false),
            State::Failed { error } => set.name_failed(&name, error.to_string().into(), true),
        }
        drop(set);
        if answers.changed().await.is_err() {
            return;
        }
    }
}

fn endpoints(set: &EndpointSet, name: &Arc<str>, answer: &Answer) -> Vec<ResolvedEndpoint> {
    let port = set.cluster().target.target_port;
    let endpoint = |ip| ResolvedEndpoint {
        destination: Destination::Tcp(SocketAddr::new(ip, port)),
        name: Some(Arc::clone(name)),
        weight: 1,
        locality: Locality::default(),
        labels: Labels::new(),
    };
    answer.addresses.iter().copied().map(endpoint).collect()
}
