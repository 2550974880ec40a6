//! The access log: one JSON object a line.
//!
//! Workers write into a pipe or socket as far as it has room; a thread writes
//! the rest, and all that goes to files. The data path hands lines over through
//! a bounded queue and never waits. A disk that is full or a reader that is too
//! slow costs lines, which are counted, and nothing else.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::metrics::Metrics;

pub(super) mod json;
mod output;

use output::{Output, Written};

/// Bytes of lines waiting for the thread.
const WAITING: usize = 8 << 20;
/// How long a line may wait for others by default.
const LINGER: Duration = Duration::from_millis(100);
/// Messages waiting for the thread.
const QUEUE: usize = 8_192;
/// Bytes written at once: half of what a pipe holds, so that a reader can empty
/// one half while the other is filled. More would cost workers more of their
/// cache, and time in one piece.
pub(super) const BATCH: usize = 32 * 1024;
/// How often problems of the log are told.
const COMPLAIN: Duration = Duration::from_mins(1);

/// Where lines go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogTarget {
    /// `-`.
    Stdout,
    /// Appended to a file, made with mode 0640 when it does not exist.
    File(PathBuf),
}

#[derive(Debug)]
enum Message {
    /// Whole lines, and how many; where the buffer is wanted back.
    Lines(Vec<u8>, u64, Option<SyncSender<Vec<u8>>>),
    /// A worker could write a part, and has left the rest with the output.
    Rest,
    /// Answer when everything before this is written.
    Flush(SyncSender<()>),
}

/// The access log of the process.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: SyncSender<Message>,
    linger: Duration,
    output: Arc<Mutex<Output>>,
    /// Bytes of lines that the thread has yet to write.
    waiting: Arc<AtomicUsize>,
    reopen: Arc<AtomicBool>,
    dropped: Arc<Counter>,
}

impl AccessLog {
    /// Opens the log and starts its thread, which ends when the last handle is
    /// dropped.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn open(target: LogTarget, metrics: &Metrics) -> io::Result<Self> {
        let output = Arc::new(Mutex::new(Output::open(target)?));
        let (queue, lines) = sync_channel(QUEUE);
        let log = Self {
            queue,
            linger: LINGER,
            output: Arc::clone(&output),
            waiting: Arc::default(),
            reopen: Arc::default(),
            dropped: metrics.log_dropped(),
        };
        let writer = Writer {
            output,
            waiting: log.waiting.clone(),
            reopen: log.reopen.clone(),
            dropped: log.dropped.clone(),
            complained: None,
        };
        thread::Builder::new()
            .name("egress-log".to_owned())
            .spawn(move || writer.run(&lines))?;
        Ok(log)
    }

    /// Lets lines wait for others so long, to be written with them.
    #[must_use]
    pub fn lingering(self, linger: Duration) -> Self {
        Self { linger, ..self }
    }

    pub(super) fn linger(&self) -> Duration {
        self.linger
    }

    /// Opens the file anew before the next line (SIGHUP, after a rotation).
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }

    /// Waits, at most for `limit`, until all lines so far are written. Blocks:
    /// for the end of the process.
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let (answer, done) = sync_channel(1);
        let mut message = Message::Flush(answer);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => message = back,
                Err(_) => return false,
            }
            thread::sleep(Duration::from_millis(1));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        done.recv_timeout(left).is_ok()
    }

    /// Writes whole lines, if that needs no waiting and none are before them.
    /// Whether they are taken care of.
    pub(super) fn write_now(&self, text: &[u8]) -> bool {
        if self.waiting.load(Ordering::Acquire) > 0 || self.reopen.load(Ordering::Relaxed) {
            return false;
        }
        // Whoever has it writes now, and may wait.
        let Ok(mut output) = self.output.try_lock() else {
            return false;
        };
        match output.write_now(text) {
            Written::All => true,
            Written::Part => {
                drop(output);
                // A full queue wakes the thread as well.
                let _ = self.queue.try_send(Message::Rest);
                true
            }
            Written::Nothing => false,
        }
    }

    /// Hands `count` whole lines over to the thread, or counts them as lost. The
    /// buffer comes back empty to `back`, if that has room.
    pub(super) fn write(&self, text: Vec<u8>, count: u64, back: Option<SyncSender<Vec<u8>>>) {
        let bytes = text.len();
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let lines = Message::Lines(text, count, back);
        if waiting > WAITING || self.queue.try_send(lines).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.dropped.inc_by(count);
        }
    }
}

struct Writer {
    output: Arc<Mutex<Output>>,
    waiting: Arc<AtomicUsize>,
    reopen: Arc<AtomicBool>,
    dropped: Arc<Counter>,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut batch = Batch::default();
        loop {
            // The first lines of a batch are waited for, the others taken as
            // they are there.
            let message = if batch.count == 0 {
                match messages.recv() {
                    Ok(message) => message,
                    Err(_) => return,
                }
            } else if let Ok(message) = messages.try_recv() {
                message
            } else {
                self.write(&mut batch);
                continue;
            };
            match message {
                Message::Lines(lines, count, back) => {
                    let mut lines = Batch { text: lines, count };
                    if lines.text.len() >= BATCH {
                        self.write(&mut batch);
                        self.write(&mut lines);
                    } else {
                        batch.count += lines.count;
                        batch.text.extend_from_slice(&lines.text);
                        if batch.text.len() >= BATCH {
                            self.write(&mut batch);
                        }
                        lines.text.clear();
                    }
                    if let Some(back) = back {
                        // Where it has no room, none is missed.
                        let _ = back.try_send(lines.text);
                    }
                }
                Message::Rest => self.write(&mut batch),
                Message::Flush(answer) => {
                    self.write(&mut batch);
                    let _ = answer.send(());
                }
            }
        }
    }

    /// Writes what a worker has left, then `batch`, and empties it.
    fn write(&mut self, batch: &mut Batch) {
        let output = Arc::clone(&self.output);
        // Nothing of it is half done where somebody panicked.
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err((lines, error)) = output.write_rest() {
            self.lost(lines, &error, output.target());
        }
        if self.reopen.swap(false, Ordering::Relaxed)
            && let Err(error) = output.reopen()
        {
            self.lost(0, &error, output.target());
        }
        if let Err(error) = output.write_all(&batch.text) {
            self.lost(batch.count, &error, output.target());
        }
        // Only now may a worker write what comes after it.
        self.waiting.fetch_sub(batch.text.len(), Ordering::Release);
        batch.text.clear();
        batch.count = 0;
    }

    fn lost(&mut self, lines: u64, error: &io::Error, target: &LogTarget) {
        self.dropped.inc_by(lines);
        let due = |last: Instant| last.elapsed() >= COMPLAIN;
        if self.complained.is_none_or(due) {
            self.complained = Some(Instant::now());
            tracing::error!(%error, lines, ?target, "access log lines are lost");
        }
    }
}

/// Whole lines, and how many.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    count: u64,
}
