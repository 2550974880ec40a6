//! Worker threads: each has its own single-threaded runtime, so that nothing
//! on the path of a connection takes a lock.
//!
//! A worker that ends while the process serves is a fault of ours: the process
//! then exits with an error and its supervisor starts it again, rather than go
//! on with fewer workers than it says. The same holds for a task that was
//! started with [`Vitals::spawn`] and panics, on the control thread too. A panic in any other
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

use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;

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
    /// Starts tasks without which this worker is of no use.
    pub vitals: Vitals,
    events: mpsc::UnboundedSender<Event>,
}

#[derive(Debug)]
enum Event {
    Ready,
    /// The last word of a worker.
    End(WorkerEnd),
    /// A vital task panicked; its thread goes on.
    Panic(WorkerEnd),
}

/// A thread that ended, or is of no use any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerEnd {
    /// Which.
    pub thread: Thread,
    /// How.
    pub how: HowEnded,
}

/// A thread of the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thread {
    /// The main thread.
    Control,
    /// The worker of this number.
    Worker(usize),
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("the control thread"),
            Self::Worker(index) => write!(f, "worker {index}"),
        }
    }
}

/// How a worker ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HowEnded {
    /// Its body returned.
    Returned,
    /// Its body returned this error.
    Failed(String),
    /// Its body, or a vital task, panicked.
    Panicked(String),
}

impl fmt::Display for WorkerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            HowEnded::Returned => write!(f, "{} ended", self.thread),
            HowEnded::Failed(error) => write!(f, "{} failed: {error}", self.thread),
            HowEnded::Panicked(text) => write!(f, "{} panicked: {text}", self.thread),
        }
    }
}

impl WorkerContext {
    /// Says that this worker takes connections.
    pub fn ready(&self) {
        // Nobody listens any more when the process ends.
        let _ = self.events.send(Event::Ready);
    }
}

/// Starts tasks without which a thread is of no use.
#[derive(Clone, Debug)]
pub struct Vitals {
    thread: Thread,
    events: mpsc::UnboundedSender<Event>,
}

impl Vitals {
    /// Runs a task on the calling thread, which must be in a local runtime or
    /// a `LocalSet`: if it panics, the process ends.
    pub fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let watch = Watch {
            name,
            vitals: self.clone(),
        };
        tokio::task::spawn_local(async move {
            let _watch = watch;
            task.await;
        })
    }
}

struct Watch {
    name: &'static str,
    vitals: Vitals,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            // Nobody listens any more when the process ends.
            let _ = self.vitals.events.send(Event::Panic(WorkerEnd {
                thread: self.vitals.thread,
                how: HowEnded::Panicked(format!("in its task {}", self.name)),
            }));
        }
    }
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    count: usize,
    alive: usize,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    pulses: Arc<[AtomicU64]>,
    epoch: Instant,
}

/// Time between two pulses of a worker.
const PULSE: Duration = Duration::from_millis(500);

/// Starts `count` workers, each of which runs `body` to its end.
///
/// # Errors
/// When a thread cannot be made. Workers that were started by then see `drain`
/// end.
pub fn spawn<Body, Run, Fault>(count: usize, drain: &Drain, body: Body) -> io::Result<Workers>
where
    Body: Fn(WorkerContext) -> Run + Clone + Send + 'static,
    Run: Future<Output = Result<(), Fault>>,
    Fault: fmt::Display,
{
    let (sender, events) = mpsc::unbounded_channel();
    let epoch = Instant::now();
    let mut workers = Workers {
        count,
        alive: 0,
        events,
        sender,
        pulses: (0..count).map(|_| AtomicU64::new(0)).collect(),
        epoch,
    };
    for index in 0..count {
        let context = WorkerContext {
            index,
            count,
            drain: drain.clone(),
            vitals: Vitals {
                thread: Thread::Worker(index),
                events: workers.sender.clone(),
            },
            events: workers.sender.clone(),
        };
        let body = body.clone();
        let pulses = Arc::clone(&workers.pulses);
        let started = thread::Builder::new()
            .name(format!("egress-worker-{index}"))
            .spawn(move || {
                let events = context.events.clone();
                // The runtime is dropped after a panic, never used.
                let run = || run(context, pulses, epoch, body);
                let how = match catch_unwind(AssertUnwindSafe(run)) {
                    Ok(Ok(())) => HowEnded::Returned,
                    Ok(Err(error)) => HowEnded::Failed(error),
                    Err(payload) => HowEnded::Panicked(panic_text(payload.as_ref())),
                };
                let thread = Thread::Worker(index);
                let _ = events.send(Event::End(WorkerEnd { thread, how }));
            });
        match started {
            // Not joined: it says itself when it ends.
            Ok(_) => workers.alive += 1,
            Err(error) => {
                drain.cut();
                return Err(error);
            }
        }
    }
    Ok(workers)
}

/// A worker on its own thread. The runtime is a local one: its tasks wake each
/// other through a plain queue, where a `LocalSet` would have queues of its own
/// inside the runtime's.
fn run<Body, Run, Fault>(
    context: WorkerContext,
    pulses: Arc<[AtomicU64]>,
    epoch: Instant,
    body: Body,
) -> Result<(), String>
where
    Body: Fn(WorkerContext) -> Run,
    Run: Future<Output = Result<(), Fault>>,
    Fault: fmt::Display,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(|error| format!("its runtime cannot be made: {error}"))?;
    runtime
        .block_on(async {
            tokio::task::spawn_local(pulse(pulses, context.index, epoch));
            body(context).await
        })
        .map_err(|error| error.to_string())
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
    /// Workers whose last pulses were these milliseconds after a start that
    /// was `age` ago.
    #[cfg(test)]
    pub(super) fn double(pulses: &[u64], age: Duration) -> Self {
        Self {
            pulses: pulses.iter().map(|&pulse| AtomicU64::new(pulse)).collect(),
            epoch: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
        }
    }

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

    /// Starts vital tasks on the control thread.
    pub fn control_vitals(&self) -> Vitals {
        Vitals {
            thread: Thread::Control,
            events: self.sender.clone(),
        }
    }

    /// Waits until every worker has said that it is ready.
    ///
    /// # Errors
    /// The first thread that ended instead.
    pub async fn all_ready(&mut self) -> Result<(), WorkerEnd> {
        let mut missing = self.count;
        while missing > 0 {
            match self.events.recv().await {
                Some(Event::Ready) => missing -= 1,
                Some(Event::End(end)) => {
                    self.alive -= 1;
                    return Err(end);
                }
                Some(Event::Panic(end)) => return Err(end),
                None => break,
            }
        }
        Ok(())
    }

    /// Waits until a thread ends or one of its vital tasks panics; `None` when
    /// no worker is left.
    pub async fn next_end(&mut self) -> Option<WorkerEnd> {
        while self.alive > 0 {
            match self.events.recv().await {
                Some(Event::End(end)) => {
                    self.alive -= 1;
                    return Some(end);
                }
                Some(Event::Panic(end)) => return Some(end),
                Some(Event::Ready) => {}
                None => break,
            }
        }
        None
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
    use tokio::task::LocalSet;

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
            ended.push(end.thread);
        }
        ended.sort_by_key(|thread| match thread {
            Thread::Control => usize::MAX,
            Thread::Worker(index) => *index,
        });
        assert_eq!(ended, [0, 1, 2].map(Thread::Worker));
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
            context
                .vitals
                .spawn("accept", async { panic!("in the accept loop") });
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

    #[tokio::test]
    async fn the_control_thread_has_vital_tasks_too() {
        let drain = Drain::new();
        let mut workers = spawn(1, &drain, |context| async move {
            context.drain.ended().await;
            Ok::<_, io::Error>(())
        })
        .unwrap();
        let vitals = workers.control_vitals();
        LocalSet::new()
            .run_until(async {
                vitals.spawn("heartbeat", async { panic!("of test") });
                let end = workers.next_end().await.unwrap();
                assert_eq!(end.thread, Thread::Control);
                drain.cut();
                assert!(workers.all_ended(Duration::from_mins(1)).await);
            })
            .await;
    }

    #[test]
    fn a_worker_without_a_recent_pulse_is_stalled() {
        let pulses = Pulses::double(&[0, 9_000, 12_000], Duration::from_secs(10));
        assert_eq!(pulses.stalled(Duration::from_secs(5)), [0]);
        assert!(pulses.stalled(Duration::from_secs(20)).is_empty());
    }
}
