//! What connections have in common.

use std::rc::Rc;

use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::endpoint::{ConnectionGuard, Permit};

/// Runs futures on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// Places of one connection under the limits. When they are given back, the
/// next in the queue is woken.
pub(super) struct Places {
    held: Option<(Permit, ConnectionGuard)>,
    wake: Rc<Notify>,
}

impl Places {
    pub(super) fn new(permit: Permit, guard: ConnectionGuard, wake: &Rc<Notify>) -> Self {
        Self {
            held: Some((permit, guard)),
            wake: Rc::clone(wake),
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        drop(self.held.take());
        self.wake.notify_waiters();
    }
}
