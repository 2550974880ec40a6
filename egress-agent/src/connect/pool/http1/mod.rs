//! One HTTP/1 connection to a service.
//!
//! It has no task of its own: whoever has the lease drives it, sending and
//! receiving in one poll. That saves a request two changes of task and four
//! channels, and it is known exactly whether a byte of the request has gone
//! out. Heads are parsed by httparse.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, response};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncReadExt, ReadBuf};

use super::error::{SendError, SendFailure};
use super::{Io, Payload, RequestHead, trailers};
use crate::connect::poll_write_parts;

mod decode;
mod encode;

#[cfg(test)]
mod tests;

use decode::{Framing, Piece};

/// Most bytes of a read that is copied out of the worker's own buffer: most
/// responses, head and body, are smaller, and a copy that is as large as what
/// came is cheaper than a buffer as large as what may come.
const SCRATCH: usize = 16 * 1024;
/// Most room for one read, reached while a body fills what there is.
const MOST_ROOM: usize = 64 * 1024;
/// Header fields for which a spare map may have room.
const SPARE_FIELDS: usize = 32;

thread_local! {
    /// One buffer for the first read of every response of the worker.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}
/// Data up to this size is copied next to its chunk header rather than sent
/// from where it is.
const SMALL: usize = 1024;

/// A connection, and the request and response under way on it.
pub(super) struct Connection<B, S> {
    io: S,
    read: BytesMut,
    /// Room for the next read, if the last one filled what it had.
    room: Option<usize>,
    /// An empty map for the next response's headers.
    spare: HeaderMap,
    sending: Sending<B>,
    /// What is still to come of a response's body; `None`: nothing.
    receiving: Option<Framing>,
    /// Another request may follow the response.
    keep_alive: bool,
}

/// The request under way.
struct Sending<B> {
    /// Bytes to be written: a head, chunk headers, small data.
    out: Vec<u8>,
    /// How many of them are written.
    written: usize,
    /// Data behind `out` that is sent from where it is.
    data: Bytes,
    /// What ends the data: the CR LF of a chunk, or nothing.
    tail: &'static [u8],
    framing: encode::Framing,
    /// The body; `None` when all of it was taken.
    body: Option<B>,
    /// A byte of this request has been written.
    begun: bool,
    /// Something was written since the last flush.
    dirty: bool,
    /// Writing failed. The response may have come before that.
    failed: Option<io::Error>,
}

/// Why sending stopped.
enum Stop {
    /// The stream.
    Io(io::Error),
    /// The body, or its length.
    Body(io::Error),
}

impl<B: Payload, S: Io> Connection<B, S> {
    pub(super) fn new(io: S) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            room: None,
            spare: HeaderMap::new(),
            sending: Sending {
                out: Vec::new(),
                written: 0,
                data: Bytes::new(),
                tail: b"",
                framing: encode::Framing::Length(0),
                body: None,
                begun: false,
                dirty: false,
                failed: None,
            },
            receiving: None,
            keep_alive: true,
        }
    }

    /// Sends a request and returns the head of its response. Its body is then
    /// taken with [`Self::poll_frame`], which goes on sending, too.
    pub(super) async fn send(
        &mut self,
        head: &RequestHead<'_>,
        body: B,
    ) -> Result<response::Parts, SendError> {
        let sending = &mut self.sending;
        sending.framing = encode::head(&mut sending.out, head, &body.size_hint());
        sending.body = (!body.is_end_stream()).then_some(body);
        sending.begun = false;
        self.keep_alive = false;
        let head = poll_fn(|cx| self.poll_head(cx, head.method)).await?;
        self.keep_alive = head.keep_alive && head.parts.status != StatusCode::SWITCHING_PROTOCOLS;
        self.receiving = match head.framing {
            Framing::Length(0) => None,
            framing => Some(framing),
        };
        Ok(head.parts)
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
    ) -> Poll<Result<decode::Head, SendError>> {
        if let Some(error) = self.advance(cx) {
            return Poll::Ready(Err(SendError::new(SendFailure::RequestBody, error)));
        }
        loop {
            if !self.read.is_empty() {
                match decode::head(&mut self.read, method, &mut self.spare) {
                    // 100 and 103 precede the response; 101 is one.
                    Ok(Some(head))
                        if head.parts.status.is_informational()
                            && head.parts.status != StatusCode::SWITCHING_PROTOCOLS =>
                    {
                        continue;
                    }
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(error) => {
                        return Poll::Ready(Err(SendError::new(SendFailure::Protocol, error)));
                    }
                }
            }
            let error = match ready!(self.poll_fill(cx)) {
                Ok(0) => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the service closed the connection before the response",
                ),
                Ok(_) => continue,
                Err(error) => error,
            };
            // What made sending fail says more than the end that followed.
            let error = self.sending.failed.take().unwrap_or(error);
            let failure = if self.sending.begun {
                SendFailure::Closed
            } else {
                SendFailure::Unsent
            };
            return Poll::Ready(Err(SendError::new(failure, error)));
        }
    }

    /// The next piece of the response's body.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // The response may have begun before the request was complete.
        let _ = self.advance(cx);
        loop {
            let Some(framing) = &mut self.receiving else {
                return Poll::Ready(None);
            };
            match framing {
                Framing::Length(left) => {
                    if !self.read.is_empty() {
                        let most = usize::try_from(*left).unwrap_or(usize::MAX);
                        let data = self.read.split_to(most.min(self.read.len())).freeze();
                        *left -= data.len() as u64;
                        if *left == 0 {
                            self.receiving = None;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Framing::UntilClose => {
                    if !self.read.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(self.read.split().freeze()))));
                    }
                }
                Framing::Chunked(chunk) => match chunk.next(&mut self.read) {
                    Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(Piece::Trailers(trailers)) => {
                        self.receiving = None;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    Ok(Piece::End) => {
                        self.receiving = None;
                        return Poll::Ready(None);
                    }
                    Ok(Piece::More) => {}
                    Err(error) => {
                        let error = io::Error::new(io::ErrorKind::InvalidData, error);
                        return Poll::Ready(Some(Err(error)));
                    }
                },
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if self.receiving == Some(Framing::UntilClose) => {
                    self.receiving = None;
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// The response's body, if all of it has come and the request is sent.
    pub(super) fn whole(&mut self) -> Option<Bytes> {
        let Some(Framing::Length(length)) = self.receiving else {
            return None;
        };
        let length = usize::try_from(length).ok()?;
        let sent = self.sending.body.is_none() && self.sending.is_written();
        if !sent || self.read.len() < length {
            return None;
        }
        self.receiving = None;
        Some(self.read.split_to(length).freeze())
    }

    /// Whether the response's body has ended.
    pub(super) const fn is_end_stream(&self) -> bool {
        self.receiving.is_none()
    }

    /// What is known of the length of the response's body.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self.receiving {
            None => SizeHint::with_exact(0),
            Some(Framing::Length(left)) => SizeHint::with_exact(left),
            Some(_) => SizeHint::default(),
        }
    }

    /// Whether another request may be sent: the last one and its response are
    /// complete, and nothing speaks against it.
    pub(super) fn is_reusable(&self) -> bool {
        let sending = &self.sending;
        self.keep_alive
            && self.receiving.is_none()
            && self.read.is_empty()
            && sending.failed.is_none()
            && sending.body.is_none()
            && sending.is_written()
    }

    /// While idle: ready when the service has closed the connection, or has
    /// sent what nobody asked for.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        Pin::new(&mut self.io)
            .poll_read(cx, &mut buffer)
            .map(|_| ())
    }

    /// The stream after a 101, and what was read beyond the response.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        (self.io, self.read.freeze())
    }

    /// Says goodbye (close_notify, FIN) as far as that needs no waiting.
    pub(super) fn close(mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut self.io).poll_shutdown(&mut cx);
    }

    /// Sends as much as can be sent. An error is that of the body; one of the
    /// stream is kept until it is known whether a response came before it.
    fn advance(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        if self.sending.failed.is_some() {
            return None;
        }
        match self.sending.poll(&mut self.io, cx) {
            Poll::Ready(Err(Stop::Body(error))) => Some(error),
            Poll::Ready(Err(Stop::Io(error))) => {
                self.sending.failed = Some(error);
                None
            }
            Poll::Ready(Ok(())) | Poll::Pending => None,
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (read, room) = if let Some(room) = self.room {
            if self.read.capacity() - self.read.len() < room {
                self.read.reserve(room);
            }
            let read = ready!(pin!(self.io.read_buf(&mut self.read)).poll(cx))?;
            (read, room)
        } else {
            let read = ready!(self.poll_copy(cx))?;
            (read, SCRATCH)
        };
        self.room = (read >= room).then_some((room * 2).min(MOST_ROOM));
        Poll::Ready(Ok(read))
    }

    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { io, read, .. } = self;
        BUFFER.with_borrow_mut(|buffer| {
            let mut some = ReadBuf::new(buffer);
            ready!(Pin::new(io).poll_read(cx, &mut some))?;
            let some = some.filled();
            // Where what came before is not in use any more, so is its memory.
            read.extend_from_slice(some);
            Poll::Ready(Ok(some.len()))
        })
    }

    /// Takes a map that is not needed any more, for the headers of the next
    /// response.
    pub(super) fn recycle(&mut self, mut headers: HeaderMap) {
        headers.clear();
        if headers.capacity() <= SPARE_FIELDS {
            self.spare = headers;
        }
    }
}

impl<B: Payload> Sending<B> {
    fn is_written(&self) -> bool {
        self.out.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    fn poll<S: Io>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        loop {
            ready!(self.poll_write(io, cx)).map_err(Stop::Io)?;
            let Some(body) = &mut self.body else {
                return self.poll_flush(io, cx);
            };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => {
                    ready!(self.poll_flush(io, cx))?;
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.take(data).map_err(Stop::Body)?,
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        let trailers = trailers::allowed(trailers);
                        self.end(Some(&trailers)).map_err(Stop::Body)?;
                    }
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Stop::Body(error))),
                Poll::Ready(None) => self.end(None).map_err(Stop::Body)?,
            }
        }
    }

    /// Takes the next data of the body.
    fn take(&mut self, data: Bytes) -> io::Result<()> {
        match &mut self.framing {
            encode::Framing::Length(left) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or_else(|| io::Error::other("more body than Content-Length says"))?;
                self.data = data;
            }
            encode::Framing::Chunked => {
                if data.is_empty() {
                    return Ok(());
                }
                encode::chunk(&mut self.out, data.len());
                if data.len() <= SMALL {
                    self.out.extend_from_slice(&data);
                    self.out.extend_from_slice(b"\r\n");
                } else {
                    self.data = data;
                    self.tail = b"\r\n";
                }
            }
        }
        Ok(())
    }

    /// The body has ended.
    fn end(&mut self, trailers: Option<&HeaderMap>) -> io::Result<()> {
        self.body = None;
        match self.framing {
            encode::Framing::Length(0) => Ok(()),
            encode::Framing::Length(_) => {
                Err(io::Error::other("less body than Content-Length says"))
            }
            encode::Framing::Chunked => {
                encode::last_chunk(&mut self.out, trailers);
                Ok(())
            }
        }
    }

    fn poll_write<S: Io>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_written() {
            let out = &self.out[self.written..];
            let mut count = if self.data.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, out))?
            } else {
                let parts = [
                    IoSlice::new(out),
                    IoSlice::new(&self.data),
                    IoSlice::new(self.tail),
                ];
                ready!(poll_write_parts(io, cx, &parts))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begun = true;
            self.dirty = true;
            let of_out = count.min(out.len());
            self.written += of_out;
            count -= of_out;
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
            }
            let of_data = count.min(self.data.len());
            self.data.advance(of_data);
            self.tail = &self.tail[count - of_data..];
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush<S: Io>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        if self.dirty {
            ready!(Pin::new(io).poll_flush(cx)).map_err(Stop::Io)?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}
