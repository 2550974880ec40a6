//! Unmodified clients, as people use them.

use crate::process::Spawn;
use crate::{Group, Lab};

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

    /// Python as a client whose connections are captured.
    pub fn python(&self, script: &str) -> Spawn {
        self.python_in(Group::Clients, script)
    }
}
