//! Virtual addresses across restarts: read from the state directory, and kept
//! there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tokio::sync::Notify;

use super::holding::Clock;
use super::number::VirtualAddress;
use super::numbers::Numbers;
use super::{DERIVED_LIMIT, Holding, QUARANTINE, VirtualAddresses};
use crate::dns::DnsError;
use crate::dns::state::{self, Record};
use crate::shared_map::SharedMap;

impl VirtualAddresses {
    /// Reads the state directory (which must exist) and keeps it up to date
    /// through [`save`](Self::save) and [`keep_saved`](Self::keep_saved).
    pub fn open(directory: &Path) -> Self {
        Self::restored(Some(directory.to_owned()), state::load(directory))
    }

    pub(super) fn restored(directory: Option<PathBuf>, records: Vec<Record>) -> Self {
        let this = Self {
            held: SharedMap::new(),
            numbers: Numbers::new(),
            register: Mutex::default(),
            changed: Notify::new(),
            clock: Clock::start(),
            directory,
            derived_limit: DERIVED_LIMIT,
        };
        let now = this.clock.now();
        let mut register = this.lock();
        for record in records {
            let address = VirtualAddress(record.index);
            let name: Arc<str> = record.name.into();
            let taken = this.numbers.get(address).is_some();
            if taken || !address.usable() || register.names.contains_key(&name) {
                tracing::warn!(
                    name = &*name,
                    number = record.index,
                    "the record of virtual addresses gives this number or name twice, or a number that is not to be given; skipped"
                );
                continue;
            }
            // Until a policy names it again, it counts as released now: it was
            // in use up to the restart.
            let released = match record.released {
                0 => {
                    if record.derived {
                        register.restored.insert(Arc::clone(&name));
                    }
                    now
                }
                earlier => earlier.min(now),
            };
            let holding = Arc::new(Holding {
                name: Arc::clone(&name),
                address,
                derived: record.derived,
                sequence: 0,
                ready: AtomicBool::new(false),
                used: AtomicU64::new(record.used.min(now)),
                released: AtomicU64::new(released),
            });
            this.numbers.set(address, Arc::clone(&holding));
            register.names.insert(name, holding);
        }
        drop(register);
        this
    }

    /// Writes the state file, off the calling thread's runtime.
    ///
    /// # Errors
    /// [`DnsError::State`].
    pub async fn save(&self) -> Result<(), DnsError> {
        let Some(directory) = self.directory.clone() else {
            return Ok(());
        };
        let mut records: Vec<Record> = {
            let register = self.lock();
            // What nobody can remember any more need not be kept.
            let kept = |holding: &&Arc<Holding>| !self.expired(holding, QUARANTINE);
            let names = register.names.values().filter(kept);
            names.map(|holding| holding.record()).collect()
        };
        records.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let path = directory.clone();
        match tokio::task::spawn_blocking(move || state::save(&directory, records)).await {
            Ok(result) => result,
            Err(error) => Err(DnsError::State {
                path,
                source: std::io::Error::other(error),
            }),
        }
    }

    /// Keeps the state file at most about a second behind, for ever. A name
    /// whose address was given out in the last second before a crash gets the
    /// same one again unless another name of the same hash is faster.
    pub async fn keep_saved(&self) -> std::convert::Infallible {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Err(error) = self.save().await {
                tracing::warn!("{error}; virtual addresses may change at the next restart");
            }
        }
    }
}
