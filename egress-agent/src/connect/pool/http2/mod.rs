//! HTTP/2 to a service: requests are streams of one connection, which a task
//! of the worker drives.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, response};
use tokio::task::spawn_local;

mod answer;
mod keep_alive;
mod upload;

pub(super) use answer::Answer;

use self::keep_alive::KeepAlive;
use self::upload::Uploading;
use super::conn::Places;
use super::error::{SendError, SendFailure};
use super::{Io, Payload};
use crate::policy::model::ConnectionPool;

/// Most bytes that a stream buffers on its way out.
const BUFFER_LIMIT: usize = 128 * 1024;
/// Largest response head (Envoy: 60 KiB).
const HEAD_LIMIT: u32 = 60 * 1024;
/// Receive window of one stream and of one connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that may be open until the service has said how many it allows
/// (RFC 9113 section 6.5.2 has no limit then, but 100 as the least to allow).
const STREAMS_AT_FIRST: usize = 100;

/// One connection; it ends when this is dropped and its streams have ended.
pub(super) struct Connection {
    requests: SendRequest<Bytes>,
    shared: Rc<Shared>,
}

/// What the connection's task tells.
#[derive(Default)]
struct Shared {
    /// It takes no more requests.
    closed: Cell<bool>,
    /// Streams that the service allows at once, as far as it has said so.
    room: Cell<u32>,
}

impl Connection {
    /// Starts HTTP/2 on a stream. `places` are given back when it has ended.
    pub(super) async fn start(
        io: impl Io,
        policy: &ConnectionPool,
        places: Places,
    ) -> Result<Self, h2::Error> {
        let (requests, mut connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(BUFFER_LIMIT)
            .max_header_list_size(HEAD_LIMIT)
            .handshake::<_, Bytes>(io)
            .await?;
        let mut keep_alive = policy.http2_keepalive.and_then(|(interval, wait)| {
            Some(KeepAlive::new(connection.ping_pong()?, interval, wait))
        });
        let shared = Rc::new(Shared::default());
        shared.room.set(u32::MAX);
        let ended = Ended(Rc::clone(&shared));
        spawn_local(async move {
            let run = poll_fn(|cx| {
                let shared = &ended.0;
                if let Some(keep_alive) = &mut keep_alive
                    && keep_alive.poll(cx).is_ready()
                {
                    tracing::debug!("a service does not answer HTTP/2 pings");
                    return Poll::Ready(());
                }
                let state = Pin::new(&mut connection).poll(cx);
                let streams = connection.max_concurrent_send_streams();
                shared.room.set(u32::try_from(streams).unwrap_or(u32::MAX));
                state.map(|end| {
                    if let Err(error) = end {
                        tracing::debug!(%error, "HTTP/2 connection to a service ended");
                    }
                })
            });
            run.await;
            drop(connection);
            drop(ended);
            drop(places);
        });
        Ok(Self { requests, shared })
    }

    /// It takes no more requests.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.closed.get()
    }

    /// Streams that the service allows at once, as far as it has said so.
    pub(super) fn room(&self) -> u32 {
        self.shared.room.get()
    }

    /// Sends a request, or as much of it as is here.
    ///
    /// # Errors
    /// [`SendError`]. After one that says that nothing was sent, the connection
    /// takes no more requests.
    pub(super) fn send<B: Payload>(&self, request: Request<B>) -> Result<Waiting, SendError> {
        let unsent = |error: h2::Error| {
            self.shared.closed.set(true);
            SendError::new(SendFailure::Unsent, told(&error))
        };
        // A handle of its own is ready, or the connection is at its end; on a
        // shared one, requests would wait for those before them that the
        // service leaves no room for.
        let mut requests = self.requests.clone();
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Err(error)) = requests.poll_ready(&mut cx) {
            return Err(unsent(error));
        }
        let (mut head, body) = request.into_parts();
        if let Some(length) = body.size_hint().exact()
            && (length > 0 || expects_body(&head.method))
        {
            let length = || HeaderValue::from(length);
            head.headers.entry(CONTENT_LENGTH).or_insert_with(length);
        }
        let ends = body.is_end_stream();
        let (answer, stream) = requests
            .send_request(Request::from_parts(head, ()), ends)
            .map_err(|error| {
                if error.is_io() || error.is_go_away() {
                    unsent(error)
                } else {
                    // h2 refuses to send it, such as a head that is no HTTP/2.
                    SendError::new(SendFailure::RequestBody, told(&error))
                }
            })?;
        Ok(Waiting {
            answer,
            uploading: (!ends).then(|| Uploading::start(body, stream)),
        })
    }
}

/// A request that is sent. Dropped, its stream is reset.
pub(super) struct Waiting {
    answer: ResponseFuture,
    uploading: Option<Uploading>,
}

impl Waiting {
    /// Waits for the head of the response.
    ///
    /// # Errors
    /// [`SendError`].
    pub(super) async fn head(self) -> Result<(response::Parts, Answer), SendError> {
        let result = self.answer.await;
        let client_failed = self.uploading.is_some_and(Uploading::goes_on);
        let (head, stream) = result
            .map_err(|error| failed(&error, client_failed))?
            .into_parts();
        let answer = Answer::new(stream, &head.headers);
        Ok((head, answer))
    }
}

/// Whether a request of this method has a length though it has no body
/// (RFC 9110 section 8.6).
fn expects_body(method: &Method) -> bool {
    !matches!(
        *method,
        Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT
    )
}

/// Why a request that was sent got no response.
fn failed(error: &h2::Error, client_failed: bool) -> SendError {
    let failure = if client_failed {
        SendFailure::RequestBody
    } else if error.is_go_away() && error.is_remote()
        || error.reason() == Some(h2::Reason::REFUSED_STREAM)
    {
        SendFailure::Refused
    } else if error.is_io() {
        SendFailure::Closed
    } else if error.is_remote() {
        SendFailure::Reset
    } else {
        // Our own side of HTTP/2 found the peer's frames wrong.
        SendFailure::Protocol
    };
    SendError::new(failure, told(error))
}

fn told(error: &h2::Error) -> String {
    format!("HTTP/2: {error}")
}

/// The connection has ended, however its task came to its end.
struct Ended(Rc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.closed.set(true);
    }
}
