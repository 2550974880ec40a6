//! Listeners inside a network namespace: for each worker one on 127.0.0.1 and
//! one on `[::1]`, all workers on the same port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Inherited, Kept};
use crate::capture::sockets::NetNs;

/// Longest queue of connections not yet accepted; the kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Ports of a namespace, for the kernel's map `NAMESPACES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ports {
    /// On 127.0.0.1.
    pub v4: u16,
    /// On `[::1]`; 0 where the namespace has no IPv6.
    pub v6: u16,
}

/// The listeners of all workers in one namespace.
#[derive(Debug)]
pub struct Listening {
    /// What to tell the kernel.
    pub ports: Ports,
    /// One set for each worker.
    pub workers: Vec<WorkerListeners>,
}

/// The listeners of one worker in one namespace.
#[derive(Debug)]
pub struct WorkerListeners {
    /// Where.
    pub netns: NetNs,
    /// On 127.0.0.1.
    pub v4: TcpListener,
    /// On `[::1]`.
    pub v6: Option<TcpListener>,
}

impl Listening {
    /// Opens listeners for so many workers. `SO_REUSEPORT` makes the kernel
    /// spread connections over them; a connection that waits in the queue of
    /// a closed one would be reset, so all stay open until the agent ends.
    ///
    /// # Errors
    /// When the namespace cannot be entered, has no loopback address (`lo` is
    /// down), or no port is left. Missing IPv6 is no error.
    pub fn open(netns: &NetNs, workers: usize) -> io::Result<Self> {
        let v4 = netns.enter(|| group(IpAddr::V4(Ipv4Addr::LOCALHOST), workers))?;
        let v6 = match netns.enter(|| group(IpAddr::V6(Ipv6Addr::LOCALHOST), workers)) {
            Ok(group) => Some(group),
            Err(error) if lacks_ipv6(&error) => None,
            Err(error) => return Err(error),
        };
        let ports = Ports {
            v4: v4.0,
            v6: v6.as_ref().map_or(0, |group| group.0),
        };
        let mut v6 = v6.map_or_else(Vec::new, |group| group.1).into_iter();
        let workers =
            v4.1.into_iter()
                .map(|v4| WorkerListeners {
                    netns: netns.clone(),
                    v4,
                    v6: v6.next(),
                })
                .collect();
        Ok(Self { ports, workers })
    }
}

impl Listening {
    /// The listeners `PREFIX4-N` and `PREFIX6-N` that another process opened in
    /// `netns`, if there are as many as workers.
    pub fn inherit(
        netns: &NetNs,
        workers: usize,
        inherited: &mut Inherited,
        prefix: &str,
    ) -> Option<Self> {
        let workers = workers.max(1);
        let v4: Vec<TcpListener> = inherited.take_group(&format!("{prefix}4"), workers)?;
        let v6: Option<Vec<TcpListener>> = inherited.take_group(&format!("{prefix}6"), workers);
        let port = |list: Option<&TcpListener>| {
            list.and_then(|listener| listener.local_addr().ok())
                .map_or(0, |address| address.port())
        };
        let ports = Ports {
            v4: port(v4.first()),
            v6: port(v6.as_ref().and_then(|list| list.first())),
        };
        if ports.v4 == 0 {
            return None;
        }
        let mut v6 = v6.unwrap_or_default().into_iter();
        let workers = v4
            .into_iter()
            .map(|v4| WorkerListeners {
                netns: netns.clone(),
                v4,
                v6: v6.next(),
            })
            .collect();
        Some(Self { ports, workers })
    }

    /// Keeps second descriptors, so that [`Self::inherit`] works elsewhere.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn keep(&self, kept: &mut Kept, prefix: &str) -> io::Result<()> {
        for (index, worker) in self.workers.iter().enumerate() {
            kept.add(&format!("{prefix}4"), index, &worker.v4)?;
            if let Some(v6) = &worker.v6 {
                kept.add(&format!("{prefix}6"), index, v6)?;
            }
        }
        Ok(())
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
    )
}

fn group(address: IpAddr, workers: usize) -> io::Result<(u16, Vec<TcpListener>)> {
    let mut port = 0;
    let mut group = Vec::with_capacity(workers);
    for _ in 0..workers.max(1) {
        let listener = listener(SocketAddr::new(address, port))?;
        port = listener.local_addr()?.port();
        group.push(listener);
    }
    Ok((port, group))
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit both, which saves system calls for each.
    socket.set_tcp_nodelay(true)?;
    // Applications are on the same host, where nothing is congested: the
    // simplest algorithm does, and none that paces, as the host's default (BBR)
    // may. It is built into every kernel; without it the default serves.
    let _ = socket.set_tcp_congestion(b"reno");
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
