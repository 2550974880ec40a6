//! What a relay needs of a stream beyond reading and writing.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::connect::Stream;

/// A byte stream that can be broken off.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Makes the coming close a reset. What has not been sent is lost.
    fn abort(&self);

    /// Bytes sent that the peer has not acknowledged.
    fn unacknowledged(&self) -> usize {
        0
    }
}

impl Transport for TcpStream {
    fn abort(&self) {
        let _ = self.set_zero_linger();
    }

    fn unacknowledged(&self) -> usize {
        crate::accept::socket::unacknowledged(self).unwrap_or(0)
    }
}

impl Transport for UnixStream {
    fn abort(&self) {}
}

impl<S: Transport> Transport for TlsStream<S> {
    fn abort(&self) {
        self.get_ref().0.abort();
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
    fn abort(&self) {
        match self {
            Self::Tcp(stream) => stream.abort(),
            Self::Unix(stream) => stream.abort(),
            Self::Tls(stream) => stream.abort(),
            Self::TlsUnix(stream) => stream.abort(),
        }
    }

    fn unacknowledged(&self) -> usize {
        self.tcp().map_or(0, Transport::unacknowledged)
    }
}
