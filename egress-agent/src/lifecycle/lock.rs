//! One agent at a time uses a state directory.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::StartError;

/// Holds the lock of a state directory until it is dropped or the process
/// ends, however it ends.
#[derive(Debug)]
pub struct StateLock {
    file: File,
}

impl StateLock {
    /// Makes the directory if need be, and takes its lock.
    ///
    /// # Errors
    /// When another process holds it, or the directory cannot be used.
    pub fn acquire(directory: &Path) -> Result<Self, StartError> {
        let unusable = |error| StartError::StateDirectory {
            path: directory.to_owned(),
            error,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(unusable)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("agent.lock"))
            .map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The process id only makes the message better.
                let _ = (&mut file).take(32).read_to_string(&mut text);
                return Err(StartError::StateInUse {
                    path: directory.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        let mut lock = Self { file };
        lock.sign().map_err(unusable)?;
        Ok(lock)
    }

    /// The lock of an agent that hands over to this one. It is held until both
    /// have let go of it.
    pub fn inherit(lock: OwnedFd) -> Self {
        let mut lock = Self { file: lock.into() };
        // The process id only makes a message better.
        if let Err(error) = lock.sign() {
            tracing::debug!("cannot write the process id: {error}");
        }
        lock
    }

    /// The lock, to hand over.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    fn sign(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it_and_may_come_later() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("a/b");
        let first = StateLock::acquire(&directory).unwrap();
        match StateLock::acquire(&directory) {
            Err(StartError::StateInUse { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        StateLock::acquire(&directory).unwrap();
    }

    #[test]
    fn a_file_in_its_place_is_an_error_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = StateLock::acquire(file.path()).unwrap_err().to_string();
        assert!(
            error.contains(&file.path().display().to_string()),
            "{error}"
        );
    }
}
