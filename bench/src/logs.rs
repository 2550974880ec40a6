//! Where access logs go: to a pipe that another process empties, as the
//! standard output of a unit or of a container does, which is where Istio's
//! proxies and the agent log by default. Files would measure the machine's page
//! cache, too, and on one whose hypervisor takes back what is free (balloon,
//! free page reporting) the first touch of each page costs 10 µs: as much as a
//! request.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use lab::Group;
use lab::process::Process;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::arena::Arena;
use crate::cpus::pinned;

/// Bytes read at once: all that a pipe holds.
const READ: usize = 1 << 16;

/// A pipe with a name, and who empties it for as long as this lives.
pub(crate) struct LogPipe {
    path: PathBuf,
    _reader: Process,
}

impl LogPipe {
    /// `owner` may open it, too.
    ///
    /// # Errors
    /// When it cannot be made, or its reader not be started.
    pub(crate) fn new(arena: &Arena, name: &str, owner: Option<u32>) -> Result<Self> {
        let path = arena.lab.directory().join(format!("{name}-log"));
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .with_context(|| format!("cannot make the pipe {}", path.display()))?;
        chown(&path, owner, owner)?;
        // Beside the writer, which gets back the pages that were just read.
        let cpus = arena.cpus.proxies();
        let mut reader = pinned(&arena.lab, Group::Outside, &cpus, &arena.own)
            .arg("drain")
            .arg(&path)
            .stdout(Stdio::piped())
            .start()?;
        reader.expect_line("ready")?;
        Ok(Self {
            path,
            _reader: reader,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its end for a program that logs to its standard output.
    pub(crate) fn writer(&self) -> Result<File> {
        Ok(OpenOptions::new().append(true).open(&self.path)?)
    }
}

impl Drop for LogPipe {
    /// The next one of this name is a new one.
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("bench: {} is left: {error}", self.path.display());
        }
    }
}

/// Empties the pipe at `path` until the process is ended; prints `ready`.
pub(crate) fn drain(path: &Path) -> Result<()> {
    // Also for writing: it never ends, and no writer waits for a reader.
    let mut pipe = OpenOptions::new().read(true).write(true).open(path)?;
    println!("ready");
    let mut lines = vec![0; READ];
    loop {
        pipe.read(&mut lines).context("emptying a pipe")?;
    }
}
