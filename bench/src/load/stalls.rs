//! When the machine stood still.
//!
//! A hypervisor takes a CPU away for milliseconds, many times a second on a
//! shared host; at a steady pace the 99th percentile then tells of the host
//! alone. So a process for each CPU, of real-time priority, asks to be woken
//! every half millisecond: when it comes late, nobody else could run there
//! either. Requests that such a moment touched are left out of latencies, on
//! every path alike, and how many is told.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// How often a watch looks.
const PERIOD: Duration = Duration::from_micros(500);
/// Later than this is a stall: interrupts and what the kernel does with
/// preemption off stay below it.
const LATE: Duration = Duration::from_micros(300);

/// From and to, on the kernel's monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
struct Stall(Duration, Duration);

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) due: Instant,
    pub(crate) took: Duration,
}

impl Answered {
    /// Now, since `due`.
    pub(crate) fn since(due: Instant) -> Self {
        let took = due.elapsed();
        Self { due, took }
    }
}

/// The processes that watch.
#[derive(Default)]
pub(crate) struct Watches {
    children: Vec<Child>,
}

impl Watches {
    /// Begins to watch `cpus`.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub(crate) fn start(cpus: &[usize]) -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut watches = Self::default();
        for cpu in cpus {
            let child = Command::new("chrt")
                .args(["--fifo", "1", "taskset", "-c", &cpu.to_string()])
                .arg(&own)
                .arg("watch")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start chrt")?;
            watches.children.push(child);
        }
        Ok(watches)
    }

    /// Ends them, and tells what they saw.
    ///
    /// # Errors
    /// When one of them failed: without the right to real-time priority, for
    /// one.
    pub(crate) fn end(self) -> Result<Stalls> {
        let mut all: Vec<Stall> = Vec::new();
        for child in self.children {
            // Closes its standard input.
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "a watch for stalls failed");
            let seen: Vec<Stall> = serde_json::from_slice(&output.stdout)?;
            all.extend(seen);
        }
        let zero = Instant::now()
            .checked_sub(monotonic())
            .context("the clock began before the machine")?;
        Ok(Stalls::new(zero, all))
    }
}

/// When any CPU stood still, in order and apart from each other.
pub(crate) struct Stalls {
    /// Where the monotonic clock is zero.
    zero: Instant,
    stalls: Vec<Stall>,
}

impl Stalls {
    fn new(zero: Instant, mut all: Vec<Stall>) -> Self {
        all.sort_unstable();
        let mut stalls: Vec<Stall> = Vec::new();
        for Stall(from, to) in all {
            // What waited is caught up within as much time again, at less than
            // half of the load that could be carried.
            let to = to + to.saturating_sub(from);
            match stalls.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => stalls.push(Stall(from, to)),
            }
        }
        Self { zero, stalls }
    }

    /// Whether a stall touched the time that a request took.
    pub(crate) fn touched(&self, answered: &Answered) -> bool {
        let due = answered.due.saturating_duration_since(self.zero);
        let next = self.stalls.partition_point(|stall| stall.1 < due);
        self.stalls
            .get(next)
            .is_some_and(|stall| stall.0 <= due + answered.took)
    }
}

/// Watches its CPU until standard input ends, and prints the stalls.
pub(crate) fn watch() -> Result<()> {
    let stdin = std::io::stdin();
    let mut stalls: Vec<Stall> = Vec::new();
    let mut last = monotonic();
    loop {
        let period = Timespec::try_from(PERIOD)?;
        let mut ended = [PollFd::new(&stdin, PollFlags::IN)];
        if poll(&mut ended, Some(&period))? > 0 {
            break;
        }
        let now = monotonic();
        if now.saturating_sub(last) > PERIOD + LATE {
            stalls.push(Stall(last, now));
        }
        last = now;
    }
    serde_json::to_writer(std::io::stdout().lock(), &stalls)?;
    std::io::stdout().flush()?;
    Ok(())
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_a_stall_touched_are_told() {
        let zero = Instant::now();
        let ms = Duration::from_millis;
        // Each lasts as long again; the first two then meet.
        let stalls = Stalls::new(
            zero,
            vec![
                Stall(ms(50), ms(51)),
                Stall(ms(10), ms(12)),
                Stall(ms(13), ms(15)),
            ],
        );
        assert_eq!(
            stalls.stalls,
            [Stall(ms(10), ms(17)), Stall(ms(50), ms(52))]
        );
        let touched = |due, took| {
            stalls.touched(&Answered {
                due: zero + ms(due),
                took: ms(took),
            })
        };
        assert!(!touched(0, 9), "before");
        assert!(touched(0, 10), "into its begin");
        assert!(touched(0, 100), "around all");
        assert!(touched(16, 1), "while the rest is caught up");
        assert!(!touched(18, 31), "between");
        assert!(touched(51, 40), "out of the last");
        assert!(!touched(53, 1), "after");
    }
}
