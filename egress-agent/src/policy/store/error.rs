//! Why documents cannot be kept.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::flag::Side;

/// Why documents cannot be kept.
#[derive(Debug)]
pub enum StoreError {
    /// The state directory cannot be used.
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no state directory.
    NoDirectory,
}

impl StoreError {
    /// Whose side this is.
    pub const fn side(&self) -> Side {
        Side::Policy
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { path, error } => write!(
                f,
                "cannot keep applied documents in {}: {error}; check the space and the permissions there",
                path.display()
            ),
            Self::NoDirectory => {
                f.write_str("there is no state directory to keep applied documents in")
            }
        }
    }
}

impl std::error::Error for StoreError {}
