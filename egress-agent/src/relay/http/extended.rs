//! Extended CONNECT (RFC 8441): an HTTP/2 stream that carries another protocol,
//! WebSocket above all. Towards the service it is an HTTP/1.1 upgrade.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue, Method, Request};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::relay::Transport;

const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

/// An HTTP/2 stream that asks to carry another protocol.
pub(super) struct Extended {
    /// `:protocol`.
    pub(super) protocol: HeaderValue,
    /// The stream, once the answer is on its way.
    pub(super) stream: OnUpgrade,
}

/// Makes the GET of an upgrade out of an extended CONNECT. `None` when it is
/// none.
pub(super) fn take(request: &mut Request<Incoming>) -> Option<Extended> {
    if *request.method() != Method::CONNECT {
        return None;
    }
    let protocol = request.extensions_mut().remove::<Protocol>()?;
    let protocol = HeaderValue::from_str(protocol.as_str()).ok()?;
    let stream = hyper::upgrade::on(&mut *request);
    *request.method_mut() = Method::GET;
    if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
        // HTTP/2 needs no proof that the server understood; HTTP/1.1 does.
        let key = BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes());
        if let Ok(key) = HeaderValue::try_from(key) {
            request.headers_mut().insert(WEBSOCKET_KEY, key);
        }
    }
    Some(Extended { protocol, stream })
}

/// The client's side of the tunnel.
pub(super) struct Tunnelled(TokioIo<Upgraded>);

impl Tunnelled {
    pub(super) fn new(stream: Upgraded) -> Self {
        Self(TokioIo::new(stream))
    }
}

impl Transport for Tunnelled {
    /// Dropping the stream before its end resets it.
    fn abort(&self) {}
}

impl AsyncRead for Tunnelled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tunnelled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
