//! Numbers of services, which outlive the snapshots.

use std::collections::HashMap;

use crate::numbers::{Fingerprint, Known, fingerprint};
use crate::policy::snapshot::{ServiceId, ServiceKey};

/// Gives every service a number that it keeps while it is registered, and that
/// no other service gets while the agent runs, or any after it that knows the
/// numbers of the one before.
#[derive(Debug, Default)]
pub struct Ids {
    last: u32,
    generation: u64,
    numbers: HashMap<ServiceKey, (ServiceId, u64)>,
    known: Known,
}

impl ServiceKey {
    /// The service's name in the kernel's table of numbers.
    pub fn fingerprint(&self) -> Fingerprint {
        let host = self.host.to_string();
        fingerprint(&[
            self.namespace.as_bytes(),
            host.as_bytes(),
            &self.port.to_be_bytes(),
        ])
    }
}

impl Ids {
    /// Goes on with the numbers that an agent before gave out.
    pub fn go_on_with(&mut self, known: Known) {
        self.last = self.last.max(known.last());
        self.known = known;
    }

    /// The number of the snapshot that is being made.
    pub(super) fn begin(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// The number of a service, 1 or more.
    pub(super) fn number(&mut self, key: &ServiceKey) -> ServiceId {
        if let Some((id, seen)) = self.numbers.get_mut(key) {
            *seen = self.generation;
            return *id;
        }
        let number = self.known.get(&key.fingerprint()).unwrap_or_else(|| {
            // The two topmost numbers stand for captured DNS and the self-test.
            self.last = self.last.saturating_add(1).min(u32::MAX - 2);
            self.last
        });
        let id = ServiceId(number);
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
