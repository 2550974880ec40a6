//! Reading ahead under TLS.
//!
//! rustls asks its transport for 4 KiB at a time, so that one record of 16 KiB
//! takes five system calls. [`ReadAhead`] asks the socket for as much as there
//! is, and hands it out in the pieces asked for. It holds a buffer only while
//! something is left in it; spare ones are kept for each thread.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::parts::poll_write_parts;

/// Four records of TLS; within a core's second cache.
const SIZE: usize = 64 * 1024;
/// Spare buffers kept on each thread.
const SPARE: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take() -> Box<[u8]> {
    let spare = BUFFERS.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    BUFFERS.with_borrow_mut(|spare| {
        if spare.len() < SPARE {
            spare.push(buffer);
        }
    });
}

/// A stream that is read in large pieces.
#[derive(Debug)]
pub struct ReadAhead<S> {
    stream: S,
    /// What came and was not asked for yet: never empty.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S> ReadAhead<S> {
    /// Over `stream`.
    pub const fn new(stream: S) -> Self {
        Self { stream, rest: None }
    }

    /// The stream itself. What was read ahead is not seen there.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Whether something was read ahead.
    pub const fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    fn pinned(self: Pin<&mut Self>) -> Pin<&mut S>
    where
        S: Unpin,
    {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl<S> Drop for ReadAhead<S> {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            give_back(rest.buffer);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut rest = if let Some(rest) = this.rest.take() {
            rest
        } else {
            if target.remaining() >= SIZE {
                return Pin::new(&mut this.stream).poll_read(context, target);
            }
            let mut buffer = take();
            let mut large = ReadBuf::new(&mut buffer);
            let read = Pin::new(&mut this.stream).poll_read(context, &mut large);
            let end = large.filled().len();
            if end == 0 {
                give_back(buffer);
                return read;
            }
            ready!(read)?;
            Rest {
                buffer,
                start: 0,
                end,
            }
        };
        let count = target.remaining().min(rest.end - rest.start);
        target.put_slice(&rest.buffer[rest.start..rest.start + count]);
        rest.start += count;
        if rest.start < rest.end {
            this.rest = Some(rest);
        } else {
            give_back(rest.buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pinned().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write_parts(&mut self.get_mut().stream, context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_whatever_the_pieces() {
        let (mut far, near) = tokio::io::duplex(300_000);
        let sent: Vec<u8> = (0..200_000_u32)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        far.write_all(&sent).await.unwrap();
        drop(far);
        let mut near = ReadAhead::new(near);
        let mut received = Vec::new();
        for piece in [1, 4096, 100_000, 17, 64 * 1024, 3].into_iter().cycle() {
            let mut buffer = vec![0; piece];
            let count = near.read(&mut buffer).await.unwrap();
            if count == 0 {
                break;
            }
            received.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(received, sent);
        assert!(near.rest.is_none(), "a drained stream holds a buffer");
    }

    #[tokio::test]
    async fn one_read_of_the_socket_serves_many_small_ones() {
        let (mut far, near) = tokio::io::duplex(100_000);
        far.write_all(&[7; 20_000]).await.unwrap();
        let mut near = ReadAhead::new(near);
        let mut buffer = [0; 4096];
        assert_eq!(near.read(&mut buffer).await.unwrap(), 4096);
        // All of it has left the stream underneath.
        assert_eq!(near.rest.as_ref().map(|rest| rest.end), Some(20_000));
    }
}
