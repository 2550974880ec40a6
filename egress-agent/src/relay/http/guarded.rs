//! The client's stream as hyper sees it: read through the [`Guard`].

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::guard::{Guard, HEAD_LIMIT, Next, Refusal};
use crate::connect::poll_write_parts;

/// Most bytes taken from the kernel at once.
const SCRATCH: usize = 64 * 1024;
/// What hyper gets in place of a refused request. The service recognises it by
/// its number and answers with the refusal.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\n\r\n";

/// Reads what there is and gives a copy of it; `None` at the end. Nothing is
/// allocated before something comes.
pub(super) fn poll_some<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<Vec<u8>>>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        let read = read.filled();
        Poll::Ready(Ok((!read.is_empty()).then(|| read.to_vec())))
    })
}

thread_local! {
    /// One buffer for all connections of the worker: bytes stay in it only
    /// within one poll, so an idle connection needs none of its own.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// What an upgrade asked for by the last head has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Upgrade {
    /// None was asked for.
    No,
    /// The service has not answered yet.
    Asked,
    /// The service went on with HTTP.
    Refused,
    /// The service changes the protocol.
    Accepted,
}

/// What the stream, the service and the driver of one client connection know
/// of each other.
#[derive(Debug)]
pub(super) struct State {
    /// Number of the request that is refused, and why.
    refusal: Cell<Option<(u32, Refusal)>>,
    /// The body under way is refused, and why.
    body_refusal: Cell<Option<Refusal>>,
    /// Requests that the service has been given.
    served: Cell<u32>,
    /// Requests being served.
    pub(super) active: Cell<u32>,
    /// A head has begun at this time and is not complete.
    pub(super) head_since: Cell<Option<Instant>>,
    /// The last time that something was read or a request ended.
    pub(super) last: Cell<Instant>,
    /// The client is to be refused for being slow.
    pub(super) expired: Cell<bool>,
    /// The last thing read was inside a body.
    pub(super) in_body: Cell<bool>,
    pub(super) upgrade: Cell<Upgrade>,
    /// The client does not take what is written.
    write_blocked: Cell<bool>,
    /// A response broke off: the connection must not end as if all were well.
    pub(super) broken: Cell<bool>,
}

impl State {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            refusal: Cell::new(None),
            body_refusal: Cell::new(None),
            served: Cell::new(0),
            active: Cell::new(0),
            head_since: Cell::new(None),
            last: Cell::new(Instant::now()),
            expired: Cell::new(false),
            in_body: Cell::new(false),
            upgrade: Cell::new(Upgrade::No),
            write_blocked: Cell::new(false),
            broken: Cell::new(false),
        })
    }

    /// Whether no request has come yet.
    pub(super) fn is_new(&self) -> bool {
        self.served.get() == 0
    }

    /// A request arrives at the service: why it is refused, if it is.
    pub(super) fn begin(&self) -> Option<Refusal> {
        let number = self.served.get().wrapping_add(1);
        self.served.set(number);
        self.refusal
            .get()
            .and_then(|(refused, refusal)| (refused == number).then_some(refusal))
    }

    /// The request under way has its answer: an upgrade that was asked for and
    /// not accepted is refused.
    pub(super) fn answer_upgrade(&self) {
        if self.upgrade.get() == Upgrade::Asked {
            self.upgrade.set(Upgrade::Refused);
        }
    }

    /// Whether nothing is under way in either direction.
    pub(super) fn rests(&self) -> bool {
        self.active.get() == 0
            && self.head_since.get().is_none()
            && !self.in_body.get()
            && !self.write_blocked.get()
            && !self.refused()
            && self.upgrade.get() == Upgrade::No
    }

    /// Why the body of the request under way is refused, if it is.
    pub(super) fn body_refusal(&self) -> Option<Refusal> {
        self.body_refusal.get()
    }

    /// Whether the client was refused: what it still sends is of no use.
    pub(super) fn refused(&self) -> bool {
        self.refusal.get().is_some() || self.body_refusal.get().is_some()
    }
}

/// A stream whose reading side is guarded.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    guard: Guard,
    state: Rc<State>,
    /// Bytes that may be passed on and have not been yet.
    ready: Bytes,
    /// The beginning of a head, or what follows a request for an upgrade.
    held: Vec<u8>,
}

impl<S> Guarded<S> {
    /// `first`: bytes that were read from the stream already.
    pub(super) fn new(stream: S, state: Rc<State>, first: Vec<u8>) -> Self {
        let mut guarded = Self {
            stream,
            guard: Guard::after(state.served.get()),
            state,
            ready: Bytes::new(),
            held: first,
        };
        guarded.sift();
        guarded
    }

    /// The stream, and what was read from it but not passed on.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        let mut rest = Vec::from(self.ready);
        rest.extend_from_slice(&self.held);
        (self.stream, rest.into())
    }

    /// Moves what may be passed on from `held` to `ready`.
    fn sift(&mut self) {
        let (pass, next) = self.guard.follow(&self.held);
        if pass > 0 {
            let rest = self.held.split_off(pass);
            self.ready = std::mem::replace(&mut self.held, rest).into();
            self.state.head_since.set(None);
        }
        self.note(next);
    }

    fn note(&mut self, next: Next) {
        let state = Rc::clone(&self.state);
        match next {
            Next::All => {
                self.held = Vec::new();
                state.head_since.set(None);
            }
            Next::Partial => {
                if state.head_since.get().is_none() && !self.guard.awaiting() {
                    state.head_since.set(Some(Instant::now()));
                }
            }
            Next::Refuse(refusal) => self.refuse(refusal),
        }
        if self.guard.awaiting() {
            // Only a head that was just let through can start the wait.
            if state.upgrade.get() == Upgrade::No {
                state.upgrade.set(Upgrade::Asked);
            }
        }
        state.in_body.set(!self.guard.between_requests());
    }

    fn refuse(&mut self, refusal: Refusal) {
        tracing::info!(
            status = refusal.status.as_u16(),
            reason = refusal.reason,
            "request refused"
        );
        self.held = Vec::new();
        self.state.head_since.set(None);
        if !self.guard.between_requests() {
            self.state.body_refusal.set(Some(refusal));
            return;
        }
        self.state
            .refusal
            .set(Some((self.guard.heads().wrapping_add(1), refusal)));
        let mut ready = Vec::from(std::mem::take(&mut self.ready));
        ready.extend_from_slice(STAND_IN);
        self.ready = ready.into();
    }

    fn give(&mut self, out: &mut ReadBufCursor<'_>) {
        let length = self.ready.len().min(out.remaining());
        out.put_slice(&self.ready[..length]);
        self.ready.advance(length);
    }
}

impl<S: AsyncRead + Unpin> Read for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                this.give(&mut out);
                return Poll::Ready(Ok(()));
            }
            if let Some(refusal) = this.state.body_refusal.get() {
                let error = io::Error::new(io::ErrorKind::InvalidData, refusal.reason);
                return Poll::Ready(Err(error));
            }
            if this.state.refused() {
                // Nothing more is taken from this client; the connection ends
                // with the answer.
                return Poll::Pending;
            }
            if this.state.expired.get() {
                let refusal = Refusal {
                    status: http::StatusCode::REQUEST_TIMEOUT,
                    reason: "request headers did not arrive in time",
                };
                this.refuse(refusal);
                continue;
            }
            match this.state.upgrade.get() {
                Upgrade::Refused => {
                    this.state.upgrade.set(Upgrade::No);
                    this.guard.resume();
                    this.sift();
                    continue;
                }
                Upgrade::Asked if this.held.len() > HEAD_LIMIT => return Poll::Pending,
                _ => {}
            }
            let done = BUFFER.with_borrow_mut(|buffer| {
                let length = out.remaining().min(buffer.len());
                let mut read = ReadBuf::new(&mut buffer[..length]);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                let read = read.filled();
                if read.is_empty() {
                    return Poll::Ready(Ok(true));
                }
                if this.held.is_empty() {
                    let (pass, next) = this.guard.follow(read);
                    out.put_slice(&read[..pass]);
                    if next == Next::Partial {
                        this.held.extend_from_slice(&read[pass..]);
                    }
                    this.note(next);
                    if !this.guard.between_requests() {
                        this.state.last.set(Instant::now());
                    }
                    Poll::Ready(Ok(pass > 0))
                } else {
                    this.held.extend_from_slice(read);
                    if !this.guard.awaiting() {
                        this.sift();
                    }
                    Poll::Ready(Ok(false))
                }
            });
            match done {
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Write for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.state.write_blocked.set(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = poll_write_parts(&mut self.stream, cx, parts);
        self.state.write_blocked.set(written.is_pending());
        written
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
