//! The endpoint sets of a snapshot, kept across snapshots.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::changes::{Changes, Watchers};
use super::checker::Checker;
use super::health::Prober;
use super::set::EndpointSet;
use crate::policy::model::Locality;
use crate::policy::snapshot::{Cluster, ClusterKey, Snapshot};

/// What workers read: a snapshot and its endpoint sets.
#[derive(Debug, Default)]
pub struct Live {
    /// The policy.
    pub snapshot: Arc<Snapshot>,
    /// Endpoint sets, by `Cluster::index`.
    pub sets: Vec<Arc<EndpointSet>>,
}

impl Live {
    /// Each cluster with its set.
    pub fn pairs(&self) -> impl Iterator<Item = (&Arc<Cluster>, &Arc<EndpointSet>)> {
        self.snapshot.clusters.iter().zip(&self.sets)
    }
}

/// Whether a snapshot has this very value of a cluster at this place.
pub fn is_at(cluster: &Arc<Cluster>, place: usize, snapshot: &Snapshot) -> bool {
    let other = snapshot.clusters.get(place);
    other.is_some_and(|other| Arc::ptr_eq(cluster, other))
}

/// What the sets need to know besides policy.
#[derive(Clone, PartialEq, Debug)]
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
    options: Arc<Options>,
    live: Arc<Live>,
    watchers: Arc<Watchers>,
}

impl Registry {
    /// An empty registry.
    pub fn new(options: Options) -> Self {
        Self {
            options: Arc::new(options),
            ..Self::default()
        }
    }

    /// Makes the sets fit a new snapshot: a cluster that is still there keeps
    /// its set, with the policy that it has now. Clusters that are the same
    /// values as before cost next to nothing.
    pub fn apply(&mut self, snapshot: Arc<Snapshot>) -> Arc<Live> {
        let before = Arc::clone(&self.live);
        let mut leaving: HashMap<&ClusterKey, &Arc<EndpointSet>> = HashMap::new();
        for (place, (cluster, set)) in before.pairs().enumerate() {
            if !is_at(cluster, place, &snapshot) {
                leaving.insert(&cluster.key, set);
            }
        }
        let mut sets = Vec::with_capacity(snapshot.clusters.len());
        for (place, cluster) in snapshot.clusters.iter().enumerate() {
            if is_at(cluster, place, &before.snapshot)
                && let Some(set) = before.sets.get(place)
            {
                sets.push(Arc::clone(set));
                continue;
            }
            let set = if let Some(set) = leaving.remove(&cluster.key) {
                set.reconfigure(Arc::clone(cluster), &self.options);
                Arc::clone(set)
            } else {
                let watchers = Arc::clone(&self.watchers);
                let set = EndpointSet::watched(Arc::clone(cluster), &self.options, watchers);
                // Also one without endpoints yet is news.
                self.watchers.tell(&Arc::downgrade(&set));
                set
            };
            sets.push(set);
        }
        self.live = Arc::new(Live { snapshot, sets });
        Arc::clone(&self.live)
    }

    /// What [`Self::apply`] returned last.
    pub const fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Takes over where this node is, as Kubernetes tells it.
    pub fn set_locality(&mut self, locality: Locality) {
        Arc::make_mut(&mut self.options).locality = locality;
        for set in &self.live.sets {
            set.reconfigure(set.cluster(), &self.options);
        }
    }

    /// Tells every set that changes from now on, beginning with all there are.
    pub fn subscribe(&self) -> Changes {
        let changes = self.watchers.subscribe();
        for set in &self.live.sets {
            self.watchers.tell(&Arc::downgrade(set));
        }
        changes
    }

    /// Readmits ejected endpoints, moves slow starts on and forgets what is no
    /// longer used, for all sets, present and future. Never ends; belongs on
    /// the control runtime.
    pub fn run_sweeps(&self) -> impl Future<Output = ()> + Send + 'static {
        run_sweeps(self.subscribe())
    }

    /// Carries out active health checks, at most `limit` at once. Never ends;
    /// belongs on the control runtime.
    pub fn run_health_checks(
        &self,
        prober: Arc<dyn Prober>,
        limit: usize,
    ) -> impl Future<Output = ()> + Send + 'static {
        Checker::new(self.subscribe(), prober, limit).run()
    }
}

/// Times at which sets want to be swept.
#[derive(Default)]
struct Agenda {
    /// The time that counts for each set, by its address, which stays taken
    /// while the weak reference is here.
    due: HashMap<usize, (Instant, Weak<EndpointSet>)>,
    /// Times in order, outdated ones among them.
    queue: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Agenda {
    fn plan(&mut self, set: &Arc<EndpointSet>, at: Option<Instant>) {
        let key = Arc::as_ptr(set).addr();
        let Some(at) = at else {
            self.due.remove(&key);
            return;
        };
        let before = self.due.insert(key, (at, Arc::downgrade(set)));
        if before.is_none_or(|(before, _)| before != at) {
            self.queue.push(Reverse((at, key)));
        }
    }

    fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the first entry; the set, when the entry still counts.
    fn pop(&mut self) -> Option<Arc<EndpointSet>> {
        let Reverse((at, key)) = self.queue.pop()?;
        let (planned, set) = self.due.get(&key)?;
        if *planned != at {
            return None;
        }
        let set = set.upgrade();
        self.due.remove(&key);
        set
    }
}

async fn run_sweeps(mut changes: Changes) {
    let mut agenda = Agenda::default();
    loop {
        tokio::select! {
            sets = changes.next() => {
                let now = Instant::now();
                for set in &sets {
                    agenda.plan(set, set.next_sweep(now));
                }
            }
            () = wait(agenda.next()) => {
                if let Some(set) = agenda.pop() {
                    let next = set.sweep(Instant::now());
                    agenda.plan(&set, next);
                }
            }
        }
    }
}

async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
