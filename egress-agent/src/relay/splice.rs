//! Moves bytes between two TCP sockets through a pipe, so that they stay in
//! the kernel (splice(2)): for streams that fill large buffers, where copying
//! is what costs.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Room asked of the pipe. It is counted in pages: one slot for each, which a
/// fragment of a segment takes however small it is.
const ROOM: usize = 1024 * 1024;
/// Most bytes taken in at once: what a reader that stands still makes us hold.
const MOST: usize = 256 * 1024;

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    /// # Errors
    /// When no descriptors are left.
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused above /proc/sys/fs/pipe-max-size; a smaller one works too.
        let _ = fcntl_setpipe_size(&write, ROOM);
        Ok(Self {
            read,
            write,
            held: 0,
        })
    }

    /// Whether nothing is in it.
    pub(super) const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes in what `from` has. Only for an empty pipe: a full one would look
    /// like a socket with nothing to read. 0 is the end of the stream.
    pub(super) fn fill(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(context))?;
            let moved = from.try_io(Interest::READABLE, || {
                Ok(splice(from, None, &self.write, None, MOST, FLAGS)?)
            });
            match moved {
                Ok(count) => {
                    self.held = count;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if is_not_now(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Gives to `to` what it takes of the content; `moved` counts.
    pub(super) fn drain(
        &mut self,
        context: &mut Context<'_>,
        to: &TcpStream,
        mut moved: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        while self.held > 0 {
            ready!(to.poll_write_ready(context))?;
            let written = to.try_io(Interest::WRITABLE, || {
                Ok(splice(&self.read, None, to, None, self.held, FLAGS)?)
            });
            match written {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.held -= count;
                    moved(count);
                }
                Err(error) if is_not_now(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

fn is_not_now(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
