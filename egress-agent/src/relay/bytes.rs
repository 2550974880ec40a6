//! Copies bytes both ways until both sides have ended, one breaks, or a limit
//! is reached.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::Transport;
use super::buffer::{Buffers, Class};
use super::splice::Pipe;
use crate::flag::Flag;

/// How long what was sent may stay unacknowledged before a truncated stream is
/// reset all the same.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// A read of so much begins the moving by splice, where both sides allow it.
const BULK: usize = 64 * 1024;
/// Plaintext of one record of TLS (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;
/// How often a side that is not being read is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// When there is nothing to wait for.
const FAR: Duration = Duration::from_hours(24);

/// Limits of one relayed connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// `tcp.idleTimeout`: no byte either way for so long.
    pub idle: Option<Duration>,
    /// End of `tcp.maxConnectionDuration`.
    pub deadline: Option<Instant>,
}

/// Bytes relayed so far, readable while the relay runs.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the application to the service.
    pub received: Cell<u64>,
    /// From the service to the application.
    pub sent: Cell<u64>,
}

/// How a relayed connection ended.
#[derive(Debug)]
pub enum End {
    /// Both sides ended in order.
    Closed,
    /// Reading from or writing to the application failed.
    Client(io::Error),
    /// Reading from or writing to the service failed.
    Upstream(io::Error),
    /// The service closed TCP without ending TLS (no `close_notify`): what
    /// arrived may have been cut short by anyone on the way.
    Truncated,
    /// The application ended its side, nothing came after that, and the
    /// service closed TCP without ending TLS, as many do with a client that
    /// has finished. No failure; yet an application that only half-closed and
    /// still listens gets a reset, for it may have waited for an answer.
    Unsigned,
    /// No byte for the idle time.
    Idle(Duration),
    /// The longest duration is over.
    TooLong,
    /// The endpoint vanished from DNS and its grace time is over.
    Drained,
}

impl End {
    /// Envoy's flag; `None` for an orderly end.
    pub const fn flag(&self) -> Option<Flag> {
        match self {
            Self::Closed | Self::Unsigned => None,
            Self::Client(_) => Some(Flag::DownstreamConnectionTermination),
            Self::Upstream(_) | Self::Truncated => Some(Flag::UpstreamConnectionTermination),
            Self::Idle(_) => Some(Flag::StreamIdleTimeout),
            Self::TooLong => Some(Flag::DurationTimeout),
            Self::Drained => Some(Flag::LocalReset),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Unsigned => {
                f.write_str("closed by the application, then by the service without ending TLS")
            }
            Self::Client(error) => write!(f, "the application broke the connection: {error}"),
            Self::Upstream(error) => write!(f, "the service broke the connection: {error}"),
            Self::Truncated => f.write_str(
                "the service closed the connection without ending TLS (no close_notify), so what \
                 it sent may be cut short; the application got a reset",
            ),
            Self::Idle(limit) => {
                write!(f, "no byte either way for {limit:?} (tcp.idleTimeout)")
            }
            Self::TooLong => f.write_str("tcp.maxConnectionDuration is over"),
            Self::Drained => f.write_str(
                "the endpoint vanished from DNS and the grace time of its connections is over",
            ),
        }
    }
}

/// Relays until the end. A half-close on one side is passed on to the other;
/// a broken side makes the other side's close a reset. Limits end in a plain
/// close of both, as in Envoy. The caller drops the streams.
pub async fn bytes<C: Transport, U: Transport>(
    client: &mut C,
    upstream: &mut U,
    limits: Limits,
    buffers: &Buffers,
    traffic: &Traffic,
) -> End {
    let mut relay = Relay {
        buffers,
        outward: Direction::new(&traffic.received),
        inward: Direction::new(&traffic.sent),
        active: Instant::now(),
        watching: false,
        parted: None,
    };
    let mut timer = pin!(sleep_until(relay.due(&limits, relay.active)));
    let end = poll_fn(|context| {
        if let Poll::Ready(end) = relay.poll(context, client, upstream) {
            return Poll::Ready(end);
        }
        // The timer is not moved with every byte: when it fires, it is set
        // anew for what is left.
        if relay.is_blind() && !relay.watching {
            relay.watching = true;
            let now = Instant::now();
            timer.as_mut().reset(relay.due(&limits, now));
        }
        while timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if let Some(end) = relay.over(&limits, now, client, upstream) {
                return Poll::Ready(end);
            }
            relay.watching = relay.is_blind();
            timer.as_mut().reset(relay.due(&limits, now));
        }
        Poll::Pending
    })
    .await;
    match &end {
        End::Client(_) => upstream.abort(),
        End::Upstream(_) => client.abort(),
        End::Truncated | End::Unsigned => {
            // What the service did send has arrived in order and must reach
            // the application before the reset throws away what is queued.
            drained(client, LINGER).await;
            client.abort();
        }
        End::Closed | End::Idle(_) | End::TooLong | End::Drained => {}
    }
    end
}

/// Waits until the peer has acknowledged everything, or `limit` is over.
pub(super) async fn drained(stream: &impl Transport, limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    while stream.unacknowledged() > 0 && Instant::now() < deadline {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

struct Relay<'a> {
    buffers: &'a Buffers,
    /// Application to service.
    outward: Direction<'a>,
    /// Service to application.
    inward: Direction<'a>,
    /// When a byte last moved.
    active: Instant,
    /// The timer is set to look for a broken side.
    watching: bool,
    /// Bytes from the service when the application's end was passed on.
    parted: Option<u64>,
}

impl Relay<'_> {
    /// When to look at the limits next.
    fn due(&self, limits: &Limits, now: Instant) -> Instant {
        let idle = limits.idle.map(|limit| self.active + limit);
        let look = self.watching.then(|| now + LOOK);
        [idle, limits.deadline, look]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + FAR)
    }

    /// Whether a limit is reached, or a side broke unseen.
    fn over(
        &self,
        limits: &Limits,
        now: Instant,
        client: &impl Transport,
        upstream: &impl Transport,
    ) -> Option<End> {
        if limits.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(End::TooLong);
        }
        if let Some(idle) = limits.idle
            && self.active + idle <= now
        {
            return Some(End::Idle(idle));
        }
        if !self.is_blind() {
            return None;
        }
        let client = client.broken().map(End::Client);
        client.or_else(|| upstream.broken().map(End::Upstream))
    }

    /// A side that is not being read, because it has ended or because the
    /// other one takes no more, could be reset and nobody would see it.
    fn is_blind(&self) -> bool {
        self.outward.is_blind() || self.inward.is_blind()
    }

    fn poll<C: Transport, U: Transport>(
        &mut self,
        context: &mut Context<'_>,
        client: &mut C,
        upstream: &mut U,
    ) -> Poll<End> {
        let moved = self.outward.moved() + self.inward.moved();
        let parted = self.inward.state == State::Ended;
        let outward = self
            .outward
            .poll(context, client, upstream, self.buffers, parted);
        if let Poll::Ready(Err(broken)) = outward {
            return Poll::Ready(match broken {
                Broken::Read(error) => End::Client(error),
                Broken::Write(error) => End::Upstream(error),
            });
        }
        if outward.is_ready() && self.parted.is_none() {
            self.parted = Some(self.inward.moved());
        }
        let parted = self.outward.state == State::Ended;
        let inward = self
            .inward
            .poll(context, upstream, client, self.buffers, parted);
        if let Poll::Ready(Err(broken)) = inward {
            return Poll::Ready(match broken {
                Broken::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    if self.parted == Some(self.inward.moved()) {
                        End::Unsigned
                    } else {
                        End::Truncated
                    }
                }
                Broken::Read(error) => End::Upstream(error),
                Broken::Write(error) => End::Client(error),
            });
        }
        if self.outward.moved() + self.inward.moved() != moved {
            self.active = Instant::now();
        }
        if outward.is_ready() && inward.is_ready() {
            return Poll::Ready(End::Closed);
        }
        Poll::Pending
    }
}

enum Broken {
    Read(io::Error),
    Write(io::Error),
}

/// One direction.
struct Direction<'a> {
    /// Bytes read and not yet written lie in `start..end`.
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    class: Class,
    /// Bytes are moved through a pipe: many come, and both sides allow it.
    bulk: bool,
    /// The kernel refused that once.
    no_splice: bool,
    /// A pipe with something in it.
    pipe: Option<Pipe>,
    /// What reading came to, to be told after the bytes before it.
    error: Option<io::Error>,
    state: State,
    /// Something was written since the last flush.
    unflushed: bool,
    count: &'a Cell<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    /// The reading side has ended; the other is to be told.
    Ending,
    Ended,
}

impl<'a> Direction<'a> {
    fn new(count: &'a Cell<u64>) -> Self {
        Self {
            buffer: None,
            start: 0,
            end: 0,
            class: Class::default(),
            bulk: false,
            no_splice: false,
            pipe: None,
            error: None,
            state: State::Copying,
            unflushed: false,
            count,
        }
    }

    fn is_blind(&self) -> bool {
        self.buffer.is_some() || self.pipe.is_some() || self.state != State::Copying
    }

    fn moved(&self) -> u64 {
        self.count.get()
    }

    /// `last`: the other direction has ended.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut impl Transport,
        to: &mut impl Transport,
        buffers: &Buffers,
        last: bool,
    ) -> Poll<Result<(), Broken>> {
        loop {
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                // The close that follows says the same, with one call less.
                State::Ending if last && to.plain().is_some() => self.state = State::Ended,
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(context)).map_err(Broken::Write)?;
                    self.state = State::Ended;
                }
                State::Copying => {
                    // What was copied before the first splice comes first.
                    ready!(self.poll_write(context, to, buffers)).map_err(Broken::Write)?;
                    if let (Some(from), Some(to)) = (from.plain(), to.plain()) {
                        ready!(self.poll_drain(context, to, buffers)).map_err(Broken::Write)?;
                        if self.bulk {
                            ready!(self.poll_fill(context, from, buffers)).map_err(Broken::Read)?;
                            continue;
                        }
                    }
                    let read = self.poll_read(context, from, buffers);
                    if read.is_pending() && self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(context)).map_err(Broken::Write)?;
                        self.unflushed = false;
                    }
                    ready!(read).map_err(Broken::Read)?;
                }
            }
        }
    }

    /// Moves on what the pipe holds and gives the pipe back.
    fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        to: &TcpStream,
        buffers: &Buffers,
    ) -> Poll<io::Result<()>> {
        if let Some(pipe) = &mut self.pipe {
            let count = self.count;
            let moved = |bytes| count.set(count.get() + bytes as u64);
            ready!(pipe.drain(context, to, moved))?;
        }
        if let Some(pipe) = self.pipe.take() {
            buffers.give_back_pipe(pipe);
        }
        Poll::Ready(Ok(()))
    }

    /// Fills an empty pipe, which is kept only if bytes came.
    fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        buffers: &Buffers,
    ) -> Poll<io::Result<()>> {
        let Some(mut pipe) = buffers.take_pipe() else {
            self.bulk = false;
            return Poll::Ready(Ok(()));
        };
        match pipe.fill(context, from) {
            Poll::Ready(Ok(count)) if count > 0 => {
                if count < Class::Small.size() {
                    // The burst is over.
                    self.bulk = false;
                    self.class = Class::Small;
                }
                self.pipe = Some(pipe);
                Poll::Ready(Ok(()))
            }
            other => {
                buffers.give_back_pipe(pipe);
                match other {
                    Poll::Ready(Ok(_)) => self.state = State::Ending,
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                        self.bulk = false;
                        self.no_splice = true;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Writes what the buffer holds and gives the buffer back.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
        buffers: &Buffers,
    ) -> Poll<io::Result<()>> {
        let Some(buffer) = &self.buffer else {
            return Poll::Ready(Ok(()));
        };
        while self.start < self.end {
            let pending = &buffer[self.start..self.end];
            let written = ready!(Pin::new(&mut *to).poll_write(context, pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += written;
            self.unflushed = true;
            self.count.set(self.count.get() + written as u64);
        }
        if let Some(buffer) = self.buffer.take() {
            buffers.give_back(buffer);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into a fresh buffer, which is kept only if bytes came: once, and
    /// then what the stream holds already (TLS gives a record at a time).
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        from: &mut impl Transport,
        buffers: &Buffers,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        let mut buffer = buffers.take(self.class);
        let mut target = ReadBuf::new(&mut buffer);
        let read = Pin::new(&mut *from).poll_read(context, &mut target);
        let mut filled = target.filled().len();
        if filled == 0 {
            let ended = matches!(read, Poll::Ready(Ok(())));
            buffers.give_back(buffer);
            if ended {
                self.state = State::Ending;
            }
            return read;
        }
        while from.has_more() && target.remaining() >= RECORD {
            match Pin::new(&mut *from).poll_read(context, &mut target) {
                Poll::Ready(Ok(())) if target.filled().len() > filled => {
                    filled = target.filled().len();
                }
                // The end shows again; an error may not.
                Poll::Ready(Ok(())) | Poll::Pending => break,
                Poll::Ready(Err(error)) => {
                    self.error = Some(error);
                    break;
                }
            }
        }
        self.bulk = filled >= BULK && !self.no_splice;
        self.class = match (self.class, filled == buffer.len() || from.has_more()) {
            (Class::Small, true) => Class::Large,
            // A large one that is not even filled as far as a small one.
            (Class::Large, false) if filled < Class::Small.size() => Class::Small,
            (class, _) => class,
        };
        self.buffer = Some(buffer);
        self.start = 0;
        self.end = filled;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        for direction in [&mut self.outward, &mut self.inward] {
            if let Some(buffer) = direction.buffer.take() {
                self.buffers.give_back(buffer);
            }
        }
    }
}
