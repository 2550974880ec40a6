//! What the bench asks of the system for itself and the programs it starts.

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Thousands of connections need as many descriptors; children inherit it.
pub(crate) fn raise_open_files() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit on open files")
}
