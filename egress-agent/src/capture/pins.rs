//! Pins: names on a bpf file system that keep maps and links while no agent
//! has them open.
//!
//! ```text
//! DIR/                  setting `bpffs`; locked by the agent that uses it
//!   layout-2/           the layout of the maps below
//!     SERVICES, …       maps
//!     egress_connect4, …  links
//! ```
//!
//! An agent that finds pins of its own layout uses the maps as they are and
//! puts its programs behind the live links, so that no connection goes past.
//! Pins of another layout, or of another cgroup, stay attached until the new
//! programs are in force, and are then removed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use egress_common::LAYOUT_VERSION;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::{MountFlags, mount};

use super::error::CaptureError;
use super::sys;
use super::system::is_bpffs;

const PREFIX: &str = "layout-";
/// Of the names of our programs, in every layout.
const LINK_PREFIX: &str = "egress_";
/// Where bpf file systems are mounted by convention.
const USUAL: &str = "/sys/fs/bpf";

/// The pins of one agent.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    /// Of other layouts or cgroups; still attached.
    obsolete: Vec<PathBuf>,
    lock: Arc<OwnedFd>,
}

impl Pins {
    /// Makes and locks the directory, with a bpf file system for it where there
    /// is none, and looks at what is there. `lock` is that of an agent which
    /// hands over to this one.
    pub(super) fn open(
        root: &Path,
        cgroup_id: u64,
        lock: Option<Arc<OwnedFd>>,
    ) -> Result<Self, CaptureError> {
        let lock = match lock {
            Some(lock) => lock,
            None => Arc::new(lock_directory(root)?),
        };
        let failed = |error| CaptureError::Pins {
            path: root.into(),
            error,
        };
        let name = format!("{PREFIX}{LAYOUT_VERSION}");
        let mut pins = Self {
            directory: root.join(&name),
            obsolete: Vec::new(),
            lock,
        };
        for found in directories(root).map_err(failed)? {
            if found != pins.directory {
                tracing::info!(
                    found = %found.display(),
                    ours = name,
                    "kernel programs of another layout are attached; they will be replaced"
                );
                pins.obsolete.push(found);
            }
        }
        if pins.attached_elsewhere(cgroup_id).map_err(failed)? {
            tracing::info!(
                "the kernel programs are attached to another cgroup; they will be replaced"
            );
            pins.set_aside()?;
        }
        pins.make()?;
        Ok(pins)
    }

    /// Where an object of this name is pinned.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The lock of the directory, for the agent that this one hands over to.
    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Whether there are maps of an agent before.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Gives our directory another name, to begin with an empty one: its maps
    /// or links are not what we need.
    pub(super) fn set_aside(&mut self) -> Result<(), CaptureError> {
        let mut aside = self.directory.clone();
        aside.set_file_name(format!("aside-{:x}", fastrand::u32(..)));
        fs::rename(&self.directory, &aside).map_err(|error| CaptureError::Pins {
            path: self.directory.clone(),
            error,
        })?;
        self.obsolete.push(aside);
        self.make()
    }

    fn make(&self) -> Result<(), CaptureError> {
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CaptureError::Pins {
                path: self.directory.clone(),
                error,
            }),
            _ => Ok(()),
        }
    }

    /// Whether a link of ours belongs to another cgroup, or to one that is
    /// gone.
    fn attached_elsewhere(&self, cgroup_id: u64) -> io::Result<bool> {
        for (name, ..) in super::kernel::PROGRAMS {
            if let Some(link) = sys::pinned(&self.path(name))?
                && sys::cgroup_of(link.as_fd())? != cgroup_id
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes our own directory: what is attached goes when the process ends.
    pub(super) fn withdraw(&self) -> io::Result<usize> {
        remove(&self.directory)
    }

    /// Whether something was found of other layouts.
    pub(super) fn has_obsolete(&self) -> bool {
        !self.obsolete.is_empty()
    }

    /// Removes what was found of other layouts: what is attached by it is
    /// detached, even while an agent before that drains has it open. Returns how
    /// many there were.
    pub(super) fn remove_obsolete(&mut self) -> io::Result<usize> {
        let mut removed = 0;
        while let Some(directory) = self.obsolete.last() {
            detach(directory)?;
            remove(directory)?;
            self.obsolete.pop();
            removed += 1;
        }
        Ok(removed)
    }
}

/// Removes everything that an agent pinned under `root`, whatever its layout:
/// its programs are detached. Returns the number of objects.
///
/// # Errors
/// [`CaptureError::PinsInUse`] while an agent runs.
pub fn clean_up(root: &Path) -> Result<usize, CaptureError> {
    if !root.is_dir() || !is_bpffs(root) {
        return Ok(0);
    }
    let _lock = lock_directory(root)?;
    let failed = |error| CaptureError::Pins {
        path: root.into(),
        error,
    };
    let mut objects = 0;
    for directory in directories(root).map_err(failed)? {
        objects += remove(&directory).map_err(failed)?;
    }
    Ok(objects)
}

fn directories(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Detaches the programs whose links are pinned in a folder.
fn detach(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_link = entry
            .file_name()
            .as_bytes()
            .starts_with(LINK_PREFIX.as_bytes());
        if is_link && let Some(link) = sys::pinned(&entry.path())? {
            sys::detach(link.as_fd())?;
        }
    }
    Ok(())
}

fn remove(directory: &Path) -> io::Result<usize> {
    let mut objects = 0;
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
        objects += 1;
    }
    fs::remove_dir(directory)?;
    Ok(objects)
}

fn lock_directory(root: &Path) -> Result<OwnedFd, CaptureError> {
    ensure_bpffs(root)?;
    let failed = |error: rustix::io::Errno| CaptureError::Pins {
        path: root.into(),
        error: error.into(),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .map_err(|error| CaptureError::Pins {
            path: root.into(),
            error,
        })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(directory),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CaptureError::PinsInUse { path: root.into() }),
        Err(error) => Err(failed(error)),
    }
}

/// Mounts a bpf file system where the path needs one: on `/sys/fs/bpf` for
/// what is below it, else on the path itself, if that is new or empty.
fn ensure_bpffs(root: &Path) -> Result<(), CaptureError> {
    let existing = root.ancestors().find(|part| part.exists());
    if existing.is_some_and(is_bpffs) {
        return Ok(());
    }
    let not = || CaptureError::NotBpffs { path: root.into() };
    let usual = Path::new(USUAL);
    let target = if root.starts_with(usual) && usual.is_dir() {
        usual
    } else {
        root
    };
    let failed = |error| CaptureError::Pins {
        path: target.into(),
        error,
    };
    if target.exists() {
        let mut entries = fs::read_dir(target).map_err(|_| not())?;
        if entries.next().is_some() {
            return Err(not());
        }
    } else {
        fs::create_dir_all(target).map_err(failed)?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", target, "bpf", flags, Some(c"mode=0700")).map_err(|error| failed(error.into()))?;
    tracing::info!(path = %target.display(), "mounted a bpf file system for pins");
    Ok(())
}
