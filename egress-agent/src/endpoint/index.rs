//! A map that is read without a lock and seldom written.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;

const SHARDS: usize = 16;

/// Sharded, so that a write copies only a sixteenth. Keys come from clients,
/// so the hash is keyed at random.
#[derive(Debug)]
pub(super) struct Index<K, V> {
    shards: [ArcSwap<HashMap<K, Arc<V>>>; SHARDS],
    hasher: RandomState,
}

impl<K: Hash + Eq + Clone, V> Index<K, V> {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| ArcSwap::default()),
            hasher: RandomState::new(),
        }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &ArcSwap<HashMap<K, Arc<V>>> {
        let hash = self.hasher.hash_one(key);
        &self.shards[usize::try_from(hash >> 32).unwrap_or(0) % SHARDS]
    }

    pub(super) fn get<Q>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(key).load().get(key).cloned()
    }

    pub(super) fn insert(&self, key: &K, value: &Arc<V>) {
        self.shard(key).rcu(|map| {
            let mut map = HashMap::clone(map);
            map.insert(key.clone(), Arc::clone(value));
            map
        });
    }

    pub(super) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(key).rcu(|map| {
            let mut map = HashMap::clone(map);
            map.remove(key);
            map
        });
    }

    pub(super) fn values(&self) -> Vec<(K, Arc<V>)> {
        let pairs = |shard: &ArcSwap<HashMap<K, Arc<V>>>| {
            let map = shard.load();
            let pairs = map
                .iter()
                .map(|(key, value)| (key.clone(), Arc::clone(value)));
            pairs.collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(pairs).collect()
    }
}
