//! The end of direct connections to addresses that left DNS, once their grace
//! time is over.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::{spawn_blocking, spawn_local};

use super::namespaces::Namespaces;
use crate::capture::{DirectTarget, Kernel};

/// Cuts connections, one round at a time.
pub(super) struct Drains {
    namespaces: Namespaces,
    state: Rc<Cell<State>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Busy,
    /// The kernel cannot do it, and that was told.
    Unable,
}

impl Drains {
    pub(super) fn new(namespaces: Namespaces) -> Self {
        Self {
            namespaces,
            state: Rc::new(Cell::new(State::Idle)),
        }
    }

    /// Aborts the connections to these endpoints, beside other work.
    pub(super) fn cut(&self, kernel: &Arc<Kernel>, targets: Vec<DirectTarget>) {
        if targets.is_empty() || self.state.get() != State::Idle {
            return;
        }
        self.state.set(State::Busy);
        let (kernel, state) = (Arc::clone(kernel), Rc::clone(&self.state));
        let namespaces = self.namespaces.all();
        spawn_local(async move {
            let addresses: Vec<_> = targets.iter().map(|(address, _)| *address).collect();
            let cut = spawn_blocking(move || kernel.cut_direct(&namespaces, &targets)).await;
            state.set(State::Idle);
            match cut {
                Ok(Ok(0)) => {}
                Ok(Ok(count)) => tracing::info!(
                    count,
                    ?addresses,
                    "closed direct connections to addresses that left DNS: the grace time is over"
                ),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    state.set(State::Unable);
                    tracing::warn!(
                        "this kernel cannot close direct connections to addresses that left DNS \
                         (CONFIG_INET_DIAG_DESTROY is not set); they go on until a side closes them"
                    );
                }
                Ok(Err(error)) => tracing::error!(
                    ?addresses,
                    "cannot close direct connections to addresses that left DNS: {error}"
                ),
                Err(_) => tracing::error!("closing direct connections panicked"),
            }
        });
    }
}
