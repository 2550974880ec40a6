//! A connection to a service, in the clear or over TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::ClientConnection;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::read_ahead::ReadAhead;

/// A connection to a service.
#[derive(Debug)]
pub enum Stream {
    /// TCP in the clear.
    Tcp(TcpStream),
    /// A Unix socket in the clear.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<ReadAhead<TcpStream>>>),
    /// TLS over a Unix socket.
    TlsUnix(Box<TlsStream<ReadAhead<UnixStream>>>),
    /// TLS has yet to start ([`super::starttls`]): carries nothing, so that
    /// nothing can leave in the clear.
    Unready,
}

/// What [`Stream::Unready`] answers.
fn unready() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "TLS has not started yet")
}

impl Stream {
    /// Completes when a byte (or the end, or an error) can be read. Consumes
    /// nothing; safe to cancel.
    ///
    /// # Errors
    /// What reading answers.
    pub async fn speaks(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
            // Session tickets make the socket readable and are no bytes of
            // the service.
            Self::Tls(stream) => stream.fill_buf().await.map(drop),
            Self::TlsUnix(stream) => stream.fill_buf().await.map(drop),
            Self::Unready => Err(unready()),
        }
    }

    /// The TLS session, where there is one.
    pub fn session(&self) -> Option<&ClientConnection> {
        match self {
            Self::Tls(stream) => Some(stream.get_ref().1),
            Self::TlsUnix(stream) => Some(stream.get_ref().1),
            Self::Tcp(_) | Self::Unix(_) | Self::Unready => None,
        }
    }

    /// The TCP socket underneath.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0.get_ref()),
            Self::Unix(_) | Self::TlsUnix(_) | Self::Unready => None,
        }
    }
}

macro_rules! forward {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
            Stream::Tls($stream) => $call,
            Stream::TlsUnix($stream) => $call,
            Stream::Unready => Poll::Ready(Err(unready())),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        forward!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, stream => Pin::new(stream).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::TlsUnix(stream) => stream.is_write_vectored(),
            Self::Unready => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, stream => Pin::new(stream).poll_shutdown(context))
    }
}
