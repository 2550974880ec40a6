//! Looks at the first bytes of a connection while leaving them in the socket
//! (`MSG_PEEK`), until they tell what the client speaks.

use std::io;
use std::time::Duration;

use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::Spoken;
use super::head::{Head, http_head};
use super::hello::{self, Hello, client_hello};

/// A first look; an ordinary ClientHello or request fits.
const FIRST_LOOK: usize = 2 * 1024;
/// How much is looked at at most.
pub(super) const LIMIT: usize = hello::LIMIT;

/// What may be told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// The port says HTTP: all that is not TLS is HTTP, for its parser to
    /// accept or refuse.
    TlsOrHttp,
    /// TLS, HTTP, or anything else.
    Any,
    /// TLS or not: the port says that it is no HTTP.
    TlsOnly,
}

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the first byte; `None`: as long as it takes.
    pub first: Option<Duration>,
    /// From the first byte on until it is clear what they are; what is unclear
    /// then counts as opaque.
    pub rest: Duration,
}

/// Why nothing could be told.
#[derive(Debug)]
pub enum Silence {
    /// The client ended or broke the connection without a byte.
    Gone(Option<io::Error>),
    /// No byte came in time.
    TimedOut,
}

/// Waits for the client's first bytes and tells what they are. Nothing is
/// consumed. Safe to cancel.
pub async fn sniff(
    stream: &TcpStream,
    look: Look,
    patience: Patience,
) -> Result<(Spoken, Vec<u8>), Silence> {
    let first = patience.first.map(|wait| Instant::now() + wait);
    let arrived = async { stream.readable().await.map_err(|e| Silence::Gone(Some(e))) };
    match first {
        Some(deadline) => timeout_at(deadline, arrived)
            .await
            .map_err(|_| Silence::TimedOut)??,
        None => arrived.await?,
    }
    let deadline = Instant::now() + patience.rest;
    let mut bytes = vec![0; FIRST_LOOK];
    let mut known = 0;
    loop {
        // `peek` waits when the readiness was stale.
        let count = match timeout_at(deadline, stream.peek(&mut bytes)).await {
            Ok(Ok(0)) => return Err(Silence::Gone(None)),
            Ok(Ok(count)) => count,
            Ok(Err(error)) => return Err(Silence::Gone(Some(error))),
            Err(_) if known == 0 => return Err(Silence::TimedOut),
            Err(_) => return Ok((unclear(look), bytes_of(bytes, known))),
        };
        if let Some(spoken) = tell(&bytes[..count], look) {
            return Ok((spoken, bytes_of(bytes, count)));
        }
        if count == bytes.len() {
            if count >= LIMIT {
                return Ok((unclear(look), bytes_of(bytes, count)));
            }
            bytes.resize((count * 2).min(LIMIT), 0);
            continue;
        }
        known = count;
        match timeout_at(deadline, more(stream)).await {
            Ok(Ok(ready)) if ready.is_read_closed() => {
                // The last bytes may have come together with the end.
                let count = stream.peek(&mut bytes).await.unwrap_or(known);
                let spoken = tell(&bytes[..count], look).unwrap_or(unclear(look));
                return Ok((spoken, bytes_of(bytes, count)));
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(Silence::Gone(Some(error))),
            Err(_) => return Ok((unclear(look), bytes_of(bytes, known))),
        }
    }
}

fn bytes_of(mut bytes: Vec<u8>, count: usize) -> Vec<u8> {
    bytes.truncate(count);
    bytes
}

/// Waits for bytes beyond those that are there. A peek leaves the socket
/// readable, so the readiness is cleared by hand; epoll is edge-triggered and
/// reports again when more arrives (epoll(7)).
async fn more(stream: &TcpStream) -> io::Result<Ready> {
    let _ = stream.try_io(Interest::READABLE, || {
        Err::<(), _>(io::ErrorKind::WouldBlock.into())
    });
    stream.ready(Interest::READABLE).await
}

/// What unclear bytes count as.
const fn unclear(look: Look) -> Spoken {
    match look {
        Look::TlsOrHttp => Spoken::Http,
        Look::Any | Look::TlsOnly => Spoken::Opaque,
    }
}

/// `None`: more bytes decide.
pub(super) fn tell(bytes: &[u8], look: Look) -> Option<Spoken> {
    match client_hello(bytes) {
        Hello::Yes(sni) => return Some(Spoken::Tls { sni }),
        Hello::Partial => return None,
        Hello::No => {}
    }
    match look {
        Look::TlsOrHttp => Some(Spoken::Http),
        Look::TlsOnly => Some(Spoken::Opaque),
        Look::Any => match http_head(bytes) {
            Head::Http1 | Head::Http2 => Some(Spoken::Http),
            Head::Partial => None,
            Head::No => Some(Spoken::Opaque),
        },
    }
}
