//! The service maps `SERVICES` and `NETWORKS`, kept equal to what is wanted by
//! writing differences only.

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
    /// What the last call could not write.
    pending: Vec<Wanted>,
    /// Entries of both layers that are networks.
    networks: usize,
}

/// What a key should have.
type Wanted = (MapKey, Option<ServiceValue>);

const fn is_network(key: &MapKey) -> bool {
    matches!(key, MapKey::Network(_))
}

impl Services {
    /// Begins with entries that are in the maps already.
    pub(super) fn adopt(&mut self, entries: HashMap<MapKey, ServiceValue>) {
        self.adopted = entries.keys().copied().collect();
        self.networks = entries.keys().filter(|key| is_network(key)).count();
        self.policy = entries;
    }

    /// Removes the adopted entries that [`Self::sync`] has kept so far. Returns
    /// how many.
    pub(super) fn forget_adopted(&mut self, store: &impl Store) -> Result<usize, CaptureError> {
        let adopted = std::mem::take(&mut self.adopted);
        let count = adopted.len();
        for key in adopted {
            self.give_up(store, &key)?;
        }
        Ok(count)
    }

    /// Removes an entry of the policy layer; false when there is none.
    fn give_up(&mut self, store: &impl Store, key: &MapKey) -> Result<bool, CaptureError> {
        if !self.policy.contains_key(key) {
            return Ok(false);
        }
        match self.found.get(key) {
            Some(below) => store.set(key, *below)?,
            None => store.remove(key)?,
        }
        self.policy.remove(key);
        self.networks -= usize::from(is_network(key));
        Ok(true)
    }

    /// Makes the policy layer equal to `desired`.
    pub(super) fn sync(
        &mut self,
        store: &impl Store,
        desired: &HashMap<MapKey, ServiceValue>,
    ) -> Result<Changes, CaptureError> {
        let gone = self.policy.keys().filter(|key| !desired.contains_key(key));
        let gone = gone.map(|key| (*key, None));
        let new = desired.iter().map(|(key, value)| (*key, Some(*value)));
        let changes = new.chain(gone).collect();
        let services: HashSet<u32> = desired.values().map(|value| value.service).collect();
        self.change(store, changes, |service| services.contains(&service))
    }

    /// Changes entries of the policy layer. New and changed entries come first,
    /// so that no address is without an entry for a moment. What could not be
    /// written is tried again by the next call. `is_service` tells which
    /// services there are: adopted entries of others go.
    pub(super) fn change(
        &mut self,
        store: &impl Store,
        mut changes: Vec<Wanted>,
        is_service: impl Fn(u32) -> bool,
    ) -> Result<Changes, CaptureError> {
        if !self.pending.is_empty() {
            let before = std::mem::take(&mut self.pending);
            let newest: HashMap<_, _> = before.into_iter().chain(changes).collect();
            changes = newest.into_iter().collect();
        }
        let result = self.write(store, &changes, is_service);
        if result.is_err() {
            self.pending = changes;
        }
        result
    }

    fn write(
        &mut self,
        store: &impl Store,
        wanted: &[Wanted],
        is_service: impl Fn(u32) -> bool,
    ) -> Result<Changes, CaptureError> {
        let mut changes = Changes::default();
        for (key, value) in wanted {
            let Some(value) = value else { continue };
            self.adopted.remove(key);
            let held = self.policy.get(key);
            if held == Some(value) {
                continue;
            }
            let new = held.is_none();
            store.set(key, *value)?;
            self.policy.insert(*key, *value);
            self.networks += usize::from(new && is_network(key));
            if new {
                changes.added += 1;
            } else {
                changes.changed += 1;
            }
        }
        let gone = wanted.iter().filter(|(_, value)| value.is_none());
        let gone = gone.map(|(key, _)| *key);
        let mut gone: Vec<MapKey> = gone.filter(|key| !self.adopted.contains(key)).collect();
        // A real address is known only once its name is resolved again. The
        // service must be one that there still is.
        let policy = &self.policy;
        gone.extend(self.adopted.extract_if(|key| {
            policy.get(key).is_none_or(|value| {
                value.flags & ENTRY_REAL_ADDRESS == 0 || !is_service(value.service)
            })
        }));
        for key in gone {
            changes.removed += usize::from(self.give_up(store, &key)?);
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
        let new = self.found.insert(key, value).is_none();
        self.networks += usize::from(new && is_network(&key));
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
        let held = self.found.remove(key).is_some();
        self.networks -= usize::from(held && is_network(key));
        Ok(held)
    }

    /// Whether any entry is a network.
    pub(super) const fn has_networks(&self) -> bool {
        self.networks > 0
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
