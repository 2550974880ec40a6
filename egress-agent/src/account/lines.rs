//! The lines of one worker on their way out.

use std::cell::{Cell, RefCell};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::Notify;
use tokio::time::sleep;

use super::log::{AccessLog, BATCH};

/// Emptied buffers that wait to be used again.
const SPARE: usize = 2;

/// Lines are written into a buffer of the worker's own, and many of them go out
/// at once.
#[derive(Debug)]
pub(super) struct Lines {
    log: AccessLog,
    text: RefCell<Vec<u8>>,
    /// Where the thread puts buffers that it has written, and where they are
    /// taken from.
    back: SyncSender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
    count: Cell<u64>,
    /// Bytes that were handed over last, to have room for as many.
    last: Cell<usize>,
    /// Somebody hands over what has waited for long enough.
    gathers: Cell<bool>,
    begun: Notify,
}

impl Lines {
    pub(super) fn new(log: AccessLog) -> Self {
        let (back, spare) = sync_channel(SPARE);
        Self {
            log,
            text: RefCell::default(),
            back,
            spare,
            count: Cell::new(0),
            last: Cell::new(0),
            gathers: Cell::new(false),
            begun: Notify::new(),
        }
    }

    /// Takes a line, which `write` appends without its end.
    pub(super) fn line(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let full = {
            let mut text = self.text.borrow_mut();
            if text.capacity() == 0 {
                text.reserve(self.last.get());
            }
            write(&mut text);
            text.push(b'\n');
            text.len() >= BATCH
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

    /// Writes what there is, or gives it to the thread.
    pub(super) fn hand_over(&self) {
        let count = self.count.replace(0);
        if count == 0 {
            return;
        }
        let mut text = self.text.borrow_mut();
        // Buffers are kept while lines come fast, and not beyond.
        let fast = text.len() >= BATCH;
        if self.log.write_now(&text) {
            self.last.set(text.len());
            if fast {
                text.clear();
            } else {
                *text = Vec::new();
            }
            return;
        }
        let empty = if fast {
            let spare = self.spare.try_recv();
            spare.unwrap_or_else(|_| Vec::with_capacity(text.capacity()))
        } else {
            self.spare.try_iter().for_each(drop);
            Vec::new()
        };
        let text = std::mem::replace(&mut *text, empty);
        self.last.set(text.len());
        self.log.write(text, count, fast.then(|| self.back.clone()));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fmt::Write as _;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd as _;
    use std::time::Duration;

    use super::*;
    use crate::account::{LogTarget, Metrics};

    #[test]
    fn many_lines_are_written_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::open(LogTarget::File(path.clone()), &Metrics::new()).unwrap();
        let lines = Lines::new(log.clone());
        let mut wanted = String::new();
        for pause in [false, true] {
            let _gathering = lines.gather();
            for number in 0..10_000 {
                lines.line(|text| write!(text, "{number:>99}").unwrap());
                writeln!(wanted, "{number:>99}").unwrap();
                if pause && number % 1_000 == 0 {
                    // A few at a time, as when the time for them is over.
                    lines.hand_over();
                }
            }
        }
        assert!(log.flush(Duration::from_secs(10)));
        assert!(std::fs::read_to_string(&path).unwrap() == wanted);
    }

    /// Some of the lines are written by their workers, some by the thread, and
    /// some by both.
    #[test]
    fn lines_through_a_pipe_stay_whole_and_in_order_whoever_writes_them() {
        const WORKERS: usize = 3;
        const LINES: usize = 8_000;
        let (mut reader, writer) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let metrics = Metrics::new();
        let log = AccessLog::open(LogTarget::File(path.into()), &metrics).unwrap();
        let reading = std::thread::spawn(move || {
            let (mut text, mut piece) = (String::new(), vec![0; 50_000]);
            for size in [1, 50_000, 700, 9_000].into_iter().cycle() {
                match reader.read(&mut piece[..size]).unwrap() {
                    0 => break,
                    read => text.push_str(std::str::from_utf8(&piece[..read]).unwrap()),
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            text
        });
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let lines = Lines::new(log.clone());
                std::thread::spawn(move || {
                    let _gathering = lines.gather();
                    for number in 0..LINES {
                        let width = 1 + number % 200;
                        lines
                            .line(|text| write!(text, "{worker} {number} {:width$}|", "").unwrap());
                        if number % 1_000 == 0 {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        assert!(log.flush(Duration::from_secs(30)));
        assert_eq!(metrics.log_dropped().get(), 0);
        drop((log, writer));
        let mut next = [0; WORKERS];
        for line in reading.join().unwrap().lines() {
            let mut words = line.split(' ');
            let worker: usize = words.next().unwrap().parse().unwrap();
            let number: usize = words.next().unwrap().parse().unwrap();
            assert_eq!(number, next[worker], "{line}");
            assert!(line.ends_with('|') && line.len() > number % 200, "{line}");
            next[worker] += 1;
        }
        assert_eq!(next, [LINES; WORKERS]);
    }
}
