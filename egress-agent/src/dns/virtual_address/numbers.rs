//! Who holds which number.

use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwapOption, Guard};

use super::Holding;
use super::number::{NUMBERS, VirtualAddress};

/// Numbers that get their memory together, when the first of them is given.
const CHUNK: usize = 256;

type Chunk = Box<[ArcSwapOption<Holding>]>;

/// Holdings by number. Read without a lock.
pub(super) struct Numbers(Box<[OnceLock<Chunk>]>);

impl Numbers {
    pub(super) fn new() -> Self {
        Self((0..NUMBERS / CHUNK).map(|_| OnceLock::new()).collect())
    }

    pub(super) fn get(&self, address: VirtualAddress) -> Guard<Option<Arc<Holding>>> {
        let slot = address.slot();
        match self.0[slot / CHUNK].get() {
            Some(chunk) => chunk[slot % CHUNK].load(),
            None => Guard::from_inner(None),
        }
    }

    pub(super) fn set(&self, address: VirtualAddress, holding: Arc<Holding>) {
        let slot = address.slot();
        let make = || (0..CHUNK).map(|_| ArcSwapOption::empty()).collect();
        let chunk = self.0[slot / CHUNK].get_or_init(make);
        chunk[slot % CHUNK].store(Some(holding));
    }
}
