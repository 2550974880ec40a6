//! What a relay needs of a stream beyond reading and writing.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::connect::{ReadAhead, Stream};

/// A byte stream that can be broken off.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Makes the coming close a reset. What has not been sent is lost.
    fn abort(&self);

    /// The error that broke the connection, while nobody reads it; only once.
    fn broken(&self) -> Option<io::Error> {
        None
    }

    /// The socket itself, where the bytes of the stream are those of the wire,
    /// and closing it tells all that shutting it down would.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    /// Whether bytes that came lie this side of the socket, so that reading on
    /// may give more without a system call.
    fn has_more(&self) -> bool {
        false
    }

    /// Bytes sent that the peer has not acknowledged.
    fn unacknowledged(&self) -> usize {
        0
    }
}

impl Transport for TcpStream {
    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn abort(&self) {
        let _ = self.set_zero_linger();
    }

    fn broken(&self) -> Option<io::Error> {
        self.take_error().ok().flatten()
    }

    fn unacknowledged(&self) -> usize {
        crate::accept::socket::unacknowledged(self).unwrap_or(0)
    }
}

impl Transport for UnixStream {
    fn abort(&self) {}

    fn broken(&self) -> Option<io::Error> {
        self.take_error().ok().flatten()
    }
}

impl<S: Transport> Transport for ReadAhead<S> {
    fn has_more(&self) -> bool {
        self.has_rest()
    }

    fn abort(&self) {
        self.get_ref().abort();
    }

    fn broken(&self) -> Option<io::Error> {
        self.get_ref().broken()
    }

    fn unacknowledged(&self) -> usize {
        self.get_ref().unacknowledged()
    }
}

impl<S: Transport> Transport for TlsStream<S> {
    fn has_more(&self) -> bool {
        self.get_ref().0.has_more()
    }

    fn abort(&self) {
        self.get_ref().0.abort();
    }

    fn broken(&self) -> Option<io::Error> {
        self.get_ref().0.broken()
    }

    fn unacknowledged(&self) -> usize {
        self.get_ref().0.unacknowledged()
    }
}

#[cfg(test)]
impl Transport for tokio::io::DuplexStream {
    fn abort(&self) {}
}

impl Transport for Stream {
    fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Unix(_) | Self::Tls(_) | Self::TlsUnix(_) | Self::Unready => None,
        }
    }

    fn has_more(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.has_more(),
            Self::TlsUnix(stream) => stream.has_more(),
            Self::Tcp(_) | Self::Unix(_) | Self::Unready => false,
        }
    }

    fn abort(&self) {
        match self {
            Self::Tcp(stream) => stream.abort(),
            Self::Unix(stream) => stream.abort(),
            Self::Tls(stream) => stream.abort(),
            Self::TlsUnix(stream) => stream.abort(),
            Self::Unready => {}
        }
    }

    fn broken(&self) -> Option<io::Error> {
        match self {
            Self::Tcp(stream) => stream.broken(),
            Self::Unix(stream) => stream.broken(),
            Self::Tls(stream) => stream.broken(),
            Self::TlsUnix(stream) => stream.broken(),
            Self::Unready => None,
        }
    }

    fn unacknowledged(&self) -> usize {
        self.tcp().map_or(0, Transport::unacknowledged)
    }
}
