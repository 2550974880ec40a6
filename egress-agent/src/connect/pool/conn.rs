//! One connection: the handshake, and the task that drives it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::{Io, Payload};
use crate::endpoint::{ConnectionGuard, Permit};
use crate::policy::model::ConnectionPool;

/// How long an orderly close may take (TLS close_notify, FIN).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes that a connection buffers on its way; the rest waits in the
/// kernel, which is what slows the sender down.
const BUFFER_LIMIT: usize = 128 * 1024;
/// Largest response head (Envoy: 60 KiB).
const HEAD_LIMIT: usize = 60 * 1024;
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

/// The stream of a connection that changed its protocol (101), and what was
/// read from it beyond the response.
#[derive(Debug)]
pub struct Upgraded<S> {
    /// The stream.
    pub io: S,
    /// Bytes that belong to the new protocol.
    pub read: Bytes,
}

/// Where the task of an HTTP/1 connection leaves its stream after a 101.
pub(super) type UpgradeSlot<S> = Rc<RefCell<Option<oneshot::Sender<Upgraded<S>>>>>;

/// Places under the limits, given back when the connection has closed.
pub(super) struct Places {
    pub(super) _permit: Permit,
    pub(super) _guard: ConnectionGuard,
}

/// Starts HTTP/1 on a stream. `closed` is called when the connection is gone.
pub(super) async fn http1<B, S: Io>(
    io: S,
    places: Places,
    closed: impl FnOnce() + 'static,
) -> hyper::Result<(http1::SendRequest<B>, UpgradeSlot<S>)>
where
    B: Payload,
{
    let (sender, mut connection) = http1::Builder::new()
        .max_buf_size(BUFFER_LIMIT)
        .max_header_size(HEAD_LIMIT)
        .handshake(TokioIo::new(io))
        .await?;
    let slot = UpgradeSlot::<S>::default();
    let upgrade = Rc::clone(&slot);
    spawn_local(async move {
        if let Err(error) = poll_fn(|cx| connection.poll_without_shutdown(cx)).await {
            tracing::debug!(%error, "HTTP/1 connection to a service ended");
        }
        let parts = connection.into_parts();
        let mut io = parts.io.into_inner();
        let upgrade = upgrade.borrow_mut().take();
        if let Some(upgrade) = upgrade {
            // The places go with the task, so it stays as long as the stream.
            let read = parts.read_buf;
            if upgrade.send(Upgraded { io, read }).is_ok() {
                drop(places);
                closed();
                return;
            }
        } else {
            let _ = timeout(CLOSE_TIMEOUT, io.shutdown()).await;
        }
        drop(places);
        closed();
    });
    Ok((sender, slot))
}

/// Starts HTTP/2 on a stream.
pub(super) async fn http2<B, S: Io>(
    io: S,
    policy: &ConnectionPool,
    places: Places,
    closed: impl FnOnce() + 'static,
) -> hyper::Result<(http2::SendRequest<B>, Rc<Cell<u32>>)>
where
    B: Payload,
{
    let mut builder = http2::Builder::new(LocalExec);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER_LIMIT)
        .max_header_list_size(u32::try_from(HEAD_LIMIT).unwrap_or(u32::MAX));
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
        closed();
    });
    Ok((sender, room))
}
