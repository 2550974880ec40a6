//! Tells systemd how the agent is. Without systemd (`$NOTIFY_SOCKET` unset)
//! nothing is sent.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use sd_notify::NotifyState;

use super::worker::Pulses;

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}

/// `READY=1`, with a status line.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Whether the unit keeps descriptors (`FileDescriptorStoreMax=`): systemd sets
/// `$FDSTORE` since version 254, and our unit for older ones.
pub fn keeps_descriptors() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
        && std::env::var_os("FDSTORE").is_some_and(|most| most != "0")
}

/// `FDSTORE=1`: systemd keeps a second descriptor, and passes it to the next
/// process of the unit.
///
/// # Errors
/// When it cannot be told.
pub fn keep(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    sd_notify::notify_with_fds(
        &[NotifyState::FdStore, NotifyState::FdName(name)],
        &[descriptor],
    )
}

/// `FDSTOREREMOVE=1`: systemd lets go of all descriptors of this name.
pub fn forget(name: &str) {
    send(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// `STATUS=…`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// `RELOADING=1`; [`ready`] must follow.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // systemd matches the two by this time.
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("cannot read the monotonic clock: {error}"),
    }
}

/// `STOPPING=1`. Asks for `limit` and a little more before systemd loses
/// patience (`TimeoutStopSec`).
pub fn stopping(status: &str, limit: Duration) {
    let grace = limit.saturating_add(Duration::from_secs(5));
    let micros = u32::try_from(grace.as_micros()).unwrap_or(u32::MAX);
    send(&[
        NotifyState::Stopping,
        NotifyState::Status(status),
        NotifyState::ExtendTimeoutUsec(micros),
    ]);
}

/// Pets the watchdog (`WatchdogSec`) for as long as the control runtime, which
/// this runs on, and every worker turn. Ends at once where none is asked for.
pub async fn watchdog(pulses: Pulses) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    pet(limit, pulses, || {
        sd_notify::notify(&[NotifyState::Watchdog])
    })
    .await;
}

async fn pet(limit: Duration, pulses: Pulses, mut send: impl FnMut() -> io::Result<()>) {
    let mut ticks = tokio::time::interval(limit / 3);
    loop {
        ticks.tick().await;
        let stalled = pulses.stalled(limit);
        if !stalled.is_empty() {
            tracing::error!(workers = ?stalled, "workers do not turn; the watchdog is left to bite");
        } else if let Err(error) = send() {
            tracing::warn!("cannot notify systemd: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(6);

    async fn pets(pulses: Pulses) -> u32 {
        let mut sent = 0;
        let petting = pet(LIMIT, pulses, || {
            sent += 1;
            Ok(())
        });
        assert!(
            tokio::time::timeout(Duration::from_secs(13), petting)
                .await
                .is_err()
        );
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_only_while_every_worker_turns() {
        // The workers' clock is the real one, which does not move here.
        let age = Duration::from_secs(20);
        assert_eq!(pets(Pulses::double(&[19_000, 19_500], age)).await, 7);
        assert_eq!(pets(Pulses::double(&[19_000, 5_000], age)).await, 0);
    }
}
