//! The endpoint sets of a snapshot, kept across snapshots.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::set::EndpointSet;
use crate::policy::model::Locality;
use crate::policy::snapshot::{ClusterKey, Snapshot};

/// What workers read: a snapshot and its endpoint sets.
#[derive(Debug, Default)]
pub struct Live {
    /// The policy.
    pub snapshot: Arc<Snapshot>,
    /// Endpoint sets, by `Cluster::index`.
    pub sets: Vec<Arc<EndpointSet>>,
}

/// What the sets need to know besides policy.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where this node is.
    pub locality: Locality,
    /// How long the connections of an address that vanished from DNS go on.
    pub drain_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            locality: Locality::default(),
            drain_grace: Duration::from_secs(30),
        }
    }
}

/// Owner of the endpoint sets, on the control runtime.
#[derive(Debug, Default)]
pub struct Registry {
    options: Options,
    sets: HashMap<ClusterKey, Arc<EndpointSet>>,
    live: Arc<Live>,
}

impl Registry {
    /// An empty registry.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    /// Makes the sets fit a new snapshot: a cluster that is still there keeps
    /// its set, with the policy that it has now.
    pub fn apply(&mut self, snapshot: Arc<Snapshot>) -> Arc<Live> {
        let mut kept = HashMap::with_capacity(snapshot.clusters.len());
        let sets = snapshot
            .clusters
            .iter()
            .map(|cluster| {
                let set = match self.sets.remove(&cluster.key) {
                    Some(set) => {
                        set.reconfigure(Arc::clone(cluster), &self.options);
                        set
                    }
                    None => EndpointSet::new(Arc::clone(cluster), &self.options),
                };
                kept.insert(cluster.key.clone(), Arc::clone(&set));
                set
            })
            .collect();
        self.sets = kept;
        self.live = Arc::new(Live { snapshot, sets });
        Arc::clone(&self.live)
    }

    /// What [`Self::apply`] returned last.
    pub const fn live(&self) -> &Arc<Live> {
        &self.live
    }
}
