//! Unmodified clients, as people use them.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use crate::process::Spawn;
use crate::{Context, Group, Lab, Result};

/// See [`Lab::dns_python`].
const DNS_CLIENT: &str = include_str!("dns_client.py");

impl Lab {
    /// curl in `group`: silent but for errors, with a limit of 20 s.
    pub fn curl_in(&self, group: Group, arguments: &[&str]) -> Spawn {
        self.spawn(group, "curl")
            .args(["--silent", "--show-error", "--max-time", "20"])
            .args(arguments)
    }

    /// curl as a client whose connections are captured.
    pub fn curl(&self, arguments: &[&str]) -> Spawn {
        self.curl_in(Group::Clients, arguments)
    }

    /// psql as a client whose connections are captured: prints bare rows.
    pub fn psql(&self, host: &str, query: &str) -> Spawn {
        self.client("psql")
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(["--username=postgres", "--host", host, "--command", query])
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGSSLMODE", "disable")
    }

    /// Debian's Python with a script, in `group`.
    pub fn python_in(&self, group: Group, script: &str) -> Spawn {
        self.spawn(group, "/usr/bin/python3")
            .args(["-I", "-c", script])
    }

    /// The same with the functions of `dns_client.py` at hand: `query(server,
    /// name, type, ...)` and the numbers of types and codes.
    pub fn dns_python(&self, script: &str) -> Spawn {
        self.python(&format!("{DNS_CLIENT}\n{script}"))
    }

    /// The Python of the virtual environment that `cargo xtask setup` makes
    /// (httpx, grpcio, websockets), as a client whose connections are captured.
    ///
    /// # Errors
    /// When it is not there.
    pub fn python_clients(&self, script: &str) -> Result<Spawn> {
        Ok(self
            .client(venv()?)
            .args(["-I", "-c", script])
            .deadline(Duration::from_mins(1)))
    }

    /// The same Python for a server in the world.
    ///
    /// # Errors
    /// When it is not there.
    pub fn python_server(&self, script: &str) -> Result<Spawn> {
        Ok(self
            .spawn(Group::Servers, venv()?)
            .args(["-I", "-c", script]))
    }

    /// Node.js with a script, in `group`.
    pub fn node_in(&self, group: Group, script: &str) -> Spawn {
        self.spawn(group, "node").args(["-e", script])
    }

    /// Node.js with the packages that `cargo xtask setup` installs (pg), as a
    /// client whose connections are captured.
    ///
    /// # Errors
    /// When they are not there.
    pub fn node_clients(&self, script: &str) -> Result<Spawn> {
        let modules = beside_the_build("node/node_modules", "EGRESS_NODE_MODULES")
            .context("no Node.js clients of the tests; run `cargo xtask setup`")?;
        Ok(self
            .node_in(Group::Clients, script)
            .env("NODE_PATH", modules.display().to_string())
            .deadline(Duration::from_mins(1)))
    }

    /// Python as a client whose connections are captured.
    pub fn python(&self, script: &str) -> Spawn {
        self.python_in(Group::Clients, script)
    }
}

/// Python of the virtual environment.
fn venv() -> Result<PathBuf> {
    beside_the_build("python/bin/python3", "EGRESS_PYTHON")
        .context("no Python with the clients of the tests; run `cargo xtask setup`")
}

/// What the environment names, or what lies beside the folder that the tests
/// were built to.
fn beside_the_build(path: &str, variable: &str) -> Option<PathBuf> {
    if let Some(named) = env::var_os(variable) {
        return Some(named.into());
    }
    env::current_exe()
        .ok()?
        .ancestors()
        .map(|folder| folder.join(path))
        .find(|found| found.exists())
}
