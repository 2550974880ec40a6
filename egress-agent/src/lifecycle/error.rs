//! Why the agent cannot start.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::admin::ListenError;
use crate::capture::CaptureError;
use crate::flag::Side;
use crate::policy::source::keeper::KeeperError;

/// Why the agent cannot start.
#[derive(Debug)]
pub enum StartError {
    /// The state directory cannot be made or used.
    StateDirectory {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another agent uses the state directory.
    StateInUse {
        /// Which.
        path: PathBuf,
        /// Its process id, if it wrote one.
        pid: Option<u32>,
    },
    /// A listener of the agent's own cannot be opened.
    Listen(ListenError),
    /// A runtime, thread or signal handler cannot be made.
    Process {
        /// What.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The kernel programs cannot be loaded, attached or used.
    Capture(CaptureError),
    /// Policy documents cannot be kept.
    Policy(KeeperError),
    /// The Kubernetes API server cannot be used at all.
    #[cfg(feature = "kubernetes")]
    Kubernetes(crate::kubernetes::KubernetesError),
    /// The settings ask for Kubernetes, and this program has none.
    #[cfg(not(feature = "kubernetes"))]
    NoKubernetes,
    /// A worker ended before it was ready.
    Worker(super::worker::WorkerEnd),
}

impl StartError {
    /// Whose side this is.
    pub const fn side(&self) -> Side {
        match self {
            Self::StateDirectory { .. } | Self::StateInUse { .. } => Side::Policy,
            Self::Listen(error) => error.side(),
            Self::Capture(error) => error.side(),
            Self::Policy(error) => error.side(),
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(error) => error.side(),
            #[cfg(not(feature = "kubernetes"))]
            Self::NoKubernetes => Side::Policy,
            Self::Process { .. } | Self::Worker(_) => Side::Internal,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StateDirectory { path, error } => write!(
                f,
                "cannot use state directory {}: {error}; name another with --state-dir",
                path.display()
            ),
            Self::StateInUse { path, pid } => {
                write!(f, "another agent")?;
                if let Some(pid) = pid {
                    write!(f, " (process {pid})")?;
                }
                write!(
                    f,
                    " uses state directory {}; stop it, or give this one its own --state-dir, --admin, --bpffs and --cgroup",
                    path.display()
                )
            }
            Self::Listen(error) => error.fmt(f),
            Self::Capture(error) => error.fmt(f),
            Self::Policy(error) => error.fmt(f),
            Self::Process { what, error } => write!(f, "cannot make {what}: {error}"),
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(error) => error.fmt(f),
            #[cfg(not(feature = "kubernetes"))]
            Self::NoKubernetes => f.write_str(
                "this program was built without Kubernetes; set `kubernetes = \"off\"`, or build it with the feature `kubernetes`",
            ),
            Self::Worker(end) => write!(f, "{end} before it was ready"),
        }
    }
}

impl std::error::Error for StartError {}
