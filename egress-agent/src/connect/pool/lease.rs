//! A connection, or a stream of one, in the hands of a request.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::conn::{UpgradeSlot, Upgraded};
use super::error::SendError;
use super::host::Host;
use super::{Io, Payload, Version};

/// An HTTP/1 connection.
pub(super) struct Http1<B, S> {
    pub(super) sender: http1::SendRequest<B>,
    pub(super) upgrade: UpgradeSlot<S>,
    pub(super) local: Option<SocketAddr>,
    pub(super) opened: Instant,
    /// When it became idle.
    pub(super) since: Instant,
    /// Requests sent on it.
    pub(super) requests: u32,
}

/// An HTTP/2 connection, shared by the requests on it.
pub(super) struct Http2<B> {
    pub(super) sender: http2::SendRequest<B>,
    /// Streams that the service allows at once, as far as it has said so.
    pub(super) room: Rc<Cell<u32>>,
    pub(super) local: Option<SocketAddr>,
    pub(super) opened: Instant,
    /// When its last stream ended.
    pub(super) since: Cell<Instant>,
    /// Streams begun on it.
    pub(super) requests: Cell<u32>,
    /// Streams open now.
    pub(super) streams: Cell<u32>,
    /// No new streams.
    pub(super) draining: Cell<bool>,
}

pub(super) enum Held<B, S> {
    Http1(Http1<B, S>),
    Http2(Rc<Http2<B>>),
}

/// The right to send one request. Dropped without [`Lease::give_back`], an
/// HTTP/1 connection closes, because nobody knows what is still under way on
/// it; an HTTP/2 stream ends by itself.
pub struct Lease<B, S>
where
    S: Io,
    B: Payload,
{
    held: Option<Held<B, S>>,
    host: Rc<Host<B, S>>,
    reused: bool,
}

impl<B, S: Io> std::fmt::Debug for Lease<B, S>
where
    B: Payload,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("version", &self.version())
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}

impl<B, S: Io> Lease<B, S>
where
    B: Payload,
{
    pub(super) fn new(host: &Rc<Host<B, S>>, held: Held<B, S>, reused: bool) -> Self {
        if let Held::Http2(connection) = &held {
            connection.streams.set(connection.streams.get() + 1);
        }
        Self {
            held: Some(held),
            host: Rc::clone(host),
            reused,
        }
    }

    /// The connection carried a request before this one.
    pub const fn reused(&self) -> bool {
        self.reused
    }

    /// Version of the connection.
    pub const fn version(&self) -> Version {
        match &self.held {
            Some(Held::Http2(_)) => Version::Http2,
            _ => Version::Http1,
        }
    }

    /// Our own address on the connection.
    pub fn local(&self) -> Option<SocketAddr> {
        match &self.held {
            Some(Held::Http1(connection)) => connection.local,
            Some(Held::Http2(connection)) => connection.local,
            None => None,
        }
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// [`SendError`], with the request where nothing of it was written.
    pub async fn send(&mut self, request: Request<B>) -> Result<Response<Incoming>, SendError<B>> {
        match &mut self.held {
            Some(Held::Http1(connection)) => {
                // The task of the connection may not yet have noticed that
                // the last response has ended.
                if let Err(cause) = poll_fn(|cx| connection.sender.poll_ready(cx)).await {
                    return Err(SendError::new(Some(request), cause));
                }
                connection.requests += 1;
                connection
                    .sender
                    .try_send_request(request)
                    .await
                    .map_err(|mut error| {
                        let message = error.take_message();
                        SendError::new(message, error.into_error())
                    })
            }
            Some(Held::Http2(connection)) => {
                connection.requests.set(connection.requests.get() + 1);
                let connection = Rc::clone(connection);
                let sent = connection.sender.clone().try_send_request(request).await;
                sent.map_err(|mut error| {
                    if connection.sender.is_closed() {
                        connection.draining.set(true);
                    }
                    let message = error.take_message();
                    SendError::new(message, error.into_error())
                })
            }
            None => unreachable_send(request).await,
        }
    }

    /// Asks for the stream once the service has answered 101 (HTTP/1). Call
    /// it before the response is read.
    pub fn upgrade(&mut self) -> Option<oneshot::Receiver<Upgraded<S>>> {
        let Some(Held::Http1(connection)) = &self.held else {
            return None;
        };
        let (give, take) = oneshot::channel();
        *connection.upgrade.borrow_mut() = Some(give);
        Some(take)
    }

    /// The request and its response are both complete: the connection may
    /// serve another.
    pub fn give_back(mut self) {
        match self.held.take() {
            Some(Held::Http1(connection)) => self.host.put(connection),
            other => self.held = other,
        }
    }
}

/// A lease always holds its connection until it is given back, which consumes
/// it; this keeps the types honest without a panic.
async fn unreachable_send<B>(request: Request<B>) -> Result<Response<Incoming>, SendError<B>>
where
    B: Payload,
{
    drop(request);
    std::future::pending().await
}

impl<B, S: Io> Drop for Lease<B, S>
where
    B: Payload,
{
    fn drop(&mut self) {
        if let Some(Held::Http2(connection)) = self.held.take() {
            connection
                .streams
                .set(connection.streams.get().saturating_sub(1));
            self.host.stream_ended(&connection);
        }
    }
}
