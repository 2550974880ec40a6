//! Dial, TLS and STARTTLS, connection pools.

mod dial;
mod error;
mod inspect;
mod parts;
pub mod pool;
mod probe;
mod proxy_protocol;
mod read_ahead;
pub mod starttls;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod tunnel;

pub use dial::{Connected, DialContext, dial, dial_observed};
pub use error::{ConnectError, Phase, TlsFailure, explain_broken};
pub use inspect::inspect;
pub use parts::poll_write_parts;
pub use probe::EndpointProber;
pub use read_ahead::ReadAhead;
pub use stream::Stream;
pub use tls::{Alpn, TlsFacts, origination};
pub use tunnel::TunnelFailure;
