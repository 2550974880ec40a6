//! Lines of a server that may be hostile.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::error::StartTlsFailure;
use crate::policy::model::StartTls;

/// Longest line (RFC 5321 section 4.5.3.1.5 has 512 for SMTP; IMAP's
/// capabilities are longer).
const LINE: usize = 8 * 1024;
/// Most lines of one answer.
pub(super) const LINES: usize = 100;

/// Reads lines, and knows whether bytes follow the last one.
pub(super) struct Lines<'a, S> {
    stream: &'a mut S,
    protocol: StartTls,
    buffer: Vec<u8>,
}

impl<'a, S: AsyncRead + Unpin> Lines<'a, S> {
    pub(super) const fn new(stream: &'a mut S, protocol: StartTls) -> Self {
        Self {
            stream,
            protocol,
            buffer: Vec::new(),
        }
    }

    /// The next line, with its end.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, StartTlsFailure> {
        let mut known = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer[known..]) {
                let rest = self.buffer.split_off(known + end + 1);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            known = self.buffer.len();
            if known >= LINE {
                return Err(StartTlsFailure::NotSpoken(self.protocol));
            }
            let mut part = (&mut *self.stream).take((LINE - known) as u64);
            let count = part
                .read_buf(&mut self.buffer)
                .await
                .map_err(StartTlsFailure::broken)?;
            if count == 0 {
                let end = io::ErrorKind::UnexpectedEof.into();
                return Err(StartTlsFailure::Broken(end));
            }
        }
    }

    /// For writing; what has been read stays.
    pub(super) const fn stream(&mut self) -> &mut S {
        self.stream
    }

    /// The server has agreed to TLS: what it sent beyond that, it sent too
    /// early.
    pub(super) fn finish(self) -> Result<(), StartTlsFailure> {
        if self.buffer.is_empty() {
            Ok(())
        } else {
            Err(StartTlsFailure::Early(self.protocol))
        }
    }
}
