//! Network namespaces, and the link between the two of a lab.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Context, Result, bail, ensure};

/// A named network namespace.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let namespace = Self {
            name: name.to_owned(),
        };
        let output = Command::new("ip")
            .args(["netns", "add", name])
            .output()
            .context("cannot run ip (package iproute2)")?;
        ensure!(
            output.status.success(),
            "ip netns add {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes its name away: it lives on for as long as something is in it.
    pub fn delete(self) -> Result<()> {
        let output = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .output()
            .context("cannot run ip (package iproute2)")?;
        ensure!(
            output.status.success(),
            "ip netns delete {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// The file that stands for it, for `setns` and `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` commands in it, one a line.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-netns", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ip (package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "ip in {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Gives its loopback interface an address, if it does not have it yet.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        let (bits, flag) = if address.is_ipv4() {
            (32, "")
        } else {
            (128, " nodad")
        };
        self.ip(&format!("address replace {address}/{bits} dev lo{flag}\n"))
    }

    /// Runs `action` on a thread of its own inside the namespace: sockets that
    /// it makes belong there.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                Ok(action())
            });
            match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread in {} panicked", self.name),
            }
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {}", path.display()))
    }
}

/// Name of the world's end of the link of namespace `number`. It goes when the
/// namespace goes.
pub fn link_name(number: u16) -> String {
    format!("pod{number}")
}

/// Address of the client namespace `number`.
pub fn address(number: u16) -> String {
    format!("100.{}.{}.2", 64 + number / 256, number % 256)
}

/// Its IPv6 address.
pub fn address6(number: u16) -> String {
    format!("2001:db8:64:{number:x}::2")
}

/// Joins a namespace of clients to the world, as a container's is to its node:
/// a link, addresses and routes of its own. Loopback stays down.
pub(crate) fn join_pod(pod: &Namespace, world: &Namespace, number: u16) -> Result<()> {
    let (own, own6) = (address(number), address6(number));
    let (peer, peer6) = (
        format!("100.{}.{}.1", 64 + number / 256, number % 256),
        format!("2001:db8:64:{number:x}::1"),
    );
    let link = link_name(number);
    pod.ip(&format!(
        "link add eth0 type veth peer name {link} netns {}\n\
         link set eth0 up\n\
         address add {own}/30 dev eth0\n\
         address add {own6}/64 dev eth0 nodad\n",
        world.name
    ))?;
    world.ip(&format!(
        "link set {link} up\n\
         address add {peer}/30 dev {link}\n\
         address add {peer6}/64 dev {link} nodad\n"
    ))?;
    pod.ip(&format!(
        "route add default via {peer}\n\
         route add default via {peer6}\n"
    ))
}

/// Joins the two namespaces by a veth pair, gives both their addresses, and
/// the app a default route to the world. The world forwards nothing.
pub(crate) fn join(app: &Namespace, world: &Namespace) -> Result<()> {
    app.ip(&format!(
        "link set lo up\n\
         link add eth0 type veth peer name eth0 netns {}\n\
         link set eth0 up\n\
         address add 192.0.2.2/24 dev eth0\n\
         address add 2001:db8::2/64 dev eth0 nodad\n",
        world.name
    ))?;
    // Every address of these networks is the world's own ("local" routes), so
    // that a test can use any without asking for it.
    world.ip("link set lo up\n\
         link set eth0 up\n\
         address add 192.0.2.1/24 dev eth0\n\
         address add 2001:db8::1/64 dev eth0 nodad\n\
         route add local 203.0.113.0/24 dev lo\n\
         route add local 198.51.100.0/24 dev lo\n\
         route add local 10.0.0.0/8 dev lo\n\
         route add local 2001:db8:1::/48 dev lo\n")?;
    app.ip("route add default via 192.0.2.1\n\
         route add default via 2001:db8::1\n")?;
    // Binding to an IPv6 address asks for an address, not just a route.
    world.run(|| std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1"))??;
    Ok(())
}
