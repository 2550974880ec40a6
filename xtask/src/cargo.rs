//! How this crate calls cargo: the same one that started it, in the workspace.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder that holds the workspace's `Cargo.toml`.
pub(crate) fn workspace_root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The cargo that runs this program, with `arguments`, in the workspace.
pub(crate) fn cargo<const N: usize>(arguments: [&str; N]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace_root());
    command
}

/// Where builds go.
pub(crate) fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

/// How the agent and `egressctl` are built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Build {
    /// Quick to build.
    Debug,
    /// Optimised.
    Release,
    /// Optimised for what was counted in a run of such a build under load.
    ProfileGuided,
}

impl Build {
    /// `--release` and `--profile-guided`.
    pub(crate) const fn of(release: bool, profile_guided: bool) -> Self {
        match (release, profile_guided) {
            (_, true) => Self::ProfileGuided,
            (true, false) => Self::Release,
            (false, false) => Self::Debug,
        }
    }

    /// In words.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
            Self::ProfileGuided => "profile-guided",
        }
    }

    /// Cargo's target directory for it.
    pub(crate) fn target(self) -> PathBuf {
        match self {
            Self::Debug | Self::Release => target_directory(),
            Self::ProfileGuided => target_directory().join("profile-guided"),
        }
    }

    /// Folder of the programs that it leaves.
    pub(crate) fn binaries(self) -> PathBuf {
        let profile = if self == Self::Debug {
            "debug"
        } else {
            "release"
        };
        self.target().join(profile)
    }
}
