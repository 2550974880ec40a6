//! Who wants to know when a set changes: the kernel side, the sweeper, the
//! health checker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::set::EndpointSet;

/// A subscription to changes of the endpoint sets: endpoints that came or
/// went, ejections and readmissions, health checks, weights, policy. Each set
/// is named once however often it changed since it was last asked for, so the
/// queue never holds more than there are sets, and no change is lost.
#[derive(Debug)]
pub struct Changes {
    queue: Arc<Queue>,
}

impl Changes {
    /// Waits until something changed and returns the sets that did.
    pub async fn next(&mut self) -> Vec<Arc<EndpointSet>> {
        loop {
            // `notify_one` keeps a permit when nobody waits, so what is queued
            // between the two steps is found at once.
            let changed = std::mem::take(&mut *self.queue.lock());
            let sets: Vec<_> = changed.into_values().filter_map(|w| w.upgrade()).collect();
            if !sets.is_empty() {
                return sets;
            }
            self.queue.notify.notified().await;
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    changed: Mutex<HashMap<usize, Weak<EndpointSet>>>,
    notify: Notify,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Weak<EndpointSet>>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All subscriptions.
#[derive(Debug, Default)]
pub(super) struct Watchers(ArcSwap<Vec<Weak<Queue>>>);

impl Watchers {
    pub(super) fn subscribe(&self) -> Changes {
        let queue = Arc::new(Queue::default());
        self.0.rcu(|list| {
            let live = list.iter().filter(|queue| queue.strong_count() > 0);
            let mut next: Vec<_> = live.cloned().collect();
            next.push(Arc::downgrade(&queue));
            next
        });
        Changes { queue }
    }

    pub(super) fn tell(&self, set: &Weak<EndpointSet>) {
        for queue in self.0.load().iter().filter_map(Weak::upgrade) {
            queue.lock().insert(set.as_ptr().addr(), Weak::clone(set));
            queue.notify.notify_one();
        }
    }
}
