//! Telling every connection of a worker that the agent drains.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::sync::watch;
use tokio::task::spawn_local;

/// Whether the agent drains, and whom to wake when it begins to. A connection
/// looks at a flag with every poll, and is registered once.
#[derive(Debug, Default)]
pub(super) struct Drain {
    begun: Cell<bool>,
    wakers: RefCell<HashMap<u64, Waker>>,
    next: Cell<u64>,
}

impl Drain {
    /// Follows `draining` with a task of its own, which ends when the drain
    /// begins or the sender is gone.
    pub(super) fn follow(mut draining: watch::Receiver<bool>) -> Rc<Self> {
        let drain = Rc::new(Self::default());
        let told = Rc::downgrade(&drain);
        spawn_local(async move {
            if draining.wait_for(|draining| *draining).await.is_err() {
                return;
            }
            if let Some(drain) = told.upgrade() {
                drain.begun.set(true);
                let wakers = std::mem::take(&mut *drain.wakers.borrow_mut());
                wakers.into_values().for_each(Waker::wake);
            }
        });
        drain
    }

    /// Whether the agent drains.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Has the task that awaits this woken when the drain begins, as long as
    /// what is returned lives.
    pub(super) async fn register(self: &Rc<Self>) -> Registered {
        let number = self.next.get();
        self.next.set(number + 1);
        poll_fn(|cx| {
            let mut wakers = self.wakers.borrow_mut();
            wakers.insert(number, cx.waker().clone());
            Poll::Ready(())
        })
        .await;
        Registered {
            drain: Rc::clone(self),
            number,
        }
    }
}

/// A task that is woken when the drain begins.
pub(super) struct Registered {
    drain: Rc<Drain>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.drain.wakers.borrow_mut().remove(&self.number);
    }
}
