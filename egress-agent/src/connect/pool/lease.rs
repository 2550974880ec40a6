//! A connection, or a stream of one, in the hands of a request.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, response};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::conn::Places;
use super::error::SendError;
use super::host::Host;
use super::http1::Connection;
use super::http2::{self, Answer};
use super::{Io, Payload, RequestHead, Security, Version};
use crate::secret::Replaced;

/// An HTTP/1 connection.
pub(super) struct Http1<B, S> {
    pub(super) connection: Connection<B, S>,
    pub(super) local: Option<SocketAddr>,
    pub(super) security: Security,
    pub(super) replaced: Replaced,
    pub(super) opened: Instant,
    /// When it became idle.
    pub(super) since: Instant,
    /// Requests sent on it.
    pub(super) requests: u32,
    pub(super) places: Places,
}

/// An HTTP/2 connection, shared by the requests on it.
pub(super) struct Http2 {
    pub(super) connection: http2::Connection,
    pub(super) local: Option<SocketAddr>,
    pub(super) security: Security,
    pub(super) replaced: Replaced,
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
    Http1(Box<Http1<B, S>>),
    Http2(Rc<Http2>, Option<Answer>),
}

/// The right to send one request, and its response. Dropped without
/// [`Lease::give_back`], an HTTP/1 connection closes, because nobody knows what
/// is still under way on it; an HTTP/2 stream is reset unless it has ended.
pub struct Lease<B: Payload, S: Io> {
    held: Option<Held<B, S>>,
    host: Rc<Host<B, S>>,
    reused: bool,
}

/// The stream of a connection that changed its protocol (101), and what was
/// read from it beyond the response.
pub struct Upgraded<S> {
    /// The stream.
    pub io: S,
    /// Bytes that belong to the new protocol.
    pub read: Bytes,
    /// The connection still counts.
    _places: Places,
}

impl<S> std::fmt::Debug for Upgraded<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgraded").finish_non_exhaustive()
    }
}

impl<B: Payload, S: Io> std::fmt::Debug for Lease<B, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("version", &self.version())
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}

impl<B: Payload, S: Io> Lease<B, S> {
    pub(super) fn new(host: &Rc<Host<B, S>>, held: Held<B, S>, reused: bool) -> Self {
        if let Held::Http2(connection, _) = &held {
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
            Some(Held::Http2(..)) => Version::Http2,
            _ => Version::Http1,
        }
    }

    /// Our own address on the connection.
    pub fn local(&self) -> Option<SocketAddr> {
        match &self.held {
            Some(Held::Http1(http1)) => http1.local,
            Some(Held::Http2(http2, _)) => http2.local,
            None => None,
        }
    }

    /// What protects the connection.
    pub fn security(&self) -> Security {
        match &self.held {
            Some(Held::Http1(http1)) => http1.security,
            Some(Held::Http2(http2, _)) => http2.security,
            None => Security::None,
        }
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// [`SendError`], which says whether anything of it was written.
    pub async fn send(
        &mut self,
        head: &RequestHead<'_>,
        body: B,
    ) -> Result<response::Parts, SendError> {
        match &mut self.held {
            Some(Held::Http1(http1)) => {
                http1.requests += 1;
                http1.connection.send(head, body).await
            }
            Some(Held::Http2(http2, answer)) => {
                http2.requests.set(http2.requests.get() + 1);
                let request: Request<B> = head.http2(body)?;
                let (head, body) = http2.connection.send(request)?.head().await?;
                *answer = Some(body);
                Ok(head)
            }
            // Given back; nobody has it any more.
            None => std::future::pending().await,
        }
    }

    /// Takes the headers of the request, once its response is here: their map
    /// serves the connection again.
    pub fn recycle(&mut self, headers: HeaderMap) {
        if let Some(Held::Http1(http1)) = &mut self.held {
            http1.connection.recycle(headers);
        }
    }

    /// The next piece of the response's body.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.held {
            Some(Held::Http1(http1)) => http1.connection.poll_frame(cx),
            Some(Held::Http2(_, Some(answer))) => answer
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(io::Error::other))),
            Some(Held::Http2(_, None)) | None => Poll::Ready(None),
        }
    }

    /// The response's body, if it came with the head and the request is sent:
    /// most are small.
    pub fn whole(&mut self) -> Option<Bytes> {
        match &mut self.held {
            Some(Held::Http1(http1)) => http1.connection.whole(),
            _ => None,
        }
    }

    /// Whether the response's body has ended.
    pub fn is_end_stream(&self) -> bool {
        match &self.held {
            Some(Held::Http1(http1)) => http1.connection.is_end_stream(),
            Some(Held::Http2(_, Some(answer))) => answer.is_end_stream(),
            Some(Held::Http2(_, None)) | None => true,
        }
    }

    /// What is known of the length of the response's body.
    pub fn size_hint(&self) -> SizeHint {
        match &self.held {
            Some(Held::Http1(http1)) => http1.connection.size_hint(),
            Some(Held::Http2(_, Some(answer))) => answer.size_hint(),
            Some(Held::Http2(_, None)) | None => SizeHint::with_exact(0),
        }
    }

    /// The stream after a 101 (HTTP/1).
    pub fn into_upgraded(mut self) -> Option<Upgraded<S>> {
        match self.held.take() {
            Some(Held::Http1(http1)) => {
                let (io, read) = http1.connection.into_parts();
                Some(Upgraded {
                    io,
                    read,
                    _places: http1.places,
                })
            }
            other => {
                self.held = other;
                None
            }
        }
    }

    /// The response has ended, at `now`: the connection may serve another
    /// request if the request has ended, too.
    pub fn give_back(mut self, now: Instant) {
        match self.held.take() {
            Some(Held::Http1(http1)) => self.host.put(http1, now),
            other => self.held = other,
        }
    }
}

impl<B: Payload, S: Io> Drop for Lease<B, S> {
    fn drop(&mut self) {
        match self.held.take() {
            Some(Held::Http1(http1)) => http1.connection.close(),
            Some(Held::Http2(http2, answer)) => {
                // The stream ends before it is counted as ended.
                drop(answer);
                http2.streams.set(http2.streams.get().saturating_sub(1));
                self.host.stream_ended(&http2);
            }
            None => {}
        }
    }
}
