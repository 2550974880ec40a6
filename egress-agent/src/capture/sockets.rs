//! The one place where the agent's own sockets are made. Each is marked so
//! that the kernel programs let it pass (else the agent would capture itself),
//! and made in the network namespace that it is for.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpSocket;

use super::bypass::Bypass;

/// A network namespace in which sockets can be made.
#[derive(Clone, Debug)]
pub struct NetNs {
    /// Cookie, as `bpf_get_netns_cookie` and `SO_NETNS_COOKIE` give it.
    pub cookie: u64,
    /// How to enter it; `None` for the namespace that the agent runs in.
    handle: Option<Arc<OwnedFd>>,
}

impl NetNs {
    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// When no socket can be made to ask the kernel for the cookie
    /// (`SO_NETNS_COOKIE`, since Linux 5.14).
    pub fn current() -> io::Result<Self> {
        let probe = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
        Ok(Self {
            cookie: cookie_of(probe.as_fd())?,
            handle: None,
        })
    }

    /// The namespace behind an open `/proc/PID/ns/net` or `/run/netns/NAME`.
    ///
    /// # Errors
    /// When it cannot be entered (not a namespace, or no `CAP_SYS_ADMIN`).
    pub fn open(handle: OwnedFd) -> io::Result<Self> {
        let handle = Arc::new(handle);
        let probe = within(Some(&handle), || {
            Socket::new(Domain::UNIX, Type::DGRAM, None)
        })?;
        Ok(Self {
            cookie: cookie_of(probe.as_fd())?,
            handle: Some(handle),
        })
    }

    /// Whether this is the namespace that the agent runs in.
    pub const fn is_home(&self) -> bool {
        self.handle.is_none()
    }

    /// Inode number in the file system of namespaces, the number in
    /// `/proc/PID/ns/net`. It may be used anew once the namespace is gone.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn inode(&self) -> io::Result<u64> {
        match &self.handle {
            Some(handle) => Ok(rustix::fs::fstat(handle)?.st_ino),
            None => super::namespaces::inode(std::path::Path::new("/proc/self/ns/net"))
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }

    /// Runs `make` inside the namespace. It must be short and must not wait:
    /// the whole thread is inside meanwhile.
    ///
    /// # Errors
    /// Those of entering, and of `make`.
    pub fn enter<T>(&self, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        within(self.handle.as_ref(), make)
    }
}

fn within<T>(handle: Option<&Arc<OwnedFd>>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(target) = handle else {
        return make();
    };
    let home = File::open("/proc/thread-self/ns/net")?;
    move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::Network))?;
    let made = make();
    // A thread that cannot come home would make every later socket in the
    // wrong namespace, so there is nothing safe left to do.
    if move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
        tracing::error!("cannot return from a network namespace; stopping");
        std::process::abort();
    }
    made
}

fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    super::sys::netns_cookie(socket)
}

/// Makes the agent's sockets.
#[derive(Clone, Debug)]
pub struct Sockets {
    bypass: Option<Bypass>,
}

impl Sockets {
    /// Sockets that the kernel programs let pass.
    pub const fn marked(bypass: Bypass) -> Self {
        Self {
            bypass: Some(bypass),
        }
    }

    /// Sockets without a mark, where no kernel program is loaded.
    pub const fn unmarked() -> Self {
        Self { bypass: None }
    }

    /// Marks a socket that was made elsewhere (a library's, or one that was
    /// handed over).
    ///
    /// # Errors
    /// When the kernel refuses to store the mark.
    pub fn mark(&self, socket: &impl AsFd) -> io::Result<()> {
        match &self.bypass {
            Some(bypass) => bypass.mark(socket.as_fd()),
            None => Ok(()),
        }
    }

    /// A TCP socket to dial `remote` with.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket not be made.
    pub fn tcp(&self, ns: &NetNs, remote: &SocketAddr) -> io::Result<TcpSocket> {
        let socket = ns.enter(|| {
            if remote.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }
        })?;
        self.mark(&socket)?;
        Ok(socket)
    }

    /// A non-blocking UDP socket bound to `bind`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket not be made or bound.
    pub fn udp(&self, ns: &NetNs, bind: SocketAddr) -> io::Result<UdpSocket> {
        let socket =
            ns.enter(|| Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP)))?;
        socket.set_nonblocking(true)?;
        if bind.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        self.mark(&socket)?;
        socket.bind(&bind.into())?;
        Ok(socket.into())
    }
}
