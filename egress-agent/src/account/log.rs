//! The access log: one JSON object a line, written by a thread of its own.
//!
//! The data path hands lines over through a bounded queue and never waits. A
//! disk that is full or too slow costs lines, which are counted, and nothing
//! else.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::metrics::Metrics;

pub(super) mod json;

/// Bytes of lines waiting for the thread.
const WAITING: usize = 8 << 20;
/// How long a line may wait for others by default.
const LINGER: Duration = Duration::from_millis(100);
/// Messages waiting for the thread.
const QUEUE: usize = 8_192;
/// Bytes written at once.
const BATCH: usize = 64 * 1024;
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

impl LogTarget {
    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::File(path) => Box::new(open_file(path)?),
        })
    }
}

fn open_file(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

#[derive(Debug)]
enum Message {
    /// Whole lines, and how many; where the buffer is wanted back.
    Lines(Vec<u8>, u64, Option<SyncSender<Vec<u8>>>),
    /// Answer when everything before this is written.
    Flush(SyncSender<()>),
}

/// The access log of the process.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: SyncSender<Message>,
    linger: Duration,
    /// Bytes in the queue.
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
        let output = target.open()?;
        let (queue, lines) = sync_channel(QUEUE);
        let log = Self {
            queue,
            linger: LINGER,
            waiting: Arc::default(),
            reopen: Arc::default(),
            dropped: metrics.log_dropped(),
        };
        let writer = Writer {
            target,
            output,
            waiting: log.waiting.clone(),
            reopen: log.reopen.clone(),
            dropped: log.dropped.clone(),
            torn: false,
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

    /// Hands `count` whole lines over, or counts them as lost. The buffer comes
    /// back empty to `back`, if that has room.
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
    target: LogTarget,
    output: Box<dyn Write + Send>,
    waiting: Arc<AtomicUsize>,
    reopen: Arc<AtomicBool>,
    dropped: Arc<Counter>,
    /// The last write failed in the middle of a line.
    torn: bool,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut batch = Vec::new();
        let mut count = 0;
        loop {
            // The first lines of a batch are waited for, the others taken as
            // they are there.
            let message = if count == 0 {
                match messages.recv() {
                    Ok(message) => message,
                    Err(_) => return,
                }
            } else if let Ok(message) = messages.try_recv() {
                message
            } else {
                self.write(&mut batch, &mut count);
                continue;
            };
            match message {
                Message::Lines(mut lines, mut number, back) => {
                    self.waiting.fetch_sub(lines.len(), Ordering::Relaxed);
                    if lines.len() >= BATCH {
                        self.write(&mut batch, &mut count);
                        self.write(&mut lines, &mut number);
                    } else {
                        count += number;
                        batch.extend_from_slice(&lines);
                        if batch.len() >= BATCH {
                            self.write(&mut batch, &mut count);
                        }
                        lines.clear();
                    }
                    if let Some(back) = back {
                        // Where it has no room, none is missed.
                        let _ = back.try_send(lines);
                    }
                }
                Message::Flush(answer) => {
                    self.write(&mut batch, &mut count);
                    let _ = answer.send(());
                }
            }
        }
    }

    /// Writes `count` lines and empties `text`.
    fn write(&mut self, text: &mut Vec<u8>, count: &mut u64) {
        if self.reopen.swap(false, Ordering::Relaxed) {
            match self.target.open() {
                Ok(output) => (self.output, self.torn) = (output, false),
                Err(error) => self.lost(0, &error),
            }
        }
        if !text.is_empty() {
            // What stands before may be half a line.
            let start = if self.torn { &b"\n"[..] } else { &[] };
            let written = self
                .output
                .write_all(start)
                .and_then(|()| self.output.write_all(text))
                .and_then(|()| self.output.flush());
            self.torn = written.is_err();
            if let Err(error) = written {
                self.lost(*count, &error);
            }
        }
        text.clear();
        *count = 0;
    }

    fn lost(&mut self, lines: u64, error: &io::Error) {
        self.dropped.inc_by(lines);
        let due = |last: Instant| last.elapsed() >= COMPLAIN;
        if self.complained.is_none_or(due) {
            self.complained = Some(Instant::now());
            tracing::error!(%error, lines, target = ?self.target, "access log lines are lost");
        }
    }
}
