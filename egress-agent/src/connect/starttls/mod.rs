//! TLS that starts inside a protocol, by policy
//! (`egress-agent.dev/starttls`): the application speaks in the clear, or asks
//! for opportunistic TLS; we ask the server for TLS, verify it, and answer the
//! application in the server's place.
//!
//! Two steps. [`begin`] talks to the server on the plain connection until TLS
//! can start, and is part of every dial, so that another endpoint can still be
//! tried. What the application must hear then, before bytes are relayed, is
//! left as an [`Opening`], which [`open`] carries out once the connection has
//! been chosen. MySQL alone needs the application's own first packet before TLS
//! can start: until then its [`Stream`] cannot carry a byte.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::dial::Connected;
use super::error::ConnectError;
use super::stream::Stream;
use super::tls::{self, Prepared};
use crate::endpoint::resolved::Destination;
use crate::policy::model::StartTls;

mod error;
mod imap;
mod ldap;
mod lines;
mod mysql;
mod packets;
mod password;
mod postgres;
mod smtp;
#[cfg(test)]
mod tests;

pub use error::StartTlsFailure;

/// How long an application and its server may take for what comes before
/// bytes are relayed (PostgreSQL's `authentication_timeout` is as long).
const OPENING: Duration = Duration::from_mins(1);
/// How long an application that is refused has to say what it wanted, and then
/// to read why.
const FAREWELL: Duration = Duration::from_secs(3);
/// Longest explanation to an application, in bytes.
const TEXT: usize = 1_000;

/// What the application must hear, or say, before bytes are relayed.
#[derive(Debug)]
pub enum Opening {
    /// PostgreSQL: TLS stands; the application starts its session.
    Postgres,
    /// TLS stands; the server's greeting is the application's.
    Greeting(Vec<u8>),
    /// MySQL: the server has greeted in the clear and waits.
    Mysql(Box<Waiting>),
}

/// A connection that TLS starts on when the application has answered.
#[derive(Debug)]
pub struct Waiting {
    greeting: mysql::Greeting,
    plain: Plain,
    prepared: Prepared,
    destination: Destination,
    limit: Duration,
}

/// A socket in the clear.
#[derive(Debug)]
pub(super) enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What the server allows after [`begin`].
pub(super) enum Begun {
    /// TLS now, then this.
    Tls(Option<Opening>),
    /// TLS after the application's first packet.
    Later(mysql::Greeting),
}

/// Asks the server for TLS, and reads not a byte beyond its consent: whatever
/// follows in the clear would be taken for TLS, and fail as such.
pub(super) async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    protocol: StartTls,
    stream: &mut S,
    local: Option<SocketAddr>,
) -> Result<Begun, StartTlsFailure> {
    Ok(match protocol {
        StartTls::Postgres => {
            postgres::begin(stream).await?;
            Begun::Tls(Some(Opening::Postgres))
        }
        StartTls::Mysql => Begun::Later(mysql::greeting(stream).await?),
        StartTls::Smtp => {
            let greeting = smtp::begin(stream, local).await?;
            Begun::Tls(Some(Opening::Greeting(greeting)))
        }
        StartTls::Imap => {
            let greeting = imap::begin(stream).await?;
            Begun::Tls(Some(Opening::Greeting(greeting)))
        }
        StartTls::Ldap => {
            ldap::begin(stream).await?;
            Begun::Tls(None)
        }
    })
}

impl Opening {
    /// TLS waits for the application.
    pub(super) fn later(
        greeting: mysql::Greeting,
        plain: Plain,
        prepared: Prepared,
        destination: &Destination,
        limit: Duration,
    ) -> Self {
        Self::Mysql(Box::new(Waiting {
            greeting,
            plain,
            prepared,
            destination: destination.clone(),
            limit,
        }))
    }

    /// Whether the application waits for the server's first words, which we
    /// hold.
    pub const fn speaks_first(&self) -> bool {
        match self {
            Self::Postgres => false,
            Self::Greeting(_) | Self::Mysql(_) => true,
        }
    }
}

/// Carries out what a connection owes the application; bytes may be relayed
/// then. An application that is refused hears why in its own protocol, as far
/// as that has words for it.
///
/// # Errors
/// What keeps TLS from starting, on either side.
pub async fn open<C: AsyncRead + AsyncWrite + Unpin>(
    connected: &mut Connected,
    client: &mut C,
    destination: &Destination,
) -> Result<(), ConnectError> {
    let Some(opening) = connected.opening.take() else {
        return Ok(());
    };
    let failed = |failure| ConnectError::StartTls {
        to: destination.clone(),
        failure,
    };
    let opened = async {
        match opening {
            Opening::Postgres => postgres::open(client, &mut connected.stream)
                .await
                .map_err(failed),
            Opening::Greeting(greeting) => {
                client
                    .write_all(&greeting)
                    .await
                    .map_err(|error| failed(StartTlsFailure::ClientBroken(error)))?;
                Ok(())
            }
            Opening::Mysql(waiting) => mysql::open(client, *waiting, connected).await,
        }
    };
    match timeout(OPENING, opened).await {
        Ok(opened) => opened,
        Err(_) => Err(failed(StartTlsFailure::Late(OPENING))),
    }
}

/// Starts TLS with no application there, to see whether it can be started.
///
/// # Errors
/// What keeps TLS from starting.
pub(super) async fn start_alone(connected: &mut Connected) -> Result<(), ConnectError> {
    match connected.opening.take() {
        Some(Opening::Mysql(waiting)) => {
            let request = mysql::plain_request();
            waiting.start(&request, connected).await
        }
        _ => Ok(()),
    }
}

impl Waiting {
    /// Asks for TLS with `request`, and starts it.
    async fn start(self, request: &[u8], connected: &mut Connected) -> Result<(), ConnectError> {
        let Self {
            plain,
            prepared,
            destination,
            limit,
            ..
        } = self;
        let to = destination.clone();
        let started = tokio::time::Instant::now();
        let start = async {
            let failed = |error| ConnectError::StartTls {
                to: destination.clone(),
                failure: StartTlsFailure::Broken(error),
            };
            Ok(match plain {
                Plain::Tcp(mut stream) => {
                    stream.write_all(request).await.map_err(failed)?;
                    let (stream, facts) =
                        tls::handshake(prepared, tls::Alpn::None, stream, &destination).await?;
                    (Stream::Tls(Box::new(stream)), facts)
                }
                Plain::Unix(mut stream) => {
                    stream.write_all(request).await.map_err(failed)?;
                    let (stream, facts) =
                        tls::handshake(prepared, tls::Alpn::None, stream, &destination).await?;
                    (Stream::TlsUnix(Box::new(stream)), facts)
                }
            })
        };
        let (stream, facts) =
            timeout(limit, start)
                .await
                .unwrap_or(Err(ConnectError::TimedOut {
                    to,
                    after: limit,
                    phase: super::error::Phase::Tls,
                }))?;
        connected.stream = stream;
        connected.tls = Some(facts);
        connected.tls_time = started.elapsed();
        Ok(())
    }
}

/// Tells an application, in its protocol, why its connection fails, before
/// anything was said on either side. `false`: the protocol has no words for
/// it here.
pub async fn refuse<C: AsyncRead + AsyncWrite + Unpin>(
    protocol: StartTls,
    client: &mut C,
    why: &str,
) -> bool {
    let words = match protocol {
        StartTls::Postgres => {
            // The application must have named its session to read an error.
            let startup = timeout(FAREWELL, postgres::startup(client)).await;
            match startup {
                Ok(Ok(_)) => postgres::error_response(why),
                _ => return false,
            }
        }
        StartTls::Mysql => mysql::error_packet(0, false, why),
        StartTls::Smtp => format!("421 4.7.0 {}\r\n", plain_text(why)).into_bytes(),
        StartTls::Imap => format!("* BYE {}\r\n", plain_text(why)).into_bytes(),
        StartTls::Ldap => return false,
    };
    farewell(client, &words).await;
    true
}

/// Last words, then the end, in a way that the application can read them: a
/// close with unread bytes would be a reset, which takes them back.
async fn farewell<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C, words: &[u8]) {
    let goodbye = async {
        client.write_all(words).await?;
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(64 * 1024), &mut tokio::io::sink()).await
    };
    // It may be gone already.
    let _: Result<io::Result<u64>, _> = timeout(FAREWELL, goodbye).await;
}

/// Printable ASCII on one line, of bounded length, for protocols of lines.
fn plain_text(text: &str) -> String {
    text.chars()
        .take(TEXT)
        .map(|c| match c {
            ' '..='~' => c,
            _ => '?',
        })
        .collect()
}

/// What a peer said, fit for a log.
fn quoted(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end()
        .escape_debug()
        .take(200)
        .collect()
}
