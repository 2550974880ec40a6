//! The deadlines of a client connection.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::Settings;
use super::guarded::State;

/// Timers of connections at rest fire together, at multiples of this: what a
/// worker does for one of them costs less than its waking up.
const GRID: Duration = Duration::from_millis(100);

/// Which deadline of a client connection has passed.
pub(super) enum Expired {
    /// A head took too long.
    Head,
    /// A body stands still.
    Body,
    /// No request for too long.
    Idle,
}

/// The deadlines of one client connection. One timer, which is set anew only
/// when it fires or when a slow head or body gives it an earlier aim: a
/// request that arrives whole costs nothing.
pub(super) struct Watch {
    /// A moment from which all connections of the worker count [`GRID`].
    epoch: Instant,
    head: Duration,
    body: Duration,
    idle: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    /// The timer aims at a head or body.
    close: bool,
    /// The timer will wake the task.
    set: bool,
}

impl Watch {
    pub(super) const fn new(settings: &Settings, idle: Duration, epoch: Instant) -> Self {
        Self {
            epoch,
            head: settings.head_timeout,
            body: settings.body_timeout,
            idle,
            sleep: None,
            close: false,
            set: false,
        }
    }

    /// When the connection's present state expires, and how.
    fn due(&self, state: &State) -> (Instant, Expired) {
        if let Some(since) = state.head_since.get() {
            (since + self.head, Expired::Head)
        } else if state.in_body.get() {
            (state.last.get() + self.body, Expired::Body)
        } else if state.active.get() > 0 {
            // A request under way has its own timeouts.
            (Instant::now() + self.idle, Expired::Idle)
        } else {
            (state.last.get() + self.idle, Expired::Idle)
        }
    }

    pub(super) fn poll(&mut self, state: &State, cx: &mut Context<'_>) -> Option<Expired> {
        let close = state.head_since.get().is_some() || state.in_body.get();
        if close && !self.close {
            let due = self.due(state).0;
            if let Some(sleep) = &mut self.sleep {
                sleep.as_mut().reset(due);
                self.set = false;
            }
        }
        self.close = close;
        loop {
            let sleep = match &mut self.sleep {
                Some(sleep) => sleep,
                none => {
                    let now = Instant::now();
                    let first = if close {
                        now + self.head.min(self.body)
                    } else {
                        on_grid(self.epoch, now + self.idle)
                    };
                    none.insert(Box::pin(sleep_until(first)))
                }
            };
            // Polling a timer that is set costs more than asking it.
            if self.set && !sleep.is_elapsed() {
                return None;
            }
            self.set = true;
            if sleep.as_mut().poll(cx).is_pending() {
                return None;
            }
            let (due, expired) = self.due(state);
            if due <= Instant::now() {
                self.sleep = None;
                self.set = false;
                return Some(expired);
            }
            let aim = match expired {
                Expired::Idle => on_grid(self.epoch, due),
                Expired::Head | Expired::Body => due,
            };
            if let Some(sleep) = &mut self.sleep {
                sleep.as_mut().reset(aim);
                self.set = false;
            }
        }
    }
}

/// The first multiple of [`GRID`] after `due`.
fn on_grid(epoch: Instant, due: Instant) -> Instant {
    let grid = GRID.as_nanos();
    let past = due.saturating_duration_since(epoch).as_nanos() % grid;
    due + Duration::from_nanos(u64::try_from(grid - past).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn timers_are_late_by_no_more_than_the_grid_and_fire_together(
            after in 0u64..10_000_000_000,
            other in 0u64..100_000_000,
        ) {
            let epoch = Instant::now();
            let due = epoch + Duration::from_nanos(after);
            let aim = on_grid(epoch, due);
            prop_assert!(aim > due && aim <= due + GRID);
            // Whatever is due before it, and after the one before it, as well.
            let before = aim - Duration::from_nanos(1 + other);
            prop_assert_eq!(on_grid(epoch, before.max(aim - GRID)), aim);
        }
    }
}
