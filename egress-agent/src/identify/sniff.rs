//! Looks at the first bytes of a connection while leaving them in the socket
//! (`MSG_PEEK`), until they tell what the client speaks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::Spoken;
use super::head::{Head, http_head, http1_host};
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

/// What the first bytes told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// What the client speaks.
    pub spoken: Spoken,
    /// Whom it wants to speak to.
    pub name: Name,
}

/// The name in a client's first bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    /// SNI or Host, lower case, without port.
    Told(Arc<str>),
    /// There is none.
    Missing,
    /// It was not looked for, or stands where a look does not reach (the
    /// compressed fields of HTTP/2).
    Unseen,
}

/// What is asked of the first bytes.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// What may be told apart.
    pub look: Look,
    /// HTTP/1 is read on until its Host is known.
    pub host: bool,
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
    question: Question,
    patience: Patience,
) -> Result<Heard, Silence> {
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
            Err(_) => return Ok(unclear(question.look)),
        };
        if let Some(heard) = tell(&bytes[..count], question) {
            return Ok(heard);
        }
        if count == bytes.len() {
            if count >= LIMIT {
                return Ok(unclear(question.look));
            }
            bytes.resize((count * 2).min(LIMIT), 0);
            continue;
        }
        known = count;
        match timeout_at(deadline, more(stream)).await {
            Ok(Ok(ready)) if ready.is_read_closed() => {
                // The last bytes may have come together with the end.
                let count = stream.peek(&mut bytes).await.unwrap_or(known);
                let heard = tell(&bytes[..count], question);
                return Ok(heard.unwrap_or_else(|| unclear(question.look)));
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(Silence::Gone(Some(error))),
            Err(_) => return Ok(unclear(question.look)),
        }
    }
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
const fn unclear(look: Look) -> Heard {
    Heard {
        spoken: match look {
            Look::TlsOrHttp => Spoken::Http,
            Look::Any | Look::TlsOnly => Spoken::Opaque,
        },
        name: Name::Missing,
    }
}

/// `None`: more bytes decide.
pub(super) fn tell(bytes: &[u8], question: Question) -> Option<Heard> {
    match client_hello(bytes) {
        Hello::Yes(sni) => {
            let name = sni.clone().map_or(Name::Missing, Name::Told);
            let spoken = Spoken::Tls { sni };
            return Some(Heard { spoken, name });
        }
        Hello::Partial => return None,
        Hello::No => {}
    }
    let Question { look, host } = question;
    let (spoken, name) = match (look, host) {
        (Look::TlsOnly, _) => (Spoken::Opaque, Name::Missing),
        (Look::TlsOrHttp, false) => (Spoken::Http, Name::Unseen),
        (Look::Any | Look::TlsOrHttp, _) => match http_head(bytes) {
            Head::Partial => return None,
            Head::Http1 if host => (Spoken::Http, http1_host(bytes)?),
            Head::Http1 | Head::Http2 => (Spoken::Http, Name::Unseen),
            Head::No if look == Look::TlsOrHttp => (Spoken::Http, Name::Missing),
            Head::No => (Spoken::Opaque, Name::Missing),
        },
    };
    Some(Heard { spoken, name })
}
