//! The limit on open connections of a worker.

use std::cell::Cell;
use std::rc::Rc;

/// Counts open connections of one worker against a limit.
#[derive(Clone, Debug)]
pub struct Admission {
    limit: usize,
    open: Rc<Cell<usize>>,
}

impl Admission {
    /// At most `limit` connections at a time.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            open: Rc::default(),
        }
    }

    /// A place for one more connection, unless the limit is reached.
    pub fn admit(&self) -> Option<Admitted> {
        let open = self.open.get();
        (open < self.limit).then(|| {
            self.open.set(open + 1);
            Admitted(self.open.clone())
        })
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.open.get()
    }
}

/// The place of one connection.
#[derive(Debug)]
pub struct Admitted(Rc<Cell<usize>>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
