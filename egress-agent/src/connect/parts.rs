//! Writing several parts at once.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

/// Most bytes of several parts that are copied next to each other and written
/// as one: a head and a small body.
const TOGETHER: usize = 4 * 1024;

thread_local! {
    static BUFFER: RefCell<[u8; TOGETHER]> = const { RefCell::new([0; TOGETHER]) };
}

/// Writes `parts`, those that are small as one: the kernel takes one part for
/// a fifth less than a list (writev(2)), even a list of one.
///
/// # Errors
/// Those of the stream.
pub fn poll_write_parts<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    parts: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    let mut filled = parts.iter().filter(|part| !part.is_empty());
    let first = filled.next();
    if filled.next().is_none() {
        return stream.poll_write(cx, first.map_or(&[], |part| part));
    }
    let size: usize = parts.iter().map(|part| part.len()).sum();
    if size > TOGETHER {
        return stream.poll_write_vectored(cx, parts);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut length = 0;
        for part in parts {
            buffer[length..length + part.len()].copy_from_slice(part);
            length += part.len();
        }
        stream.poll_write(cx, &buffer[..length])
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes a certain number of bytes, and remembers them and how they came.
    #[derive(Default)]
    struct Sink {
        taken: Vec<u8>,
        lists: usize,
        most: usize,
    }

    impl AsyncWrite for Sink {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.most);
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.lists += 1;
            let all: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            self.poll_write(cx, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn all_parts_are_written_in_order(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..5),
            most in 1usize..10_000,
        ) {
            let mut sink = Sink { most, ..Sink::default() };
            let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let written = poll_write_parts(&mut sink, &mut cx, &slices);
            let all = parts.concat();
            let wanted = all.len().min(most);
            prop_assert!(matches!(written, Poll::Ready(Ok(count)) if count == wanted));
            prop_assert_eq!(&sink.taken, &all[..wanted]);
            let filled = parts.iter().filter(|part| !part.is_empty()).count();
            prop_assert_eq!(sink.lists == 1, filled > 1 && all.len() > TOGETHER);
        }
    }
}
