//! Whether a failed try is followed by another, and when (ISTIO-API section
//! 11).

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, StatusCode};

use crate::policy::routes::{RetryOn, RetryPolicy};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// How a try ended that may be followed by another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TryEnd {
    /// A response, with the gRPC status of a trailers-only one.
    Response {
        status: StatusCode,
        grpc: Option<u8>,
    },
    /// No TCP or TLS connection.
    ConnectFailed,
    /// HTTP/2: the service did not look at the request.
    Refused,
    /// The connection or stream ended before the response; `sent`: some of
    /// the request may have gone out.
    Reset { sent: bool },
    /// `perTryTimeout`.
    Timeout,
}

/// Whether `on` names this end.
pub(super) fn retriable(on: &RetryOn, end: TryEnd) -> bool {
    let any_reset = on.server_error || on.gateway_error || on.reset;
    match end {
        TryEnd::Response { status, grpc } => {
            (on.server_error && status.is_server_error())
                || (on.gateway_error && matches!(status.as_u16(), 502..=504))
                || (on.retriable_4xx && status == StatusCode::CONFLICT)
                || on.statuses.contains(&status)
                || grpc.is_some_and(|grpc| on.grpc.contains(&grpc))
        }
        TryEnd::ConnectFailed => any_reset || on.connect_failure || on.reset_before_request,
        TryEnd::Refused => any_reset || on.refused_stream || on.reset_before_request,
        TryEnd::Reset { sent } => any_reset || (on.reset_before_request && !sent),
        TryEnd::Timeout => any_reset,
    }
}

/// Whether a later try could follow once bytes of the request have gone out;
/// if not, its body need not be kept.
pub(super) fn may_replay(policy: &RetryPolicy) -> bool {
    let on = &policy.on;
    policy.attempts > 0
        && (on.server_error
            || on.gateway_error
            || on.reset
            || on.retriable_4xx
            || on.refused_stream
            || !on.statuses.is_empty()
            || !on.grpc.is_empty())
}

/// Time before retry number `retry` (from 1): random below (2^N - 1) times
/// the base, and below ten times the base (Envoy's
/// `JitteredExponentialBackOffStrategy`).
pub(super) fn backoff(base: Duration, retry: u32) -> Duration {
    let factor = 2u32.saturating_pow(retry).saturating_sub(1).clamp(1, 10);
    let most = base.saturating_mul(factor).as_micros();
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    Duration::from_micros(fastrand::u64(..most.max(1)))
}

/// Whether sending the request twice does no more than sending it once (RFC
/// 9110 section 9.2.2), so that a connection found dead may be replaced even
/// though it may have taken the request.
pub(super) fn idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// The gRPC status of a response that has no body (trailers-only).
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}
