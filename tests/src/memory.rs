//! A limit on the memory of one process, by whichever version of the memory
//! controller the host has.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Context, Lab, Result, cgroup};

/// Where version 1 has it on hosts with both hierarchies.
const V1: &str = "/sys/fs/cgroup/memory";

/// A process's limit.
pub struct Limit {
    folder: PathBuf,
    /// Version 1: a group of its own, to be removed.
    own: bool,
}

impl Limit {
    /// Puts a limit of so many bytes on a process outside of the clients' group.
    /// With version 2 it is one on all of these.
    pub fn new(lab: &Lab, process: u32, bytes: u64) -> Result<Self> {
        let root = cgroup::root()?;
        let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
        if controllers.split_whitespace().any(|name| name == "memory") {
            let of_lab = root.join(lab.name());
            for folder in [&root, &of_lab] {
                write(&folder.join("cgroup.subtree_control"), "+memory")?;
            }
            let folder = of_lab.join("outside");
            write(&folder.join("memory.max"), &bytes.to_string())?;
            return Ok(Self { folder, own: false });
        }
        let folder = Path::new(V1).join(lab.name());
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let limit = Self { folder, own: true };
        write(
            &limit.folder.join("memory.limit_in_bytes"),
            &bytes.to_string(),
        )?;
        write(&limit.folder.join("cgroup.procs"), &process.to_string())?;
        Ok(limit)
    }

    /// How many processes were killed for it.
    pub fn kills(&self) -> Result<u64> {
        let file = if self.own {
            "memory.oom_control"
        } else {
            "memory.events"
        };
        let text = fs::read_to_string(self.folder.join(file))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.context("no count of kills")?.trim().parse()?)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if self.own {
            // Empty once its process has ended.
            let _ = fs::remove_dir(&self.folder);
        } else {
            let _ = write(&self.folder.join("memory.max"), "max");
        }
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("{}: {text}", file.display()))
}
