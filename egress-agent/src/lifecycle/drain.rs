//! Counts what is open, and ends it: first no more is taken, then what is open
//! may finish until a deadline, then the rest is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

/// The drain of the process; shared by all threads.
#[derive(Clone, Debug)]
pub struct Drain(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    live: AtomicUsize,
    /// Those of them that were opened after the drain had begun.
    late: AtomicUsize,
    begun: AtomicBool,
    phase: watch::Sender<Phase>,
    idle: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Serving,
    Draining { until: Instant },
    Ended,
}

/// How a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Everything finished by itself.
    Clean,
    /// This many were still open at the deadline.
    Cut(usize),
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// Nothing open, nothing draining.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            live: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            begun: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Serving),
            idle: Notify::new(),
        }))
    }

    /// Counts one open connection until the guard is dropped. Always given,
    /// also while draining: what stood in the accept queue is served as well.
    pub fn enter(&self) -> DrainGuard {
        self.0.live.fetch_add(1, Ordering::Relaxed);
        let late = self.0.begun.load(Ordering::Relaxed);
        if late {
            self.0.late.fetch_add(1, Ordering::Relaxed);
        }
        DrainGuard {
            shared: Arc::clone(&self.0),
            late,
        }
    }

    /// Open connections that were there when the drain began.
    pub fn from_before(&self) -> usize {
        self.live()
            .saturating_sub(self.0.late.load(Ordering::Relaxed))
    }

    /// Open connections.
    pub fn live(&self) -> usize {
        self.0.live.load(Ordering::Relaxed)
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        *self.0.phase.borrow() != Phase::Serving
    }

    /// Begins the drain. A second call can only bring the deadline nearer.
    pub fn begin(&self, deadline: Duration) {
        self.0.begun.store(true, Ordering::Relaxed);
        let new = Instant::now().checked_add(deadline);
        self.0.phase.send_if_modified(|phase| {
            // A deadline past the end of time is none that anyone will see.
            let Some(until) = new else { return false };
            match phase {
                Phase::Serving => *phase = Phase::Draining { until },
                Phase::Draining { until: old } if until < *old => *old = until,
                _ => return false,
            }
            true
        });
    }

    /// Ends the drain now: what is open is cut.
    pub fn cut(&self) {
        self.0.phase.send_replace(Phase::Ended);
    }

    /// Waits until the drain begins: take nothing new, close what is idle, tell
    /// clients to reconnect.
    pub async fn begun(&self) {
        let mut phase = self.0.phase.subscribe();
        // The sender lives in `self`, so it cannot be gone.
        let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// Waits until the drain is over, and all that is open must go.
    pub async fn ended(&self) {
        let mut phase = self.0.phase.subscribe();
        let _ = phase.wait_for(|phase| *phase == Phase::Ended).await;
    }

    /// After [`Drain::begin`]: waits until nothing is open or the deadline has
    /// passed, then ends the drain.
    pub async fn finish(&self) -> Drained {
        let mut phase = self.0.phase.subscribe();
        loop {
            let idle = self.0.idle.notified();
            // Acquire: what the last connection did is seen before it is told
            // that all is done.
            if self.0.live.load(Ordering::Acquire) == 0 {
                self.cut();
                return Drained::Clean;
            }
            let now = *phase.borrow_and_update();
            let until = match now {
                Phase::Draining { until } => Some(until),
                Phase::Serving => None,
                Phase::Ended => return Drained::Cut(self.live()),
            };
            let deadline = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = idle => {}
                _ = phase.changed() => {}
                () = deadline => {
                    let left = self.live();
                    self.cut();
                    return if left == 0 { Drained::Clean } else { Drained::Cut(left) };
                }
            }
        }
    }
}

/// One open connection.
#[derive(Debug)]
pub struct DrainGuard {
    shared: Arc<Shared>,
    late: bool,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        if self.late {
            self.shared.late.fetch_sub(1, Ordering::Relaxed);
        }
        if self.shared.live.fetch_sub(1, Ordering::Release) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_was_open_before_is_told_from_what_came_later() {
        let drain = Drain::new();
        let before = drain.enter();
        drain.begin(30 * SECOND);
        let late = drain.enter();
        assert_eq!((drain.live(), drain.from_before()), (2, 1));
        drop(before);
        assert_eq!((drain.live(), drain.from_before()), (1, 0));
        drop(late);
        assert_eq!((drain.live(), drain.from_before()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_process_drains_at_once() {
        let drain = Drain::new();
        let start = Instant::now();
        drain.begin(30 * SECOND);
        assert_eq!(drain.finish().await, Drained::Clean);
        assert_eq!(start.elapsed(), Duration::ZERO);
        drain.ended().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_connection_ends_the_wait() {
        let drain = Drain::new();
        let (first, second) = (drain.enter(), drain.enter());
        drain.begin(30 * SECOND);
        let start = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(SECOND).await;
            drop(first);
            tokio::time::sleep(SECOND).await;
            drop(second);
        });
        assert_eq!(drain.finish().await, Drained::Clean);
        assert_eq!(start.elapsed(), 2 * SECOND);
        assert_eq!(drain.live(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_cuts_what_is_left() {
        let drain = Drain::new();
        let _open = drain.enter();
        let waiter = tokio::spawn({
            let drain = drain.clone();
            async move { drain.ended().await }
        });
        drain.begin(5 * SECOND);
        let start = Instant::now();
        assert_eq!(drain.finish().await, Drained::Cut(1));
        assert_eq!(start.elapsed(), 5 * SECOND);
        assert!(waiter.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_begin_only_shortens() {
        let drain = Drain::new();
        let _open = drain.enter();
        drain.begin(10 * SECOND);
        drain.begin(60 * SECOND);
        let start = Instant::now();
        let finish = tokio::spawn({
            let drain = drain.clone();
            async move { drain.finish().await }
        });
        tokio::task::yield_now().await;
        drain.begin(2 * SECOND);
        assert_eq!(finish.await.ok(), Some(Drained::Cut(1)));
        assert_eq!(start.elapsed(), 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn cut_ends_a_running_drain() {
        let drain = Drain::new();
        let _open = drain.enter();
        drain.begin(3600 * SECOND);
        let finish = tokio::spawn({
            let drain = drain.clone();
            async move { drain.finish().await }
        });
        tokio::task::yield_now().await;
        drain.cut();
        assert_eq!(finish.await.ok(), Some(Drained::Cut(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn begun_is_told_to_late_and_early_waiters() {
        let drain = Drain::new();
        assert!(!drain.is_draining());
        let early = tokio::spawn({
            let drain = drain.clone();
            async move { drain.begun().await }
        });
        tokio::task::yield_now().await;
        drain.begin(SECOND);
        assert!(early.await.is_ok());
        drain.begun().await;
        assert!(drain.is_draining());
    }
}
