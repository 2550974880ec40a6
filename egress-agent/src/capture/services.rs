//! The service maps `SERVICES` and `NETWORKS`, kept equal to what is wanted by
//! writing differences only.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use egress_common::{ENTRY_REAL_ADDRESS, ExactKey, NetworkPrefix, ServiceValue};

use super::error::CaptureError;
use super::sys::Table;

/// A key of either service map.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MapKey {
    /// A single address, in `SERVICES`.
    Exact(ExactKey),
    /// A network or a whole port, in `NETWORKS`.
    Network(NetworkPrefix),
}

/// How many entries a call wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// New entries.
    pub added: usize,
    /// Entries with a new value.
    pub changed: usize,
    /// Entries that are gone.
    pub removed: usize,
}

/// Where entries are written.
pub(super) trait Store {
    /// Makes or replaces an entry.
    fn set(&self, key: &MapKey, value: ServiceValue) -> Result<(), CaptureError>;
    /// Removes an entry, if there is one.
    fn remove(&self, key: &MapKey) -> Result<(), CaptureError>;
}

/// The two maps in the kernel.
#[derive(Debug)]
pub(super) struct KernelStore {
    pub(super) exact: Table<ExactKey, ServiceValue>,
    pub(super) networks: Table<NetworkPrefix, ServiceValue>,
}

impl Store for KernelStore {
    fn set(&self, key: &MapKey, value: ServiceValue) -> Result<(), CaptureError> {
        match key {
            MapKey::Exact(key) => self
                .exact
                .set(key, &value)
                .map_err(|error| CaptureError::map("SERVICES", error)),
            MapKey::Network(key) => self
                .networks
                .set(key, &value)
                .map_err(|error| CaptureError::map("NETWORKS", error)),
        }
    }

    fn remove(&self, key: &MapKey) -> Result<(), CaptureError> {
        match key {
            MapKey::Exact(key) => self
                .exact
                .remove(key)
                .map_err(|error| CaptureError::map("SERVICES", error)),
            MapKey::Network(key) => self
                .networks
                .remove(key)
                .map_err(|error| CaptureError::map("NETWORKS", error)),
        }
        .map(drop)
    }
}

impl KernelStore {
    /// All that the maps hold.
    pub(super) fn entries(&self) -> Result<HashMap<MapKey, ServiceValue>, CaptureError> {
        let exact = self
            .exact
            .entries()
            .map_err(|error| CaptureError::map("SERVICES", error))?;
        let networks = self
            .networks
            .entries()
            .map_err(|error| CaptureError::map("NETWORKS", error))?;
        let exact = exact.into_iter().map(|(k, v)| (MapKey::Exact(k), v));
        let networks = networks.into_iter().map(|(k, v)| (MapKey::Network(k), v));
        Ok(exact.chain(networks).collect())
    }
}

/// What the maps hold, in two layers: entries of the policy, and below them
/// entries for addresses that were found at run time.
#[derive(Debug, Default)]
pub(super) struct Services {
    policy: HashMap<MapKey, ServiceValue>,
    found: HashMap<MapKey, ServiceValue>,
    /// Keys of the policy layer that were there before this agent, and that it
    /// has not wanted yet.
    adopted: HashSet<MapKey>,
}

impl Services {
    /// Begins with entries that are in the maps already.
    pub(super) fn adopt(&mut self, entries: HashMap<MapKey, ServiceValue>) {
        self.adopted = entries.keys().copied().collect();
        self.policy = entries;
    }

    /// Removes the adopted entries that [`Self::sync`] has kept so far. Returns
    /// how many.
    pub(super) fn forget_adopted(&mut self, store: &impl Store) -> Result<usize, CaptureError> {
        let adopted = std::mem::take(&mut self.adopted);
        let count = adopted.len();
        for key in adopted {
            match self.found.get(&key) {
                Some(below) => store.set(&key, *below)?,
                None => store.remove(&key)?,
            }
            self.policy.remove(&key);
        }
        Ok(count)
    }

    /// Makes the policy layer equal to `desired`. New and changed entries come
    /// first, so that no address is without an entry for a moment. After an
    /// error the call can be repeated.
    pub(super) fn sync(
        &mut self,
        store: &impl Store,
        desired: &HashMap<MapKey, ServiceValue>,
    ) -> Result<Changes, CaptureError> {
        let mut changes = Changes::default();
        if !self.adopted.is_empty() {
            // A real address is known only once its name is resolved again.
            // The service must be one that there still is.
            let services: HashSet<u32> = desired.values().map(|value| value.service).collect();
            let policy = &self.policy;
            self.adopted.retain(|key| {
                !desired.contains_key(key)
                    && policy.get(key).is_some_and(|value| {
                        value.flags & ENTRY_REAL_ADDRESS != 0 && services.contains(&value.service)
                    })
            });
        }
        for (key, value) in desired {
            match self.policy.entry(*key) {
                Entry::Occupied(held) if held.get() == value => {}
                Entry::Occupied(mut held) => {
                    store.set(key, *value)?;
                    held.insert(*value);
                    changes.changed += 1;
                }
                Entry::Vacant(place) => {
                    store.set(key, *value)?;
                    place.insert(*value);
                    changes.added += 1;
                }
            }
        }
        let gone: Vec<MapKey> = self
            .policy
            .keys()
            .filter(|key| !desired.contains_key(key) && !self.adopted.contains(key))
            .copied()
            .collect();
        for key in gone {
            match self.found.get(&key) {
                Some(below) => store.set(&key, *below)?,
                None => store.remove(&key)?,
            }
            self.policy.remove(&key);
            changes.removed += 1;
        }
        Ok(changes)
    }

    /// Adds or changes an entry of the lower layer.
    pub(super) fn add(
        &mut self,
        store: &impl Store,
        key: MapKey,
        value: ServiceValue,
    ) -> Result<(), CaptureError> {
        if !self.policy.contains_key(&key) && self.found.get(&key) != Some(&value) {
            store.set(&key, value)?;
        }
        self.found.insert(key, value);
        Ok(())
    }

    /// Removes an entry of the lower layer.
    pub(super) fn remove(
        &mut self,
        store: &impl Store,
        key: &MapKey,
    ) -> Result<bool, CaptureError> {
        if self.found.contains_key(key) && !self.policy.contains_key(key) {
            store.remove(key)?;
        }
        Ok(self.found.remove(key).is_some())
    }

    /// Whether any entry is a network.
    pub(super) fn has_networks(&self) -> bool {
        self.policy
            .keys()
            .chain(self.found.keys())
            .any(|key| matches!(key, MapKey::Network(_)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::cell::{Cell, RefCell};

    use egress_common::{VERDICT_PROXY, mapped};
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Memory {
        entries: RefCell<HashMap<MapKey, ServiceValue>>,
        writes: Cell<usize>,
    }

    impl Store for Memory {
        fn set(&self, key: &MapKey, value: ServiceValue) -> Result<(), CaptureError> {
            self.writes.set(self.writes.get() + 1);
            self.entries.borrow_mut().insert(*key, value);
            Ok(())
        }

        fn remove(&self, key: &MapKey) -> Result<(), CaptureError> {
            self.writes.set(self.writes.get() + 1);
            self.entries.borrow_mut().remove(key);
            Ok(())
        }
    }

    fn key(last: u8) -> MapKey {
        MapKey::Exact(ExactKey {
            scope: 0,
            port: 80,
            reserved: 0,
            address: mapped([240, 240, 0, last]),
        })
    }

    fn value(service: u32) -> ServiceValue {
        ServiceValue {
            service,
            verdict: VERDICT_PROXY,
            on_failure: 0,
            specificity: 128,
            flags: 0,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Sync(Vec<(u8, u32)>),
        Add(u8, u32),
        Remove(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::collection::vec((0_u8..6, 0_u32..3), 0..6).prop_map(Step::Sync),
            (0_u8..6, 0_u32..3).prop_map(|(k, v)| Step::Add(k, v)),
            (0_u8..6).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn the_store_holds_the_policy_over_what_was_found(
            steps in prop::collection::vec(step(), 0..20)
        ) {
            let store = Memory::default();
            let mut services = Services::default();
            let (mut policy, mut found) = (HashMap::new(), HashMap::new());
            for step in steps {
                match step {
                    Step::Sync(entries) => {
                        policy = entries
                            .into_iter()
                            .map(|(k, v)| (key(k), value(v)))
                            .collect();
                        services.sync(&store, &policy).unwrap();
                        let before = store.writes.get();
                        prop_assert_eq!(
                            services.sync(&store, &policy).unwrap(),
                            Changes::default()
                        );
                        prop_assert_eq!(store.writes.get(), before);
                    }
                    Step::Add(k, v) => {
                        found.insert(key(k), value(v));
                        services.add(&store, key(k), value(v)).unwrap();
                    }
                    Step::Remove(k) => {
                        let held = found.remove(&key(k)).is_some();
                        prop_assert_eq!(services.remove(&store, &key(k)).unwrap(), held);
                    }
                }
                let mut expected: HashMap<MapKey, ServiceValue> = found.clone();
                expected.extend(policy.clone());
                prop_assert_eq!(&*store.entries.borrow(), &expected);
            }
        }
    }
}
