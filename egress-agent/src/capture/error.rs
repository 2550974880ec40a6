//! What can go wrong between the agent and the kernel.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::flag::Side;

/// Why capture cannot start, or a map cannot be read or written.
#[derive(Debug)]
pub enum CaptureError {
    /// A capability is missing.
    Capability {
        /// Its name.
        name: &'static str,
    },
    /// The kernel is older than the floor.
    Kernel {
        /// What `uname` says.
        release: String,
    },
    /// The kernel cannot load BTF.
    Btf,
    /// No unified hierarchy is mounted.
    NoCgroup2,
    /// The path is no directory of the unified hierarchy.
    NotCgroup2 {
        /// The path.
        path: PathBuf,
        /// What opening it answered, if that failed.
        error: Option<io::Error>,
    },
    /// The path is not on a bpf file system.
    NotBpffs {
        /// The path.
        path: PathBuf,
    },
    /// Pins cannot be made, read or removed.
    Pins {
        /// The directory.
        path: PathBuf,
        /// What the system answered.
        error: io::Error,
    },
    /// Another agent uses the directory of pins.
    PinsInUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file that tells about the system cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// What reading it answered.
        error: io::Error,
    },
    /// The agent was built without the kernel programs.
    NotBuilt,
    /// The kernel refused the programs or maps.
    Load(Box<aya::EbpfError>),
    /// The kernel refused one program, or to attach it.
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel answered, with the verifier's words.
        error: Box<aya::programs::ProgramError>,
    },
    /// The kernel refused to attach a program, or to replace it.
    Link {
        /// Its name.
        name: &'static str,
        /// What the kernel answered.
        error: io::Error,
    },
    /// A pinned map has keys or values of another size.
    Misfit {
        /// Its name.
        map: &'static str,
    },
    /// The object lacks a program or map that this agent needs.
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A map is full.
    Full {
        /// Its name.
        map: &'static str,
    },
    /// A map cannot be read or written.
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel answered.
        error: io::Error,
    },
    /// The self-test could not be made.
    Probe {
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        error: io::Error,
    },
    /// The self-test was made, and its connection was not captured.
    NotCaptured {
        /// What was seen instead.
        reason: String,
    },
}

impl CaptureError {
    /// Whose side failed. Everything here is between the agent and its host.
    pub const fn side(&self) -> Side {
        match self {
            Self::NotCgroup2 { .. } | Self::NotBpffs { .. } | Self::PinsInUse { .. } => {
                Side::Policy
            }
            _ => Side::Internal,
        }
    }

    /// An error of a map call; a full map gets its own variant.
    pub(super) fn map(map: &'static str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Self::Full { map },
            _ => Self::Map { map, error },
        }
    }
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capability { name } => write!(
                f,
                "the agent lacks {name}: run it as root, or give it CAP_BPF, CAP_NET_ADMIN and \
                 CAP_SYS_ADMIN"
            ),
            Self::Kernel { release } => {
                write!(
                    f,
                    "Linux {release} is too old: 5.15 or newer is needed, since the kernel \
                     programs use atomic operations that came with 5.12"
                )
            }
            Self::Btf => f.write_str(
                "the kernel cannot load BTF: one built with CONFIG_BPF_SYSCALL and \
                 CONFIG_DEBUG_INFO_BTF is needed",
            ),
            Self::NoCgroup2 => f.write_str(
                "no cgroup v2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
            ),
            Self::NotCgroup2 {
                path,
                error: Some(error),
            } => write!(f, "cannot open the cgroup {}: {error}", path.display()),
            Self::NotCgroup2 { path, error: None } => write!(
                f,
                "{} is not a directory of a cgroup v2 hierarchy",
                path.display()
            ),
            Self::NotBpffs { path } => write!(
                f,
                "{} is not on a bpf file system, and not empty, so that none can be mounted there: \
                 `mount -t bpf none /sys/fs/bpf`, or name another directory with --bpffs",
                path.display()
            ),
            Self::Pins { path, error } => {
                write!(f, "cannot keep pins in {}: {error}", path.display())?;
                // kernel/bpf/inode.c, bpf_lookup: names with a dot are EPERM.
                let dotted = path.iter().any(|name| name.to_string_lossy().contains('.'));
                if dotted && error.kind() == io::ErrorKind::PermissionDenied {
                    write!(f, "; a bpf file system takes no name with a dot")?;
                }
                Ok(())
            }
            Self::PinsInUse { path } => write!(
                f,
                "another agent uses the pins in {}: stop it, or name another directory with --bpffs",
                path.display()
            ),
            Self::Read { path, error } => write!(f, "cannot read {}: {error}", path.display()),
            Self::NotBuilt => f.write_str(
                "this agent was built without its kernel programs (EGRESS_SKIP_BPF=1): \
                 run `cargo xtask setup`, then build it again",
            ),
            Self::Load(error) => {
                write!(f, "the kernel refused the programs: {}", Chain(&**error))
            }
            Self::Program { name, error } => write!(
                f,
                "the kernel refused the program {name}: {}",
                Chain(&**error)
            ),
            Self::Link { name, error } => {
                write!(
                    f,
                    "the kernel refused to attach the program {name}: {error}"
                )
            }
            Self::Misfit { map } => write!(
                f,
                "the kernel map {map} has another form than this agent expects; \
                 `egress-agent --cleanup` removes what is pinned"
            ),
            Self::Missing { name } => write!(f, "the kernel programs have no {name}"),
            Self::Full { map } => write!(f, "the kernel map {map} is full"),
            Self::Map { map, error } => write!(f, "kernel map {map}: {error}"),
            Self::Probe { step, error } => {
                write!(f, "the self-test of capture could not {step}: {error}")
            }
            Self::NotCaptured { reason } => {
                write!(f, "the self-test was not captured: {reason}")
            }
        }
    }
}

impl std::error::Error for CaptureError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotCgroup2 {
                error: Some(error), ..
            }
            | Self::Read { error, .. }
            | Self::Pins { error, .. }
            | Self::Link { error, .. }
            | Self::Map { error, .. }
            | Self::Probe { error, .. } => Some(error),
            Self::Load(error) => Some(error),
            Self::Program { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// An error with its causes, each once.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            next = error.source();
        }
        Ok(())
    }
}
