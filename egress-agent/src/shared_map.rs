//! A map by name for readers that must not wait: workers read it without a
//! lock, and the rare writer replaces one of many small parts.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;

type Part<V> = HashMap<Arc<str>, V>;

/// A map from names to cheaply cloned values. A read is lock-free; a write
/// copies one part, which holds about one in 256 of all entries.
#[derive(Debug)]
pub struct SharedMap<V> {
    parts: Box<[ArcSwap<Part<V>>]>,
    hasher: RandomState,
}

const PARTS: usize = 256;

impl<V: Clone> SharedMap<V> {
    /// An empty map.
    pub fn new() -> Self {
        Self {
            parts: (0..PARTS).map(|_| ArcSwap::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    fn part(&self, key: &str) -> &ArcSwap<Part<V>> {
        let hash = self.hasher.hash_one(key);
        // The remainder is below PARTS, so it fits and is in bounds.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the remainder is below 256"
        )]
        let index = (hash % PARTS as u64) as usize;
        &self.parts[index]
    }

    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<V> {
        self.part(key).load().get(key).cloned()
    }

    /// Sets the value under `key`.
    pub fn insert(&self, key: &Arc<str>, value: V) {
        self.part(key).rcu(|part| {
            let mut part = Part::clone(part);
            part.insert(Arc::clone(key), value.clone());
            part
        });
    }

    /// Removes the value under `key`.
    pub fn remove(&self, key: &str) {
        self.part(key).rcu(|part| {
            let mut part = Part::clone(part);
            part.remove(key);
            part
        });
    }

    /// All values, in no order; each part as it was at one moment.
    pub fn values(&self) -> Vec<V> {
        self.parts
            .iter()
            .flat_map(|part| part.load().values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.load().len()).sum()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<V: Clone> Default for SharedMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_it_was_given() {
        let map = SharedMap::new();
        for n in 0..1000 {
            map.insert(&Arc::from(format!("name-{n}")), n);
        }
        assert_eq!(map.len(), 1000);
        assert_eq!(map.get("name-7"), Some(7));
        map.remove("name-7");
        assert_eq!(map.get("name-7"), None);
        assert_eq!(map.values().len(), 999);
    }
}
