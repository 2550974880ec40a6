//! The end of connections that are idle: closed by the service, idle for too
//! long, of an address that vanished, or in the way of a request elsewhere.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};

use super::super::{Io, Payload};
use super::Host;

/// How often idle connections are looked at for an address that vanished.
const GONE_POLL: Duration = Duration::from_secs(5);

impl<B, S: Io> Host<B, S>
where
    B: Payload,
{
    /// Closes what is idle and takes nothing back.
    pub(in super::super) fn retire(&self) {
        self.retired.set(true);
        for http1 in self.idle.take() {
            http1.connection.close();
        }
        for connection in self.http2.borrow_mut().drain(..) {
            connection.draining.set(true);
        }
        self.wake.notify_waiters();
    }

    /// Closes the connection that has been idle longest.
    pub(in super::super) fn close_one_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            idle.remove(0).connection.close();
            return true;
        }
        drop(idle);
        let mut http2 = self.http2.borrow_mut();
        match http2.iter().position(|c| c.streams.get() == 0) {
            Some(at) => {
                drop(http2.remove(at));
                true
            }
            None => false,
        }
    }

    /// Starts the task that closes idle connections, if it does not run.
    pub(super) fn reap(self: &Rc<Self>) {
        if self.reaper.borrow().is_some() {
            return;
        }
        // Until the task has run for the first time.
        *self.reaper.borrow_mut() = Some(Waker::noop().clone());
        let (host, set) = (Rc::downgrade(self), Arc::clone(&self.set));
        let mut asked = Box::pin(set.connection_asked_for());
        let mut timer = Box::pin(sleep_until(Instant::now()));
        spawn_local(poll_fn(move |cx| {
            let Some(host) = host.upgrade() else {
                return Poll::Ready(());
            };
            while asked.as_mut().poll(cx).is_ready() {
                asked.set(set.connection_asked_for());
                if host.is_wanted_elsewhere() {
                    host.close_one_idle();
                }
            }
            loop {
                *host.reaper.borrow_mut() = Some(cx.waker().clone());
                let Some(next) = host.sweep(cx) else {
                    *host.reaper.borrow_mut() = None;
                    // Two hands: this task's and the pool's.
                    if Rc::strong_count(&host) <= 2
                        && let Some(pool) = host.pool.upgrade()
                    {
                        pool.forget(&host);
                    }
                    return Poll::Ready(());
                };
                timer.as_mut().reset(next);
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }));
    }

    /// Closes idle connections that the service has closed, or that have been
    /// idle for too long. Returns when to look again, `None`: nothing is idle.
    /// The task is woken earlier when something happens on one of them.
    fn sweep(&self, cx: &mut Context<'_>) -> Option<Instant> {
        let now = Instant::now();
        let longest = self.limits().http_idle_timeout;
        // An address that vanished (from DNS, or from the policy) gets no
        // further request; what is under way may end.
        let gone = self.endpoint.is_gone();
        let stays = |since: Instant| !gone && longest.is_none_or(|longest| now < since + longest);
        let mut idle = self.idle.borrow_mut();
        let mut at = 0;
        while at < idle.len() {
            let http1 = &mut idle[at];
            if stays(http1.since)
                && !http1.replaced.is_set()
                && http1.connection.poll_idle(cx).is_pending()
            {
                at += 1;
            } else {
                idle.remove(at).connection.close();
            }
        }
        let mut http2 = self.http2.borrow_mut();
        http2.retain(|connection| {
            !connection.connection.is_closed()
                && !connection.replaced.is_set()
                && (connection.streams.get() > 0 || stays(connection.since.get()))
        });
        let oldest = idle
            .iter()
            .map(|http1| http1.since)
            .chain(http2.iter().map(|http2| http2.since.get()))
            .min()?;
        // Without a timeout there is still the list to be kept short.
        let longest = longest.unwrap_or(Duration::from_hours(1));
        let next = (oldest + longest).min(now + GONE_POLL);
        Some(next.max(now + Duration::from_millis(100)))
    }
}
