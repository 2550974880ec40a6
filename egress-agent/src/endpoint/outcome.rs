//! How a connection attempt or request ended, as far as an endpoint's health
//! is concerned.

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
