//! One client connection, from its first byte to its end.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep, timeout};

use super::client::{Bound, Caller, Client};
use super::expiry::{Expired, Watch};
use super::guarded::{Guarded, Upgrade, poll_some};
use super::{Log, ServiceStream, Worker, exchange};
use crate::connect::poll_write_parts;
use crate::connect::pool::LocalExec;
use crate::policy::snapshot::Service;
use crate::relay::{self, Transport, drained};

/// Most bytes of responses that are buffered for a slow reader.
const BUFFER_LIMIT: usize = 128 * 1024;
/// HTTP/2 receive window of one stream and of one connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How long, and for how many bytes, a client that was refused may go on
/// sending before it is reset; a reset at once could destroy our answer on its
/// way.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;

/// A connection without a request for so long is taken apart until the next
/// one: hyper keeps 16 KiB of buffers for each. Short, so that many clients who
/// come one after the other find the memory of those before them; putting a
/// connection together again costs about a microsecond.
const REST_AFTER: Duration = Duration::from_millis(100);

/// How a client connection ended.
#[derive(Debug)]
pub enum End {
    /// In order.
    Closed,
    /// The client broke off, or its bytes could not be read or written.
    Client(Box<str>),
    /// No policy fits this client.
    NoPolicy,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Client(error) => write!(f, "the application broke the connection: {error}"),
            Self::NoPolicy => f.write_str("the service has no view for this client"),
        }
    }
}

/// Serves HTTP/1 and HTTP/2 (with prior knowledge) on `stream`, which speaks to
/// `caller` for `service`. `log` takes its requests as they end.
///
/// A connection that rests is taken apart down to its stream and put together
/// again when something comes, so the future is small and so is what it holds.
pub async fn serve<D: Transport + 'static, S: ServiceStream>(
    worker: Rc<Worker<S>>,
    caller: Caller,
    service: Arc<Service>,
    mut stream: D,
    log: impl Log + 'static,
) -> End {
    let live = worker.live();
    let host = Arc::clone(&caller.host);
    let Some(bound) = Bound::new(live, service, host, &caller.client) else {
        return End::NoPolicy;
    };
    let client = Client::new(worker, caller, Box::new(log), bound);
    let _registered = client.worker.drain.register().await;
    loop {
        let first = match first_bytes(&mut stream, &client).await {
            Ok(Some(first)) => first,
            Ok(None) => return End::Closed,
            Err(error) => return End::Client(error.to_string().into()),
        };
        if client.state.is_new() && first.starts_with(b"PRI") {
            let first = Bytes::from(first);
            return Box::pin(serve_http2(client, Prefixed { first, stream })).await;
        }
        match Box::pin(serve_http1(&client, stream, first)).await {
            Rest::Resting(rested) => stream = rested,
            Rest::Ended(end) => return end,
        }
    }
}

/// Waits for a request, and reads enough to tell HTTP/2 from HTTP/1: no HTTP/1
/// method that anybody uses starts with `PRI`. `None`: the client closed or
/// kept silent for too long, or the agent drains.
async fn first_bytes<D: Transport, S: ServiceStream>(
    stream: &mut D,
    client: &Client<S>,
) -> io::Result<Option<Vec<u8>>> {
    let settings = &client.worker.settings;
    let drain = &client.worker.drain;
    let mut first = Vec::new();
    let mut silence = pin!(sleep(settings.idle_timeout));
    loop {
        let read = poll_fn(|cx| {
            if let Poll::Ready(read) = poll_some(stream, cx) {
                return Poll::Ready(read);
            }
            if (first.is_empty() && drain.has_begun()) || silence.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            Poll::Pending
        })
        .await?;
        match read {
            None => return Ok((!first.is_empty()).then_some(first)),
            Some(read) if first.is_empty() => first = read,
            Some(read) => first.extend_from_slice(&read),
        }
        if first.len() >= 3 || !b"PRI".starts_with(&first) {
            return Ok(Some(first));
        }
        silence.set(sleep(settings.head_timeout));
    }
}

/// What became of a run of HTTP/1 requests.
enum Rest<D> {
    /// Nothing is under way; the connection stays.
    Resting(D),
    /// It has ended.
    Ended(End),
}

async fn serve_http1<D: Transport + 'static, S: ServiceStream>(
    client: &Rc<Client<S>>,
    stream: D,
    first: Vec<u8>,
) -> Rest<D> {
    let state = Rc::clone(&client.state);
    state.last.set(Instant::now());
    let io = Guarded::new(stream, Rc::clone(&state), first);
    let handler = Rc::clone(client);
    let service = service_fn(move |request| exchange::handle(&handler, request));
    let mut connection = http1::Builder::new()
        .max_buf_size(BUFFER_LIMIT)
        .serve_connection(io, service);
    let end = {
        let worker = &client.worker;
        let mut watch = Watch::new(&worker.settings, REST_AFTER, worker.epoch);
        let drain = &client.worker.drain;
        let mut drained = false;
        poll_fn(|cx| {
            loop {
                let mut end = connection.poll_without_shutdown(cx);
                if end.is_pending()
                    && state.upgrade.get() == Upgrade::Refused
                    && state.active.get() == 0
                {
                    // What the client sent behind its request was held back;
                    // no event of the socket will bring it.
                    end = connection.poll_without_shutdown(cx);
                }
                if let Poll::Ready(end) = end {
                    return Poll::Ready(Some(end.map_err(|error| error.to_string())));
                }
                if !drained && drain.has_begun() {
                    drained = true;
                    Pin::new(&mut connection).graceful_shutdown();
                    continue;
                }
                match watch.poll(&state, cx) {
                    None => return Poll::Pending,
                    Some(Expired::Head) => state.expired.set(true),
                    Some(Expired::Idle) if state.rests() => return Poll::Ready(None),
                    // Not idle after all, but slow to take its response.
                    Some(Expired::Idle) => {}
                    Some(Expired::Body) => {
                        let error = "the request's body stood still for too long";
                        return Poll::Ready(Some(Err(error.to_owned())));
                    }
                }
            }
        })
        .await
    };
    let parts = connection.into_parts();
    let (mut stream, rest) = parts.io.into_parts();
    let Some(end) = end else {
        if parts.read_buf.is_empty() && rest.is_empty() {
            return Rest::Resting(stream);
        }
        // hyper reads no further than it understands, so this cannot be.
        return Rest::Ended(End::Client("bytes left between requests".into()));
    };
    if state.upgrade.get() == Upgrade::Accepted
        && let Some(tunnel) = client.tunnel.take()
    {
        let mut read = Vec::from(parts.read_buf);
        read.extend_from_slice(&rest);
        Box::pin(tunnel.run(client, stream, read.into())).await;
        return Rest::Ended(End::Closed);
    }
    Rest::Ended(match end {
        Ok(()) => {
            if state.refused() || state.in_body.get() {
                linger(&mut stream).await;
            } else {
                let _ = timeout(LINGER, stream.shutdown()).await;
            }
            End::Closed
        }
        Err(_) if state.broken.get() => {
            // A clean close could pass for the end of the response.
            drained(&stream, relay::LINGER).await;
            stream.abort();
            End::Closed
        }
        Err(error) => End::Client(error.into()),
    })
}

async fn serve_http2<D: Transport + 'static, S: ServiceStream>(
    client: Rc<Client<S>>,
    stream: Prefixed<D>,
) -> End {
    let settings = &client.worker.settings;
    let state = Rc::clone(&client.state);
    state.last.set(Instant::now());
    let handler = Rc::clone(&client);
    let service = service_fn(move |request| exchange::handle(&handler, request));
    let mut connection = http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER_LIMIT)
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(super::guard::HEAD_LIMIT).unwrap_or(u32::MAX))
        .serve_connection(TokioIo::new(stream), service);
    let mut watch = Watch::new(settings, settings.idle_timeout, client.worker.epoch);
    let drain = &client.worker.drain;
    let mut drained = false;
    let end = poll_fn(|cx| {
        loop {
            if let Poll::Ready(end) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(end);
            }
            if !drained && (drain.has_begun() || watch.poll(&state, cx).is_some()) {
                drained = true;
                Pin::new(&mut connection).graceful_shutdown();
                continue;
            }
            return Poll::Pending;
        }
    })
    .await;
    match end {
        Ok(()) => End::Closed,
        Err(error) => End::Client(error.to_string().into()),
    }
}

/// Says that nothing more will be sent, and takes what still comes for a
/// while.
async fn linger<D: Transport + 'static>(stream: &mut D) {
    let drain = async {
        stream.shutdown().await?;
        let mut scratch = vec![0; 8 * 1024];
        let mut taken = 0;
        while taken < LINGER_BYTES {
            match stream.read(&mut scratch).await? {
                0 => break,
                read => taken += read,
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(LINGER, drain).await;
}

/// A stream with bytes in front that were read from it already.
struct Prefixed<D> {
    first: Bytes,
    stream: D,
}

impl<D: AsyncRead + Unpin> AsyncRead for Prefixed<D> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<D: AsyncWrite + Unpin> AsyncWrite for Prefixed<D> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write_parts(&mut self.stream, cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
