//! Why the API server cannot be used.

use std::fmt;
use std::io;

use crate::flag::Side;

/// Why the API server cannot be used.
#[derive(Debug)]
pub enum KubernetesError {
    /// Neither a kubeconfig nor a service account says where it is, or what it
    /// says cannot be used.
    Access(Box<str>),
    /// It cannot be reached, or the connection broke.
    Unreachable(Box<str>),
    /// It refused a request: the HTTP status and its message.
    Refused(u16, Box<str>),
    /// It did not answer in time; what was asked.
    Slow(&'static str),
    /// What it sent is not what the API says.
    Malformed(Box<str>),
    /// The state directory or a thread cannot be used.
    Local(&'static str, io::Error),
}

impl KubernetesError {
    /// Whose side this is.
    pub const fn side(&self) -> Side {
        match self {
            Self::Access(_) => Side::Policy,
            Self::Unreachable(_) | Self::Refused(..) | Self::Slow(_) | Self::Malformed(_) => {
                Side::Upstream
            }
            Self::Local(..) => Side::Internal,
        }
    }

    /// HTTP status of a refusal.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(status, _) => Some(*status),
            _ => None,
        }
    }
}

/// The innermost cause says most: `Connection refused` rather than `client
/// error (Connect)`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

impl From<kube::Error> for KubernetesError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(
                status.code,
                if status.message.is_empty() {
                    status.reason.into()
                } else {
                    status.message.into()
                },
            ),
            kube::Error::SerdeError(error) => Self::Malformed(error.to_string().into()),
            kube::Error::Auth(error) => Self::Access(chain(&error).into()),
            kube::Error::Service(error) => Self::Unreachable(chain(&*error).into()),
            other => Self::Unreachable(chain(&other).into()),
        }
    }
}

impl fmt::Display for KubernetesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access(why) => write!(
                f,
                "no access to a Kubernetes API server: {why}; run as a pod with a service account, or name a file with --kubeconfig"
            ),
            Self::Unreachable(why) => write!(f, "the API server cannot be reached: {why}"),
            Self::Refused(401, why) => write!(
                f,
                "the API server does not know us (401): {why}; check the token or certificate"
            ),
            Self::Refused(403, why) => write!(
                f,
                "the API server forbids it (403): {why}; check the agent's ClusterRole"
            ),
            Self::Refused(status, why) => write!(f, "the API server refused it ({status}): {why}"),
            Self::Slow(what) => write!(f, "the API server did not answer in time ({what})"),
            Self::Malformed(why) => write!(f, "the API server's answer cannot be read: {why}"),
            Self::Local(what, error) => write!(f, "cannot use {what}: {error}"),
        }
    }
}

impl std::error::Error for KubernetesError {}
