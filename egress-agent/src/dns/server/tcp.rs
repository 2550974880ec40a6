//! DNS over TCP (RFC 7766): any number of queries over one connection, their
//! answers in any order.
//!
//! Messages that are not ours go over one connection to the resolver, which
//! lives as long as there is something to answer, and come back as they are:
//! a zone transfer is a stream of messages like any other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::DnsError;
use super::super::answer::{Transport, Verdict};
use super::super::forward::framed;
use super::{Counters, Server, is_ours};

/// A connection without a message in either direction is closed after this
/// (RFC 7766 section 6.2.3 asks for a few seconds; resolvers give 10 to 30).
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Longest time to take one message in or to get one out.
const MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// Most queries of one connection that wait for the kernel.
const WAITING_LIMIT: usize = 64;

/// Serves one captured connection to its end. `resolver` is the destination
/// that the application dialled
/// ([`Captured::original`](crate::capture::Captured)), `namespace` that of the
/// caller.
///
/// # Errors
/// [`DnsError::Client`] when the client breaks the protocol or goes away in
/// the middle of a message, [`DnsError::Resolver`] when the resolver closes
/// with queries unanswered, [`DnsError::Overflow`] when too many connections
/// are open.
pub async fn serve(
    server: Arc<Server>,
    stream: TcpStream,
    resolver: SocketAddr,
    namespace: Arc<str>,
) -> Result<(), DnsError> {
    let _place = server.connections.take()?;
    if is_ours(resolver) {
        Counters::count(&server.counters.dropped);
        return Ok(());
    }
    // A lost option costs latency only.
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let mut connection = Connection {
        server,
        resolver,
        namespace,
        client: Messages::new(read),
        answers: write,
        upstream: None,
        tasks: JoinSet::new(),
    };
    connection.run().await
}

struct Connection {
    server: Arc<Server>,
    resolver: SocketAddr,
    namespace: Arc<str>,
    client: Messages,
    answers: OwnedWriteHalf,
    upstream: Option<Upstream>,
    /// Queries that wait for the kernel.
    tasks: JoinSet<Option<Vec<u8>>>,
}

/// The connection to the resolver.
struct Upstream {
    messages: Messages,
    queries: OwnedWriteHalf,
    /// Queries without an answer.
    open: Vec<Vec<u8>>,
    /// It has answered before.
    proven: bool,
}

impl Connection {
    async fn run(&mut self) -> Result<(), DnsError> {
        let mut reading = true;
        let mut idle = Instant::now() + IDLE_LIMIT;
        loop {
            let working = !self.tasks.is_empty();
            let expecting = self.upstream.as_ref().is_some_and(|up| !up.open.is_empty());
            if !reading && !working && !expecting {
                return Ok(());
            }
            tokio::select! {
                message = self.client.next(), if reading && self.waiting() < WAITING_LIMIT => {
                    match message.map_err(DnsError::Client)? {
                        Some(query) => self.take(query).await?,
                        // It may still wait for answers (half-close).
                        None => reading = false,
                    }
                }
                message = next_of(&mut self.upstream) => match message {
                    Ok(Some(answer)) => {
                        if let Some(upstream) = &mut self.upstream {
                            upstream.settle(&answer);
                        }
                        Counters::count(&self.server.counters.forwarded);
                        self.server.registry.seen().learn(&answer);
                        self.answer(&answer).await?;
                    }
                    ended => self.lose(ended).await?,
                },
                Some(done) = self.tasks.join_next() => {
                    if let Ok(Some(answer)) = done {
                        self.answer(&answer).await?;
                    }
                }
                () = sleep_until(idle) => return Ok(()),
            }
            idle = Instant::now() + IDLE_LIMIT;
        }
    }

    /// Queries without an answer.
    fn waiting(&self) -> usize {
        self.tasks.len() + self.upstream.as_ref().map_or(0, |up| up.open.len())
    }

    /// The resolver closed. With nothing asked of it, that is its right, and
    /// the next query dials again. A query may have met the close of a
    /// connection that had served its time, and goes out once more (RFC 7766
    /// section 6.2.4); one that its own connection did not answer is lost.
    async fn lose(&mut self, ended: io::Result<Option<Vec<u8>>>) -> Result<(), DnsError> {
        let Some(upstream) = self.upstream.take() else {
            return Ok(());
        };
        if !upstream.proven && !upstream.open.is_empty() {
            let source = ended.err();
            return Err(DnsError::Resolver {
                resolver: self.resolver,
                source: source.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()),
            });
        }
        for query in upstream.open {
            self.pass(query).await?;
        }
        Ok(())
    }

    async fn take(&mut self, query: Vec<u8>) -> Result<(), DnsError> {
        let verdict = self.server.decide(&query, &self.namespace, Transport::Tcp);
        match verdict {
            Verdict::Answer(bytes) => self.answer(&bytes).await,
            Verdict::Drop => Ok(()),
            Verdict::Forward => match self.pass(query.clone()).await {
                Ok(()) => Ok(()),
                // Refused is answered; a resolver that cannot even be
                // connected to in time ends the connection.
                Err(error) => match self.server.refuse(&query, &error) {
                    Some(bytes) => self.answer(&bytes).await,
                    None => Err(error),
                },
            },
            Verdict::Allocate { .. } => {
                let permit = match self.server.queries.take() {
                    Ok(permit) => permit,
                    Err(error) => {
                        return match self.server.refuse(&query, &error) {
                            Some(bytes) => self.answer(&bytes).await,
                            None => Ok(()),
                        };
                    }
                };
                let server = Arc::clone(&self.server);
                let namespace = Arc::clone(&self.namespace);
                let resolver = self.resolver;
                self.tasks.spawn(async move {
                    let _permit = permit;
                    server
                        .finish(&query, verdict, resolver, &namespace, Transport::Tcp)
                        .await
                });
                Ok(())
            }
        }
    }

    async fn answer(&mut self, message: &[u8]) -> Result<(), DnsError> {
        write(&mut self.answers, message)
            .await
            .map_err(DnsError::Client)
    }

    /// Sends a query on, over the connection to the resolver.
    async fn pass(&mut self, query: Vec<u8>) -> Result<(), DnsError> {
        let upstream = match &mut self.upstream {
            Some(upstream) => upstream,
            none => {
                let stream = self.server.forwarder.connect(self.resolver).await?;
                let (read, write) = stream.into_split();
                none.insert(Upstream {
                    messages: Messages::new(read),
                    queries: write,
                    open: Vec::new(),
                    proven: false,
                })
            }
        };
        let written = write(&mut upstream.queries, &query).await;
        upstream.open.push(query);
        match written {
            Err(source) if !upstream.proven => {
                self.upstream = None;
                Err(DnsError::Resolver {
                    resolver: self.resolver,
                    source,
                })
            }
            // Reading from it tells its end, and sends the query again.
            _ => Ok(()),
        }
    }
}

impl Upstream {
    /// Notes an answer. A zone transfer has several to one query.
    fn settle(&mut self, answer: &[u8]) {
        self.proven = true;
        let id = answer.get(..2);
        if let Some(index) = self.open.iter().position(|query| query.get(..2) == id) {
            self.open.swap_remove(index);
        }
    }
}

/// The next message from the resolver; never, while there is no connection.
async fn next_of(upstream: &mut Option<Upstream>) -> io::Result<Option<Vec<u8>>> {
    match upstream {
        Some(upstream) => upstream.messages.next().await,
        None => std::future::pending().await,
    }
}

async fn write(stream: &mut OwnedWriteHalf, message: &[u8]) -> io::Result<()> {
    // One write for length and message (RFC 7766 section 8).
    let frame = framed(message)?;
    match timeout(MESSAGE_LIMIT, stream.write_all(&frame)).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Messages from a stream.
struct Messages {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
    /// When the message that has begun must be complete.
    limit: Option<Instant>,
}

impl Messages {
    const fn new(stream: OwnedReadHalf) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            limit: None,
        }
    }

    /// The next message; `None` at a clean end. May be dropped and called
    /// again at any point: what was read is kept.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = self.cut() {
                self.limit = (!self.buffer.is_empty()).then(|| Instant::now() + MESSAGE_LIMIT);
                return Ok(Some(message));
            }
            // At most one message and what was read with it.
            self.buffer.reserve(4096);
            let read = self.stream.read_buf(&mut self.buffer);
            let length = match self.limit {
                None => read.await?,
                Some(limit) => match tokio::time::timeout_at(limit, read).await {
                    Ok(length) => length?,
                    Err(_) => return Err(io::ErrorKind::TimedOut.into()),
                },
            };
            match length {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {
                    let begun = || Instant::now() + MESSAGE_LIMIT;
                    self.limit.get_or_insert_with(begun);
                }
            }
        }
    }

    fn cut(&mut self) -> Option<Vec<u8>> {
        let length = self.buffer.first_chunk().copied().map(u16::from_be_bytes)?;
        let end = 2 + usize::from(length);
        if self.buffer.len() < end {
            return None;
        }
        let message = self.buffer[2..end].to_vec();
        self.buffer.drain(..end);
        Some(message)
    }
}
