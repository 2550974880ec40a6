//! When requests are due.
//!
//! In an open loop request number `n` is due at `n / rate`, whether or not
//! earlier ones were answered; its latency counts from then, so that a stall
//! of the proxy is seen by every request that it held up (no coordinated
//! omission). A timer of the kernel keeps the pace, for tokio's know no less
//! than a millisecond; it wakes the thread that sends, since each thread
//! between would add its own waking to every latency.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Semaphore;

pub(crate) struct Pace {
    start: Instant,
    interval: Option<Duration>,
    due: Arc<Semaphore>,
    next: Cell<u64>,
    work: u64,
}

impl Pace {
    /// Starts the clock now, within a runtime.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub(crate) fn start(work: u64, rate: Option<u32>) -> io::Result<Rc<Self>> {
        let interval = rate.map(|rate| Duration::from_secs(1) / rate.max(1));
        let due = Arc::new(Semaphore::new(0));
        let start = Instant::now();
        if let Some(interval) = interval {
            // Not a pipe, but read like one.
            let timer = Receiver::from_owned_fd_unchecked(timer(interval)?)?;
            tokio::spawn(keep(timer, start, interval, work, Arc::clone(&due)));
        }
        Ok(Rc::new(Self {
            start,
            interval,
            due,
            next: Cell::new(0),
            work,
        }))
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

/// One that expires every `interval` from now on. Now is a moment of the clock,
/// so that what holds this thread up does not put off all that follow.
fn timer(interval: Duration) -> io::Result<OwnedFd> {
    let now = clock_gettime(ClockId::Monotonic);
    let timer = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    )?;
    let wanted = Itimerspec {
        it_interval: Timespec::try_from(interval)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        it_value: now,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &wanted)?;
    Ok(timer)
}

/// Gives out a permit for each request that is due. When the timer fails, no
/// more are given out, and the load's deadline tells.
async fn keep(timer: Receiver, start: Instant, interval: Duration, work: u64, due: Arc<Semaphore>) {
    let mut given = 0;
    while given < work {
        if timer.readable().await.is_err() {
            return;
        }
        // How often it expired is told by the clock as well.
        match timer.try_read(&mut [0; 8]) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        let now = passed(interval, start.elapsed()).min(work);
        due.add_permits(usize::try_from(now - given).unwrap_or(usize::MAX));
        given = now;
    }
}

/// How many requests are due after `elapsed`; the first is at once.
fn passed(interval: Duration, elapsed: Duration) -> u64 {
    let whole = elapsed.as_nanos() / interval.as_nanos().max(1);
    u64::try_from(whole).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn each_request_is_given_out_once_and_due_by_its_number() {
        let pace = Pace::start(5, Some(10_000)).unwrap();
        let mut due = Vec::new();
        while let Some(at) = pace.next().await {
            due.push(at.duration_since(pace.started()));
        }
        let wanted: Vec<_> = (0..5).map(|n| Duration::from_micros(100 * n)).collect();
        assert_eq!(due, wanted);
    }

    #[tokio::test]
    async fn waiting_tasks_end_with_the_work() {
        let pace = Pace::start(1, Some(1_000)).unwrap();
        let (first, second) = tokio::join!(pace.next(), pace.next());
        assert!(first.is_some() && second.is_none());
    }

    #[test]
    fn requests_are_due_from_the_start_of_their_interval() {
        let passed = |nanos| passed(Duration::from_nanos(100), Duration::from_nanos(nanos));
        assert_eq!([0, 99, 100, 250].map(passed), [1, 1, 2, 3]);
    }

    #[tokio::test]
    async fn none_is_given_out_before_it_is_due() {
        let pace = Pace::start(20, Some(2_000)).unwrap();
        while let Some(due) = pace.next().await {
            assert!(due <= Instant::now());
        }
        assert!(pace.started().elapsed() >= Duration::from_micros(19 * 500));
    }
}
