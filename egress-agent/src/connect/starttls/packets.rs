//! MySQL packets: a length of three bytes, a sequence number, a payload
//! (chapter "Protocol Basics" of the protocol's manual).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

const HEADER: usize = 4;
/// Longest payload before the session begins: what a client sends with its
/// attributes stays far below.
const LIMIT: usize = 256 * 1024;

/// Reads and writes the packets of one side, and counts them: both ends number
/// the packets of one exchange as one row.
pub(super) struct Packets<'a, S> {
    stream: &'a mut S,
    /// Of the packet being read. It may hold a password.
    buffer: Zeroizing<Vec<u8>>,
    /// Number of the next packet, whoever sends it.
    next: u8,
}

/// Why there is no packet.
#[derive(Debug)]
pub(super) enum PacketError {
    /// The stream broke or ended.
    Broken(io::Error),
    /// The packet is too long.
    TooLong,
    /// Its number is not the next one.
    OutOfOrder,
}

impl<'a, S> Packets<'a, S> {
    pub(super) fn new(stream: &'a mut S, next: u8) -> Self {
        Self {
            stream,
            buffer: Zeroizing::default(),
            next,
        }
    }

    /// Bytes of a packet that is not complete.
    pub(super) fn begun(&self) -> &[u8] {
        &self.buffer
    }

    /// Number of the next packet.
    pub(super) const fn number(&self) -> u8 {
        self.next
    }

    pub(super) const fn stream(&mut self) -> &mut S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> Packets<'_, S> {
    /// The next payload, and not a byte beyond. Safe to cancel.
    pub(super) async fn read(&mut self) -> Result<Zeroizing<Vec<u8>>, PacketError> {
        loop {
            let want = match *self.buffer.as_slice() {
                [a, b, c, number, ..] => {
                    let length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
                    if length > LIMIT {
                        return Err(PacketError::TooLong);
                    }
                    if number != self.next {
                        return Err(PacketError::OutOfOrder);
                    }
                    HEADER + length
                }
                _ => HEADER,
            };
            let have = self.buffer.len();
            if have >= HEADER && have == want {
                let payload = Zeroizing::new(self.buffer[HEADER..].to_vec());
                self.buffer = Zeroizing::default();
                self.next = self.next.wrapping_add(1);
                return Ok(payload);
            }
            // In one piece, so that no copy of it is left behind by growing.
            self.buffer.reserve_exact(want - have);
            let mut part = (&mut *self.stream).take((want - have) as u64);
            let count = part
                .read_buf(&mut *self.buffer)
                .await
                .map_err(PacketError::Broken)?;
            if count == 0 {
                let end = io::ErrorKind::UnexpectedEof.into();
                return Err(PacketError::Broken(end));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Packets<'_, S> {
    /// Sends a payload with the next number.
    pub(super) async fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        let packet = Zeroizing::new(packet(self.next, payload));
        self.next = self.next.wrapping_add(1);
        self.stream.write_all(&packet).await?;
        self.stream.flush().await
    }
}

/// A packet; of a payload within [`LIMIT`].
pub(super) fn packet(number: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b, c, ..] = payload.len().to_le_bytes();
    let mut packet = Vec::with_capacity(HEADER + payload.len());
    packet.extend([a, b, c, number]);
    packet.extend(payload);
    packet
}
