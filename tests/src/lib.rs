//! The lab: a network of its own, with real servers and real clients, for the
//! end-to-end tests and the demo.
//!
//! ```text
//!   namespace app                      namespace world
//!   192.0.2.2, 2001:db8::2  == veth == 192.0.2.1, 2001:db8::1
//!   clients, agent                     203.0.113.0/24, 198.51.100.0/24, 10.0.0.0/8,
//!                                      192.168.0.0/16, 2001:db8:1::/48: every
//!                                      address is there
//! ```
//!
//! There is no way out: neither namespace has another link. [`Lab::new`]
//! makes it, and dropping it ends every process in it and removes everything,
//! as does the end of the process that made it, whatever ends it.
//!
//! Processes run in one of three groups ([`Group`]), so that only the clients
//! are in the cgroup that the kernel programs are attached to.

pub mod agent;
pub mod apiserver;
pub mod backend;
pub mod certificates;
mod cgroup;
pub mod churn;
pub mod clients;
pub mod control_plane;
pub mod dns;
pub mod http;
pub mod kernel;
pub mod kubernetes;
pub mod load;
pub mod mariadb;
pub mod memory;
pub mod netns;
pub mod nginx;
pub mod offices;
pub mod policy;
pub mod postgres;
pub mod process;
mod reaper;
pub mod record;
pub mod scene;
pub mod systemd;
pub mod tcp;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use anyhow::{Context, Error, Result, anyhow, bail, ensure};

use crate::cgroup::Cgroup;
use crate::netns::Namespace;
use crate::process::Spawn;
use crate::reaper::Janitor;

/// The resolver that the lab's `/etc/resolv.conf` names.
pub const RESOLVER: &str = "203.0.113.53";
/// An address of the world that drops every packet (not one that it has, and
/// it forwards nothing).
pub const BLACK_HOLE: &str = "198.18.0.66";
/// The client's address, as servers see it.
pub const CLIENT: &str = "192.0.2.2";
/// The client's IPv6 address.
pub const CLIENT6: &str = "2001:db8::2";

/// Whether soak and load tests run at their full length
/// (`cargo xtask test --long`), not at the short one of every run.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("EGRESS_LONG").is_some_and(|value| value == "1")
}

/// Where a process of the lab stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// In the cgroup that the agent captures.
    Clients,
    /// Beside it: the agent, and programs that must stay untouched.
    Outside,
    /// The servers of the world.
    Servers,
}

/// One lab. Everything in it ends when it is dropped.
pub struct Lab {
    name: String,
    directory: PathBuf,
    app: Namespace,
    world: Namespace,
    cgroup: Cgroup,
    _janitor: Janitor,
}

impl Lab {
    /// Makes a lab.
    ///
    /// # Errors
    /// When not root, or the host lacks network namespaces or cgroup v2.
    pub fn new() -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the lab needs root: it makes network namespaces and cgroups"
        );
        reaper::remove_leftovers()?;
        let name = reaper::new_name()?;
        let janitor = Janitor::new(&name)?;
        let cgroup = Cgroup::new(&name)?;
        let directory = reaper::directory(&name);
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let lab = Self {
            app: Namespace::new(&format!("{name}.app"))?,
            world: Namespace::new(&format!("{name}.world"))?,
            name,
            directory,
            cgroup,
            _janitor: janitor,
        };
        netns::join(&lab.app, &lab.world)?;
        let etc = lab.directory.join("etc");
        fs::create_dir(&etc)?;
        fs::write(etc.join("hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
        fs::write(
            etc.join("nsswitch.conf"),
            "passwd: files\ngroup: files\nhosts: files dns\n",
        )?;
        lab.set_resolvers(&[RESOLVER])?;
        Ok(lab)
    }

    /// Name of this lab, the beginning of the names of all that it makes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder of this lab, readable for all.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace of clients and agent.
    pub fn app(&self) -> &Namespace {
        &self.app
    }

    /// The namespace of the servers.
    pub fn world(&self) -> &Namespace {
        &self.world
    }

    /// The cgroup that the agent captures.
    pub fn client_cgroup(&self) -> PathBuf {
        self.cgroup.group(Group::Clients)
    }

    /// Makes a group of clients of its own below the captured cgroup, and
    /// returns the line by which a Python script joins it.
    pub fn client_group(&self, name: &str) -> Result<String> {
        let path = self.client_cgroup().join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        let procs = path.join("cgroup.procs");
        Ok(format!("open('{}', 'w').write('0')\n", procs.display()))
    }

    /// One more namespace of clients, as a container has: a link to the world,
    /// and addresses of its own ([`netns::address`]).
    pub fn pod(&self, number: u16) -> Result<Namespace> {
        let pod = self.pod_without_loopback(number)?;
        pod.ip("link set lo up\n")?;
        Ok(pod)
    }

    /// The same as it is before its runtime has set it up.
    pub fn pod_without_loopback(&self, number: u16) -> Result<Namespace> {
        let pod = Namespace::new(&format!("{}.pod{number}", self.name))?;
        netns::join_pod(&pod, &self.world, number)?;
        Ok(pod)
    }

    /// A cgroup below the captured one, made if it is not there; `path` may
    /// have several parts.
    pub fn cgroup(&self, path: &str) -> Result<PathBuf> {
        let path = self.client_cgroup().join(path);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// A client in this namespace and cgroup.
    pub fn spawn_in(
        &self,
        namespace: &Namespace,
        cgroup: &Path,
        program: impl AsRef<Path>,
    ) -> Spawn {
        let etc = self.directory.join("etc");
        Spawn::new(namespace, &etc, cgroup, program.as_ref())
    }

    /// A process of `group`: clients and what is outside run in the
    /// namespace `app`, servers in `world`.
    pub fn spawn(&self, group: Group, program: impl AsRef<Path>) -> Spawn {
        let namespace = match group {
            Group::Clients | Group::Outside => &self.app,
            Group::Servers => &self.world,
        };
        Spawn::new(
            namespace,
            &self.directory.join("etc"),
            &self.cgroup.group(group),
            program.as_ref(),
        )
    }

    /// A client whose connections are captured.
    pub fn client(&self, program: impl AsRef<Path>) -> Spawn {
        self.spawn(Group::Clients, program)
    }

    /// A program in the clients' network that is not in their cgroup.
    pub fn outsider(&self, program: impl AsRef<Path>) -> Spawn {
        self.spawn(Group::Outside, program)
    }

    /// Names the resolvers in the `/etc/resolv.conf` of processes that start
    /// from now on, and of running ones that read it again.
    pub fn set_resolvers(&self, resolvers: &[&str]) -> Result<()> {
        let mut text = String::from("options timeout:2 attempts:2\n");
        for resolver in resolvers {
            text.push_str("nameserver ");
            text.push_str(resolver);
            text.push('\n');
        }
        // In place: running processes have this very file mounted.
        fs::write(self.directory.join("etc/resolv.conf"), text)?;
        Ok(())
    }

    /// Adds a line to the `/etc/hosts` of the lab's processes.
    pub fn add_hosts_line(&self, address: IpAddr, name: &str) -> Result<()> {
        let file = self.directory.join("etc/hosts");
        let mut text = fs::read_to_string(&file)?;
        text.push_str(&[&address.to_string(), " ", name, "\n"].concat());
        fs::write(&file, text)?;
        Ok(())
    }

    /// Writes a file into the lab's folder and returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.directory.join(name);
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(file)
    }
}
