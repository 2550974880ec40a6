//! Pings (RFC 9113 section 6.7) on a connection, whether it is used or not:
//! `connectionPool.http.http2KeepAlive`.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

pub(super) struct KeepAlive {
    pings: PingPong,
    interval: Duration,
    wait: Duration,
    /// A ping has no answer yet.
    asked: bool,
    /// When to ask, or to have had an answer.
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    pub(super) fn new(pings: PingPong, interval: Duration, wait: Duration) -> Self {
        Self {
            pings,
            interval,
            wait,
            asked: false,
            timer: Box::pin(sleep(interval)),
        }
    }

    /// Ready when an answer is overdue.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                // An error says that the connection has ended, as it will by
                // itself.
                self.asked = false;
                self.timer.as_mut().reset(Instant::now() + self.interval);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.asked {
                return Poll::Ready(());
            }
            self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
            let next = if self.asked { self.wait } else { self.interval };
            self.timer.as_mut().reset(Instant::now() + next);
        }
    }
}
