//! What connections have in common, and the task that drives HTTP/2.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::{Io, Payload};
use crate::endpoint::{ConnectionGuard, Permit};
use crate::policy::model::ConnectionPool;

/// Most bytes that an HTTP/2 stream buffers on its way out.
const BUFFER_LIMIT: usize = 128 * 1024;
/// Largest response head (Envoy: 60 KiB).
const HEAD_LIMIT: u32 = 60 * 1024;
/// HTTP/2 receive window of one stream and of one connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Runs futures on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// Places of one connection under the limits. When they are given back, the
/// next in the queue is woken.
pub(super) struct Places {
    held: Option<(Permit, ConnectionGuard)>,
    wake: Rc<Notify>,
}

impl Places {
    pub(super) fn new(permit: Permit, guard: ConnectionGuard, wake: &Rc<Notify>) -> Self {
        Self {
            held: Some((permit, guard)),
            wake: Rc::clone(wake),
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        drop(self.held.take());
        self.wake.notify_waiters();
    }
}

/// Starts HTTP/2 on a stream. The cell tells how many streams the service
/// allows at once.
pub(super) async fn http2<B: Payload, S: Io>(
    io: S,
    policy: &ConnectionPool,
    places: Places,
) -> hyper::Result<(http2::SendRequest<B>, Rc<Cell<u32>>)> {
    let mut builder = http2::Builder::new(LocalExec);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER_LIMIT)
        .max_header_list_size(HEAD_LIMIT);
    if let Some((interval, wait)) = policy.http2_keepalive {
        builder
            .keep_alive_interval(interval)
            .keep_alive_timeout(wait)
            .keep_alive_while_idle(true);
    }
    let (sender, mut connection) = builder.handshake(TokioIo::new(io)).await?;
    let room = Rc::new(Cell::new(u32::MAX));
    let told = Rc::clone(&room);
    spawn_local(async move {
        let run = poll_fn(|cx| {
            let state = Pin::new(&mut connection).poll(cx);
            let streams = connection.current_max_send_streams();
            told.set(u32::try_from(streams).unwrap_or(u32::MAX));
            state
        });
        if let Err(error) = run.await {
            tracing::debug!(%error, "HTTP/2 connection to a service ended");
        }
        drop(places);
    });
    Ok((sender, room))
}
