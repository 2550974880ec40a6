//! One HTTP/1.1 connection of the admin room: limits, deadlines, bodies.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

/// Time for the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Time for the body of a request and for its answer to be made.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// A connection is closed at this age, whatever it does.
const CONNECTION_DEADLINE: Duration = Duration::from_mins(5);
/// Largest body; policy of a whole node is far smaller.
const BODY_LIMIT: usize = 16 << 20;
/// Connections at once on one listener.
pub(super) const CONNECTION_LIMIT: usize = 64;
/// Wait after an accept that failed, so that a lack of descriptors does not
/// spin.
pub(super) const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// A request with its body read.
pub(super) struct Asked {
    pub(super) head: http::request::Parts,
    pub(super) body: Bytes,
}

/// Serves one connection to its end.
pub(super) async fn serve<Stream, Handle, Reply>(
    stream: Stream,
    permits: Rc<Semaphore>,
    handle: Handle,
) where
    Stream: AsyncRead + AsyncWrite + Unpin + 'static,
    Handle: Fn(Asked) -> Reply,
    Reply: Future<Output = Answer>,
{
    // Over the limit the connection is closed: the listener must not queue.
    let Ok(_permit) = permits.try_acquire() else {
        return;
    };
    let handle = &handle;
    let service = service_fn(move |request: Request<Incoming>| async move {
        let answer = tokio::time::timeout(ANSWER_DEADLINE, answer(request, handle)).await;
        let late = || failure(StatusCode::GATEWAY_TIMEOUT, "the agent took too long");
        Ok::<_, Infallible>(answer.unwrap_or_else(|_| late()))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_DEADLINE, connection).await {
        tracing::debug!("admin connection: {error}");
    }
}

async fn answer<Reply: Future<Output = Answer>>(
    request: Request<Incoming>,
    handle: &impl Fn(Asked) -> Reply,
) -> Answer {
    let (head, body) = request.into_parts();
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => {
            let body = body.to_bytes();
            handle(Asked { head, body }).await
        }
        Err(error) if error.is::<LengthLimitError>() => failure(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body is larger than {BODY_LIMIT} bytes"),
        ),
        Err(error) => failure(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// An answer of this type.
pub(super) fn content(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A value as JSON.
pub(super) fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => content(status, "application/json", body),
        Err(error) => content(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain; charset=utf-8",
            error.to_string(),
        ),
    }
}

/// A failure as JSON.
pub(super) fn failure(status: StatusCode, error: &str) -> Answer {
    let error = error.to_owned();
    json(status, &super::view::Failure { error })
}
