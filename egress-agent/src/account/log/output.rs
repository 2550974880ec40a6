//! What the access log is written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, openat};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::stdio::stdout;

use super::LogTarget;

/// The output, and what is known of its state.
pub(super) struct Output {
    target: LogTarget,
    blocking: Box<dyn Write + Send>,
    direct: Option<Direct>,
    /// What followed the part that could be written at once.
    rest: Vec<u8>,
    /// The last write failed in the middle of a line.
    torn: bool,
}

/// A way to write that never waits. Files have none: whether their pages are at
/// hand, nobody knows before.
enum Direct {
    /// The pipe, opened once more: it must not wait for us alone, and not for
    /// whoever else has it.
    Pipe(File),
    /// Standard output that is a socket (journald's), where each write can say
    /// that it must not wait.
    Socket(OwnedFd),
}

/// How much was written without waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    All,
    /// The rest is kept, to be written before anything else.
    Part,
    Nothing,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Output {
    /// # Errors
    /// When the file cannot be opened.
    pub(super) fn open(target: LogTarget) -> io::Result<Self> {
        let (blocking, direct) = open(&target)?;
        Ok(Self {
            target,
            blocking,
            direct,
            rest: Vec::new(),
            torn: false,
        })
    }

    /// Opens it anew.
    ///
    /// # Errors
    /// When it cannot be opened: it stays what it was.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        (self.blocking, self.direct) = open(&self.target)?;
        self.torn = false;
        Ok(())
    }

    pub(super) const fn target(&self) -> &LogTarget {
        &self.target
    }

    /// Writes as much of whole lines as needs no waiting.
    pub(super) fn write_now(&mut self, text: &[u8]) -> Written {
        let Some(direct) = &self.direct else {
            return Written::Nothing;
        };
        if self.torn || !self.rest.is_empty() {
            return Written::Nothing;
        }
        // What goes wrong goes wrong once more where it is waited for, and is
        // told there.
        match direct.write(text) {
            Ok(written) if written == text.len() => Written::All,
            Ok(written @ 1..) => {
                self.rest.extend_from_slice(&text[written..]);
                Written::Part
            }
            _ => Written::Nothing,
        }
    }

    /// Writes what [`Self::write_now`] has left.
    ///
    /// # Errors
    /// How many lines are lost, and why.
    pub(super) fn write_rest(&mut self) -> Result<(), (u64, io::Error)> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let rest = std::mem::take(&mut self.rest);
        let written = self.blocking.write_all(&rest);
        let written = written.and_then(|()| self.blocking.flush());
        self.torn = written.is_err();
        written.map_err(|error| {
            let lines = memchr::memchr_iter(b'\n', &rest).count();
            (lines as u64, error)
        })
    }

    /// Writes whole lines, and waits for it.
    ///
    /// # Errors
    /// Some of them may be lost.
    pub(super) fn write_all(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        // What stands before may be half a line.
        let start = if self.torn { &b"\n"[..] } else { &[] };
        let written = self.blocking.write_all(start);
        let written = written.and_then(|()| self.blocking.write_all(text));
        let written = written.and_then(|()| self.blocking.flush());
        self.torn = written.is_err();
        written
    }
}

fn open(target: &LogTarget) -> io::Result<(Box<dyn Write + Send>, Option<Direct>)> {
    Ok(match target {
        LogTarget::Stdout => {
            let direct = Direct::of(stdout());
            (Box::new(io::stdout()), direct)
        }
        LogTarget::File(path) => {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o640)
                // A pipe that nobody reads is told, rather than waited for.
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(path)
                .map_err(|error| {
                    let why = match Errno::from_io_error(&error) {
                        Some(Errno::NXIO) => "nobody reads this pipe".to_owned(),
                        _ => error.to_string(),
                    };
                    io::Error::new(error.kind(), format!("{}: {why}", path.display()))
                })?;
            fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
            let direct = Direct::of(&file);
            (Box::new(file), direct)
        }
    })
}

impl Direct {
    /// For what is open as `file`. `None` where there is no such way, or not the
    /// right to open it again.
    fn of(file: impl AsFd) -> Option<Self> {
        let file = file.as_fd();
        let status = fstat(file).ok()?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Fifo => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let pipe = openat(CWD, path, flags, Mode::empty()).ok()?;
                Some(Self::Pipe(pipe.into()))
            }
            FileType::Socket => Some(Self::Socket(file.try_clone_to_owned().ok()?)),
            _ => None,
        }
    }

    fn write(&self, text: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Pipe(pipe) => rustix::io::write(pipe, text),
            Self::Socket(socket) => send(socket, text, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::{PipeReader, Read, pipe};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// More than a pipe holds.
    const MUCH: usize = 100_000;

    fn piped() -> (Output, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        (Output::open(LogTarget::File(path.into())).unwrap(), reader)
    }

    fn much() -> Vec<u8> {
        (0..MUCH / 10)
            .flat_map(|n| format!("{n:>9}\n").into_bytes())
            .collect()
    }

    #[test]
    fn what_a_pipe_has_no_room_for_is_kept_and_goes_first() {
        let (mut output, mut reader) = piped();
        assert_eq!(output.write_now(b"first\n"), Written::All);
        assert_eq!(output.write_now(&much()), Written::Part);
        let wanted = [b"first\n", &much()[..], b"last\n"].concat();
        let mut read = vec![0; wanted.len()];
        // There is room again, but nothing may come between.
        reader.read_exact(&mut read[..20_000]).unwrap();
        assert_eq!(output.write_now(b"x\n"), Written::Nothing);
        std::thread::scope(|scope| {
            scope.spawn(|| reader.read_exact(&mut read[20_000..]).unwrap());
            output.write_rest().unwrap();
            output.write_all(b"last\n").unwrap();
        });
        assert!(read == wanted);
        assert_eq!(output.write_now(b"x\n"), Written::All);
    }

    #[test]
    fn a_reader_that_goes_away_costs_the_lines_that_were_left() {
        let (mut output, mut reader) = piped();
        let text = much();
        assert_eq!(output.write_now(&text), Written::Part);
        let mut some = vec![0; 1000];
        reader.read_exact(&mut some).unwrap();
        let before = MUCH - output.rest.len();
        drop(reader);
        let (lines, error) = output.write_rest().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(
            lines,
            text[before..].split(|byte| *byte == b'\n').count() as u64 - 1
        );
        assert_eq!(output.write_now(b"x\n"), Written::Nothing);
        assert!(output.write_all(b"x\n").is_err());
    }

    #[test]
    fn a_socket_takes_what_it_has_room_for_and_still_waits_for_others() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut output = Output {
            target: LogTarget::Stdout,
            direct: Direct::of(&near),
            blocking: Box::new(near),
            rest: Vec::new(),
            torn: false,
        };
        let text = much();
        let mut count = 1;
        while output.write_now(&text) == Written::All {
            count += 1;
        }
        let kept = output.rest.len();
        let mut read = vec![0; count * MUCH];
        std::thread::scope(|scope| {
            scope.spawn(|| far.read_exact(&mut read).unwrap());
            output.write_rest().unwrap();
            if kept == 0 {
                output.write_all(&text).unwrap();
            }
        });
        assert!(read == text.repeat(count));
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_told_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let error = Output::open(LogTarget::File(path.clone())).unwrap_err();
        let wanted = format!("{}: nobody reads this pipe", path.display());
        assert_eq!(error.to_string(), wanted);
    }

    #[test]
    fn files_are_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut output = Output::open(LogTarget::File(path.clone())).unwrap();
        assert_eq!(output.write_now(b"x\n"), Written::Nothing);
        output.write_all(b"y\n").unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"y\n");
    }
}
