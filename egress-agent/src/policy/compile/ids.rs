//! Numbers of services, which outlive the snapshots.

use std::collections::HashMap;

use crate::policy::snapshot::{ServiceId, ServiceKey};

/// Gives every service a number that it keeps while it is registered, and that
/// no other service gets while the agent runs.
#[derive(Debug, Default)]
pub struct Ids {
    last: u32,
    generation: u64,
    numbers: HashMap<ServiceKey, (ServiceId, u64)>,
}

impl Ids {
    /// The number of the snapshot that is being made.
    pub(super) fn begin(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// The number of a service, 1 or more. The topmost number stands for
    /// captured DNS and is never given.
    pub(super) fn number(&mut self, key: &ServiceKey) -> ServiceId {
        if let Some((id, seen)) = self.numbers.get_mut(key) {
            *seen = self.generation;
            return *id;
        }
        self.last = self.last.saturating_add(1).min(u32::MAX - 1);
        let id = ServiceId(self.last);
        self.numbers.insert(key.clone(), (id, self.generation));
        id
    }

    /// Forgets services that the snapshot does not have.
    pub(super) fn end(&mut self) {
        let generation = self.generation;
        self.numbers.retain(|_, (_, seen)| *seen == generation);
    }

    /// Forgets those of `keys` that were not numbered again for this snapshot.
    pub(super) fn forget<'k>(&mut self, keys: impl Iterator<Item = &'k ServiceKey>) {
        for key in keys {
            if self
                .numbers
                .get(key)
                .is_some_and(|(_, seen)| *seen != self.generation)
            {
                self.numbers.remove(key);
            }
        }
    }
}
