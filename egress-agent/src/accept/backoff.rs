//! What an error of `accept` asks for.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

/// Shortest pause.
const FIRST: Duration = Duration::from_millis(5);
/// Longest pause.
const LAST: Duration = Duration::from_secs(1);

/// Grows the pause while `accept` keeps failing.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    pause: Option<Duration>,
}

impl Backoff {
    /// `accept` worked.
    pub(super) fn reset(&mut self) {
        self.pause = None;
    }

    /// How long to wait before the next `accept`. `None` for the errors that
    /// accept(2) reports for one connection, which it has taken off the queue;
    /// any other (no descriptors, no memory) would come at once again.
    pub(super) fn pause_after(&mut self, error: &io::Error) -> Option<Duration> {
        let of_connection = matches!(
            Errno::from_io_error(error),
            Some(
                Errno::CONNABORTED
                    | Errno::INTR
                    | Errno::PROTO
                    | Errno::NOPROTOOPT
                    | Errno::NETDOWN
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH
                    | Errno::OPNOTSUPP
            )
        );
        if of_connection {
            return None;
        }
        let pause = self.pause.map_or(FIRST, |last| (last * 2).min(LAST));
        self.pause = Some(pause);
        Some(pause)
    }
}
