//! The lab's cgroups: one child of the unified hierarchy's root with a group
//! for each kind of process.

use std::fs;
use std::path::PathBuf;

use crate::{Context, Group, Result};

pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let cgroup = Self {
            path: root()?.join(name),
        };
        for group in [Group::Clients, Group::Outside, Group::Servers] {
            let path = cgroup.group(group);
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        Ok(cgroup)
    }

    pub(crate) fn group(&self, group: Group) -> PathBuf {
        self.path.join(match group {
            Group::Clients => "clients",
            Group::Outside => "outside",
            Group::Servers => "servers",
        })
    }
}

/// Mount point of the unified hierarchy.
pub(crate) fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(point))
        })
        .context("no cgroup v2 hierarchy is mounted")
}
