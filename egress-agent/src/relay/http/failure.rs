//! Why a try, or all of them, came to nothing, and what the application is
//! told of it.

use http::StatusCode;

use super::local::Local;
use super::retry::TryEnd;
use crate::connect::pool::{AcquireError, SendFailure};
use crate::endpoint::{Outcome, PickError};
use crate::flag::Flag;
use crate::policy::routes::Abort;
use crate::secret::SecretError;

/// Envoy's words before the reason.
const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";

/// A request that gets an answer of our own.
#[derive(Debug)]
pub(super) struct Failure {
    /// How the try ended, where another may follow.
    pub(super) end: Option<TryEnd>,
    pub(super) status: StatusCode,
    pub(super) flag: Option<Flag>,
    /// Envoy's text for the application.
    pub(super) text: String,
    /// What happened, for the log and, behind the text, the application.
    pub(super) details: String,
    pub(super) grpc: Option<u8>,
}

impl Failure {
    fn unavailable(end: Option<TryEnd>, flag: Flag, text: String, details: String) -> Self {
        Self {
            end,
            status: StatusCode::SERVICE_UNAVAILABLE,
            flag: Some(flag),
            text,
            details,
            grpc: None,
        }
    }

    /// The destination does not exist.
    pub(super) fn no_cluster() -> Self {
        let details = "the policy changed under the request".to_owned();
        Self::unavailable(None, Flag::NoClusterFound, "no cluster".to_owned(), details)
    }

    /// `inject-credential` names a secret that cannot be used.
    pub(super) fn credential(error: &SecretError) -> Self {
        let text = "the credential for this service cannot be used".to_owned();
        Self::unavailable(
            None,
            Flag::UpstreamConnectionFailure,
            text,
            error.to_string(),
        )
    }

    /// A limit is reached.
    pub(super) fn overflow(details: String) -> Self {
        let text = format!("{RESET}overflow");
        Self::unavailable(None, Flag::UpstreamOverflow, text, details)
    }

    /// `timeout`, or `perTryTimeout` if `end` is given.
    pub(super) fn timeout(end: Option<TryEnd>, details: String) -> Self {
        Self {
            end,
            status: StatusCode::GATEWAY_TIMEOUT,
            flag: Some(Flag::UpstreamRequestTimeout),
            text: "upstream request timeout".to_owned(),
            details,
            grpc: None,
        }
    }

    /// `fault.abort`.
    pub(super) fn injected(abort: Abort) -> Self {
        let (status, grpc) = match abort {
            Abort::Http(status) => (status, None),
            Abort::Grpc(grpc) => (StatusCode::OK, Some(grpc)),
        };
        Self {
            end: None,
            status,
            flag: Some(Flag::FaultInjected),
            text: "fault filter abort".to_owned(),
            details: String::new(),
            grpc,
        }
    }

    /// No endpoint; `details` in words.
    pub(super) fn pick(error: PickError, details: String) -> Self {
        let text = match error.flag() {
            Flag::DnsResolutionFailure => "no healthy upstream: DNS resolution failure",
            _ => "no healthy upstream",
        };
        Self::unavailable(None, error.flag(), text.to_owned(), details)
    }

    /// No connection.
    pub(super) fn acquire(error: &AcquireError) -> Self {
        let details = error.to_string();
        match error {
            AcquireError::Overflow(_) | AcquireError::Waited(_) => Self::overflow(details),
            AcquireError::Closing => {
                let text = format!("{RESET}local reset");
                Self::unavailable(None, error.flag(), text, details)
            }
            AcquireError::Dial(dial) => {
                let reason = match dial.outcome {
                    Outcome::ConnectTimeout => "connection timeout",
                    Outcome::TlsFailed => "connection failure, transport failure reason: TLS",
                    _ => "connection failure",
                };
                let text = format!("{RESET}{reason}");
                // Missing TLS material or descriptors are missing elsewhere, too.
                let end = dial.elsewhere.then_some(TryEnd::ConnectFailed);
                Self::unavailable(end, error.flag(), text, details)
            }
        }
    }

    /// No response.
    pub(super) fn send(failure: SendFailure, details: String) -> Self {
        let (end, reason) = match failure {
            SendFailure::Unsent => (
                Some(TryEnd::Reset { sent: false }),
                "connection termination",
            ),
            SendFailure::Closed => (Some(TryEnd::Reset { sent: true }), "connection termination"),
            SendFailure::Reset => (Some(TryEnd::Reset { sent: true }), "remote reset"),
            SendFailure::Refused => (Some(TryEnd::Refused), "remote refused stream reset"),
            SendFailure::Protocol => (Some(TryEnd::Reset { sent: true }), "protocol error"),
            SendFailure::RequestBody => (None, "local reset"),
        };
        let text = format!("{RESET}{reason}");
        let mut made = Self::unavailable(end, failure.flag(), text, details);
        if failure == SendFailure::Protocol {
            made.status = StatusCode::BAD_GATEWAY;
        }
        made
    }

    /// The answer, which says why: Envoy's text, then our flag, details and
    /// the host.
    pub(super) fn local(&self, host: &str) -> Local {
        let mut body = self.text.clone();
        if let Some(flag) = self.flag.filter(|_| !self.details.is_empty()) {
            body.push('\n');
            body.push_str(flag.code());
            body.push_str(": ");
            body.push_str(host);
            body.push_str(": ");
            body.push_str(&self.details);
        }
        Local {
            overloaded: self.flag == Some(Flag::UpstreamOverflow),
            grpc: self.grpc,
            ..Local::new(self.status, body)
        }
    }
}
