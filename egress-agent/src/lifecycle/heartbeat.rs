//! Tells the kernel programs that the agent lives.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

/// Beats four times within `limit`, so that three may be late before anybody
/// takes the agent for dead. Never returns.
///
/// A beat that fails is logged once until one works again: the next follows
/// soon, and there is nothing better to do.
pub async fn beat<Fault: Display>(limit: Duration, mut beat: impl FnMut() -> Result<(), Fault>) {
    let mut ticks = interval(limit / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    let mut failing = false;
    loop {
        ticks.tick().await;
        let silent = last.elapsed();
        if silent > limit {
            tracing::warn!(
                silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
                "the agent did not run for longer than heartbeat-limit; new connections were treated as its failure policy says"
            );
        }
        match beat() {
            Ok(()) => {
                if failing {
                    tracing::info!("heartbeat works again");
                }
                failing = false;
                last = Instant::now();
            }
            Err(error) => {
                if !failing {
                    tracing::error!("heartbeat failed: {error}");
                }
                failing = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn beats_four_times_within_the_limit_and_outlives_errors() {
        let beats = Cell::new(0);
        let beating = beat(Duration::from_millis(800), || {
            beats.set(beats.get() + 1);
            if beats.get() % 2 == 0 {
                Err("no")
            } else {
                Ok(())
            }
        });
        let limit = Duration::from_millis(3_900);
        assert!(tokio::time::timeout(limit, beating).await.is_err());
        // At 0, 200, 400, … 3800 ms.
        assert_eq!(beats.get(), 20);
    }
}
