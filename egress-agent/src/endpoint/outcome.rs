//! How a connection attempt or request ended, as far as an endpoint's health
//! is concerned.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What [`Picked::report`](super::Picked::report) is told. The first report of
/// a pick is its verdict; later ones are ignored, because what follows a
/// connection (TCP) or a response (HTTP) says nothing about the endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Opaque TCP: the connection is up, TLS included. HTTP reports the
    /// response instead.
    Connected,
    /// The connection was refused, or the host is unreachable.
    ConnectRefused,
    /// No connection within `connectTimeout`.
    ConnectTimeout,
    /// The connection failed otherwise.
    ConnectFailed,
    /// The TLS handshake failed.
    TlsFailed,
    /// Response headers came with this status.
    Status(u16),
    /// Response headers came with this grpc-status (a trailers-only answer).
    GrpcStatus(u8),
    /// The connection or stream ended before the response.
    Reset,
    /// The per-try or the route's timeout passed before the response.
    Timeout,
    /// The client went away, or we gave up for a reason of our own: says
    /// nothing about the endpoint.
    Cancelled,
}

impl Outcome {
    /// Whether the endpoint did its part; `None` when this says nothing.
    pub const fn success(self) -> Option<bool> {
        match self {
            Self::Connected => Some(true),
            Self::Status(status) => Some(status < 500),
            Self::GrpcStatus(status) => Some(grpc_to_http(status) < 500),
            Self::Cancelled => None,
            Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::ConnectFailed
            | Self::TlsFailed
            | Self::Reset
            | Self::Timeout => Some(false),
        }
    }
}

impl Outcome {
    /// No connection came about.
    pub(super) const fn connect_failed(self) -> bool {
        matches!(
            self,
            Self::ConnectRefused | Self::ConnectTimeout | Self::ConnectFailed | Self::TlsFailed
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::ConnectRefused => f.write_str("connect refused"),
            Self::ConnectTimeout => f.write_str("connect timeout"),
            Self::ConnectFailed => f.write_str("connect failed"),
            Self::TlsFailed => f.write_str("TLS handshake failed"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::GrpcStatus(status) => write!(f, "grpc-status {status}"),
            Self::Reset => f.write_str("reset"),
            Self::Timeout => f.write_str("timeout"),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

/// The newest failure of an endpoint, in one word: kind (8 bits), status (16),
/// milliseconds of the set's life (40: 34 years).
#[derive(Debug, Default)]
pub(super) struct LastFailure(AtomicU64);

impl LastFailure {
    pub(super) fn set(&self, outcome: Outcome, age: Duration) {
        let (kind, status) = match outcome {
            Outcome::ConnectRefused => (1, 0),
            Outcome::ConnectTimeout => (2, 0),
            Outcome::ConnectFailed => (3, 0),
            Outcome::TlsFailed => (4, 0),
            Outcome::Status(status) => (5, u64::from(status)),
            Outcome::GrpcStatus(status) => (6, u64::from(status)),
            Outcome::Reset => (7, 0),
            Outcome::Timeout => (8, 0),
            Outcome::Connected | Outcome::Cancelled => return,
        };
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX) & ((1 << 40) - 1);
        let word = kind << 56 | status << 40 | age;
        self.0.store(word, Ordering::Relaxed);
    }

    /// What, and at which age of the set.
    pub(super) fn get(&self) -> Option<(Outcome, Duration)> {
        let word = self.0.load(Ordering::Relaxed);
        let status = u16::try_from(word >> 40 & 0xffff).unwrap_or(0);
        let outcome = match word >> 56 {
            1 => Outcome::ConnectRefused,
            2 => Outcome::ConnectTimeout,
            3 => Outcome::ConnectFailed,
            4 => Outcome::TlsFailed,
            5 => Outcome::Status(status),
            6 => Outcome::GrpcStatus(u8::try_from(status).unwrap_or(u8::MAX)),
            7 => Outcome::Reset,
            8 => Outcome::Timeout,
            _ => return None,
        };
        Some((outcome, Duration::from_millis(word & ((1 << 40) - 1))))
    }
}

/// The HTTP status that stands for a grpc-status (Envoy's `grpcToHttpStatus`).
pub(super) const fn grpc_to_http(status: u8) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        // Unknown, internal, data loss, and numbers that gRPC does not know.
        _ => 500,
    }
}
