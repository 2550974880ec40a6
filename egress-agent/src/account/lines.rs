//! The lines of one worker on their way to the log's thread.

use std::cell::{Cell, RefCell};

use tokio::sync::Notify;
use tokio::time::sleep;

use super::log::AccessLog;

/// Bytes of lines that are handed over at once.
const FULL: usize = 32 * 1024;

/// Lines are written into a buffer of the worker's own; the thread is woken
/// for many of them.
#[derive(Debug)]
pub(super) struct Lines {
    log: AccessLog,
    text: RefCell<Vec<u8>>,
    count: Cell<u64>,
    /// Somebody hands over what has waited for long enough.
    gathers: Cell<bool>,
    begun: Notify,
}

impl Lines {
    pub(super) fn new(log: AccessLog) -> Self {
        Self {
            log,
            text: RefCell::default(),
            count: Cell::new(0),
            gathers: Cell::new(false),
            begun: Notify::new(),
        }
    }

    /// Takes a line, which `write` appends without its end.
    pub(super) fn line(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let full = {
            let mut text = self.text.borrow_mut();
            write(&mut text);
            text.push(b'\n');
            text.len() >= FULL
        };
        let count = self.count.get() + 1;
        self.count.set(count);
        if full || !self.gathers.get() {
            self.hand_over();
        } else if count == 1 {
            self.begun.notify_one();
        }
    }

    /// Lines may wait for others as long as what is returned lives, if the log
    /// lets them.
    pub(super) fn gather(&self) -> Gathering<'_> {
        self.gathers.set(!self.log.linger().is_zero());
        Gathering(self)
    }

    /// Completes when the first line has waited for long enough.
    pub(super) async fn gathered(&self) {
        self.begun.notified().await;
        sleep(self.log.linger()).await;
    }

    /// Gives the thread what there is.
    pub(super) fn hand_over(&self) {
        let count = self.count.replace(0);
        if count > 0 {
            let mut text = self.text.borrow_mut();
            let room = text.capacity();
            let text = std::mem::replace(&mut *text, Vec::with_capacity(room));
            self.log.write(text, count);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// While it lives, lines wait for others.
pub(super) struct Gathering<'a>(&'a Lines);

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        self.0.gathers.set(false);
        self.0.hand_over();
    }
}
