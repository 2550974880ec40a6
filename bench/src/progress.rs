//! What the bench is doing, on the terminal: one line that changes; plain
//! lines where standard error is no terminal.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

pub(crate) struct Progress {
    total: usize,
    done: usize,
    started: Instant,
    terminal: bool,
    printed: Instant,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        let now = Instant::now();
        Self {
            total,
            done: 0,
            started: now,
            terminal: stderr().is_terminal(),
            printed: now,
        }
    }

    /// The next step begins.
    pub(crate) fn step(&mut self, what: &str) {
        self.done += 1;
        let seconds = self.started.elapsed().as_secs();
        let line = format!("[{:>3}/{}] {seconds:>3} s  {what}", self.done, self.total);
        if self.terminal {
            // A terminal that is gone must not end the bench.
            let _ = write!(stderr(), "\r\x1b[K{line}");
            let _ = stderr().flush();
        } else if self.printed.elapsed().as_secs() >= 5 || self.done == 1 {
            self.printed = Instant::now();
            let _ = writeln!(stderr(), "{line}");
        }
    }

    /// Something to be kept on the screen.
    pub(crate) fn say(&self, what: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(stderr(), "{clear}{what}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.say(&format!(
            "measured in {} s",
            self.started.elapsed().as_secs()
        ));
    }
}
