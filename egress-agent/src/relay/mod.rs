//! Move bytes or HTTP messages, both directions, with half-close, resets and
//! idle limits.

mod buffer;
mod bytes;
pub mod http;
mod splice;
#[cfg(test)]
mod tests;
mod transport;

pub use buffer::Buffers;
pub use bytes::{End, Limits, Traffic, bytes};
use bytes::{LINGER, drained};
pub use transport::Transport;
