//! When requests are due.
//!
//! In an open loop request number `n` is due at `n / rate`, whether or not
//! earlier ones were answered; its latency counts from then, so that a stall
//! of the proxy is seen by every request that it held up (no coordinated
//! omission). A thread of its own keeps the pace, for tokio's timers know no
//! less than a millisecond.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

pub(crate) struct Pace {
    start: Instant,
    interval: Option<Duration>,
    due: Arc<Semaphore>,
    next: Cell<u64>,
    work: u64,
}

impl Pace {
    /// Starts the clock now.
    pub(crate) fn start(work: u64, rate: Option<u32>) -> Rc<Self> {
        let interval = rate.map(|rate| Duration::from_secs(1) / rate.max(1));
        let due = Arc::new(Semaphore::new(0));
        let start = Instant::now();
        if let Some(interval) = interval {
            let due = Arc::clone(&due);
            thread::spawn(move || keep(start, interval, work, &due));
        }
        Rc::new(Self {
            start,
            interval,
            due,
            next: Cell::new(0),
            work,
        })
    }

    /// When the clock started.
    pub(crate) fn started(&self) -> Instant {
        self.start
    }

    /// Waits for the next request's turn and says when it was due; `None` once
    /// all are given out.
    pub(crate) async fn next(&self) -> Option<Instant> {
        if self.interval.is_some() {
            // Closed at the end: every permit was given out by then.
            self.due.acquire().await.ok()?.forget();
        }
        let number = self.next.get();
        if number >= self.work {
            return None;
        }
        self.next.set(number + 1);
        if number + 1 == self.work {
            self.due.close();
        }
        Some(match self.interval {
            Some(interval) => self.start + times(interval, number),
            None => Instant::now(),
        })
    }
}

fn times(interval: Duration, number: u64) -> Duration {
    Duration::from_nanos(u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX) * number)
}

fn keep(start: Instant, interval: Duration, work: u64, due: &Semaphore) {
    for number in 0..work {
        let wait = (start + times(interval, number)).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        due.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_request_is_given_out_once_and_due_by_its_number() {
        let pace = Pace::start(5, Some(10_000));
        let mut due = Vec::new();
        while let Some(at) = pace.next().await {
            due.push(at.duration_since(pace.started()));
        }
        let wanted: Vec<_> = (0..5).map(|n| Duration::from_micros(100 * n)).collect();
        assert_eq!(due, wanted);
    }

    #[tokio::test]
    async fn waiting_tasks_end_with_the_work() {
        let pace = Pace::start(1, Some(1_000));
        let (first, second) = tokio::join!(pace.next(), pace.next());
        assert!(first.is_some() && second.is_none());
    }
}
