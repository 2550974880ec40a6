//! Worker threads: each has its own single-threaded runtime, so that nothing
//! on the path of a connection takes a lock.
//!
//! A worker that ends while the process serves is a fault of ours: the process
//! then exits with an error and its supervisor starts it again, rather than go
//! on with fewer workers than it says. The same holds for a task that was
//! started with [`WorkerContext::spawn_vital`] and panics. A panic in any other
//! task ends that task alone, which is one connection; it is logged and counted
//! by [`panics`](super::panics).

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::drain::Drain;

/// What a worker's body is given.
#[derive(Clone, Debug)]
pub struct WorkerContext {
    /// Number of this worker, from 0.
    pub index: usize,
    /// Number of workers.
    pub count: usize,
    /// The drain of the process.
    pub drain: Drain,
    events: mpsc::UnboundedSender<Event>,
}

#[derive(Debug)]
enum Event {
    Ready,
    End(WorkerEnd),
}

/// A worker that ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerEnd {
    /// Which.
    pub index: usize,
    /// How.
    pub how: HowEnded,
}

/// How a worker ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HowEnded {
    /// Its body returned.
    Returned,
    /// Its body returned this error.
    Failed(String),
    /// Its body, or this vital task, panicked.
    Panicked(String),
}

impl fmt::Display for WorkerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            HowEnded::Returned => write!(f, "worker {} ended", self.index),
            HowEnded::Failed(error) => write!(f, "worker {} failed: {error}", self.index),
            HowEnded::Panicked(text) => write!(f, "worker {} panicked: {text}", self.index),
        }
    }
}

impl WorkerContext {
    /// Says that this worker takes connections.
    pub fn ready(&self) {
        // Nobody listens any more when the process ends.
        let _ = self.events.send(Event::Ready);
    }

    /// Runs a task on this worker without which the worker is of no use: if it
    /// panics, the process ends. Must be called on the worker itself.
    pub fn spawn_vital(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let vital = Vital {
            name,
            index: self.index,
            events: self.events.clone(),
        };
        tokio::task::spawn_local(async move {
            let _vital = vital;
            task.await;
        })
    }
}

struct Vital {
    name: &'static str,
    index: usize,
    events: mpsc::UnboundedSender<Event>,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.events.send(Event::End(WorkerEnd {
                index: self.index,
                how: HowEnded::Panicked(format!("in its task {}", self.name)),
            }));
        }
    }
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<thread::JoinHandle<()>>,
    events: mpsc::UnboundedReceiver<Event>,
    pulses: Arc<[AtomicU64]>,
    epoch: Instant,
}

/// Time between two pulses of a worker.
const PULSE: Duration = Duration::from_millis(500);

/// Starts `count` workers, each of which runs `body` to its end.
///
/// # Errors
/// When a thread or runtime cannot be made. Workers that were started by then
/// see `drain` end.
pub fn spawn<Body, Run, Fault>(count: usize, drain: &Drain, body: Body) -> io::Result<Workers>
where
    Body: Fn(WorkerContext) -> Run + Clone + Send + 'static,
    Run: Future<Output = Result<(), Fault>>,
    Fault: fmt::Display,
{
    let (sender, events) = mpsc::unbounded_channel();
    let epoch = Instant::now();
    let mut workers = Workers {
        threads: Vec::with_capacity(count),
        events,
        pulses: (0..count).map(|_| AtomicU64::new(0)).collect(),
        epoch,
    };
    for index in 0..count {
        let context = WorkerContext {
            index,
            count,
            drain: drain.clone(),
            events: sender.clone(),
        };
        let body = body.clone();
        let pulses = Arc::clone(&workers.pulses);
        let started = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .and_then(|runtime| {
                thread::Builder::new()
                    .name(format!("egress-worker-{index}"))
                    .spawn(move || {
                        let events = context.events.clone();
                        let run = || {
                            LocalSet::new().block_on(&runtime, async {
                                tokio::task::spawn_local(pulse(pulses, index, epoch));
                                body(context).await
                            })
                        };
                        // The runtime is dropped after a panic, never used.
                        let how = match catch_unwind(AssertUnwindSafe(run)) {
                            Ok(Ok(())) => HowEnded::Returned,
                            Ok(Err(error)) => HowEnded::Failed(error.to_string()),
                            Err(payload) => HowEnded::Panicked(panic_text(payload.as_ref())),
                        };
                        let _ = events.send(Event::End(WorkerEnd { index, how }));
                    })
            });
        match started {
            Ok(thread) => workers.threads.push(thread),
            Err(error) => {
                drain.cut();
                return Err(error);
            }
        }
    }
    Ok(workers)
}

/// Runs as long as the worker's runtime turns.
async fn pulse(pulses: Arc<[AtomicU64]>, index: usize, epoch: Instant) {
    let mut ticks = tokio::time::interval(PULSE);
    loop {
        ticks.tick().await;
        if let Some(own) = pulses.get(index) {
            own.store(millis(epoch.elapsed()), Ordering::Relaxed);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// Reads from any thread whether the workers still turn.
#[derive(Clone, Debug)]
pub struct Pulses {
    pulses: Arc<[AtomicU64]>,
    epoch: Instant,
}

impl Pulses {
    /// The workers whose runtime has not turned for `limit`, which must be
    /// several times half a second.
    pub fn stalled(&self, limit: Duration) -> Vec<usize> {
        let oldest = millis(self.epoch.elapsed()).saturating_sub(millis(limit));
        self.pulses
            .iter()
            .enumerate()
            .filter(|(_, pulse)| pulse.load(Ordering::Relaxed) < oldest)
            .map(|(index, _)| index)
            .collect()
    }
}

impl Workers {
    /// The pulses of these workers.
    pub fn pulses(&self) -> Pulses {
        Pulses {
            pulses: Arc::clone(&self.pulses),
            epoch: self.epoch,
        }
    }

    /// Waits until every worker has said that it is ready.
    ///
    /// # Errors
    /// The first worker that ended instead.
    pub async fn all_ready(&mut self) -> Result<(), WorkerEnd> {
        let mut missing = self.threads.len();
        while missing > 0 {
            match self.events.recv().await {
                Some(Event::Ready) => missing -= 1,
                Some(Event::End(end)) => return Err(end),
                None => break,
            }
        }
        Ok(())
    }

    /// Waits until a worker ends; `None` when none is left.
    pub async fn next_end(&mut self) -> Option<WorkerEnd> {
        loop {
            match self.events.recv().await {
                Some(Event::End(end)) => return Some(end),
                Some(Event::Ready) => {}
                None => return None,
            }
        }
    }

    /// Waits until all have ended, at most `limit`. Returns whether they have.
    pub async fn all_ended(&mut self, limit: Duration) -> bool {
        let all = async { while self.next_end().await.is_some() {} };
        tokio::time::timeout(limit, all).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests"
    )]
    use super::*;

    #[tokio::test]
    async fn workers_get_ready_run_and_end_with_the_drain() {
        let drain = Drain::new();
        let mut workers = spawn(3, &drain, |context| async move {
            assert_eq!(context.count, 3);
            context.ready();
            context.drain.ended().await;
            Ok::<_, io::Error>(())
        })
        .unwrap();
        workers.all_ready().await.unwrap();
        assert!(workers.pulses().stalled(Duration::from_mins(1)).is_empty());
        drain.cut();
        let mut ended = Vec::new();
        while let Some(end) = workers.next_end().await {
            assert_eq!(end.how, HowEnded::Returned);
            ended.push(end.index);
        }
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2]);
    }

    #[tokio::test]
    async fn a_panic_is_told_with_its_text() {
        let drain = Drain::new();
        let mut workers = spawn(2, &drain, |context| async move {
            assert!(context.index != 1, "of test {}", 7);
            context.drain.ended().await;
            Ok::<_, io::Error>(())
        })
        .unwrap();
        let end = workers.all_ready().await.unwrap_err();
        assert_eq!(end.to_string(), "worker 1 panicked: of test 7");
        drain.cut();
        assert!(workers.all_ended(Duration::from_mins(1)).await);
    }

    #[tokio::test]
    async fn an_error_before_ready_is_told() {
        let drain = Drain::new();
        let mut workers = spawn(1, &drain, |_| async move {
            Err::<(), _>(io::Error::other("no listener"))
        })
        .unwrap();
        let end = workers.all_ready().await.unwrap_err();
        assert_eq!(end.how, HowEnded::Failed("no listener".to_owned()));
    }

    #[tokio::test]
    async fn only_vital_tasks_take_the_worker_along() {
        let drain = Drain::new();
        let mut workers = spawn(1, &drain, |context| async move {
            let connection = tokio::task::spawn_local(async { panic!("in a connection") });
            assert!(connection.await.is_err());
            context.ready();
            context.spawn_vital("accept", async { panic!("in the accept loop") });
            context.drain.ended().await;
            Ok::<_, io::Error>(())
        })
        .unwrap();
        workers.all_ready().await.unwrap();
        let end = workers.next_end().await.unwrap();
        assert_eq!(end.how, HowEnded::Panicked("in its task accept".to_owned()));
        drain.cut();
        assert!(workers.all_ended(Duration::from_mins(1)).await);
    }
}
