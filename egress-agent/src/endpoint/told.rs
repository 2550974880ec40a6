//! A value that changes seldom and is waited for more seldom still: what
//! tokio's `watch` does, in a tenth of its memory. Every cluster and endpoint
//! has some.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

#[derive(Debug)]
pub(super) struct Told<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Told<T> {
    pub(super) const fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            changed: Notify::const_new(),
        }
    }

    pub(super) fn get(&self) -> T {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the value and wakes everyone who waits.
    pub(super) fn set(&self, value: T) {
        self.change(|_| Some(value));
    }

    /// Sets the value that `next` makes of the one before, if any.
    pub(super) fn change(&self, next: impl FnOnce(T) -> Option<T>) {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = next(*value) {
            *value = next;
            drop(value);
            self.changed.notify_waiters();
        }
    }

    /// Completes when the value is set after this call, awaited or not.
    pub(super) fn next(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Completes once the value is one of those.
    pub(super) async fn wait_for(&self, wanted: impl Fn(T) -> bool) {
        loop {
            // Before the value is looked at, so that no change is missed.
            let changed = self.next();
            if wanted(self.get()) {
                return;
            }
            changed.await;
        }
    }
}
