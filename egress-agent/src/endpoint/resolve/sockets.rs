//! hickory's sockets, made by the one place that makes the agent's: let past
//! our own capture, in the right network namespace.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hickory_net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioTime};
use tokio::io::{Interest, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::capture::sockets::{NetNs, Sockets};

/// Time to connect over TCP where hickory gives none.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Makes hickory's sockets.
#[derive(Clone)]
pub(super) struct Provider {
    sockets: Sockets,
    netns: NetNs,
    elsewhere: ServerNetns,
    handle: TokioHandle,
}

/// Files of the network namespaces that name servers are asked from, where that
/// is not the agent's own. Opened for each query: nothing here keeps a
/// namespace alive, and one may be made anew under its name.
pub type ServerNetns = Arc<HashMap<SocketAddr, PathBuf>>;

impl Provider {
    pub(super) fn new(sockets: Sockets, netns: NetNs, elsewhere: ServerNetns) -> Self {
        Self {
            sockets,
            netns,
            elsewhere,
            handle: TokioHandle::default(),
        }
    }

    fn netns(&self, server: SocketAddr) -> io::Result<NetNs> {
        let Some(path) = self.elsewhere.get(&server) else {
            return Ok(self.netns.clone());
        };
        let opened = File::open(path).and_then(|file| NetNs::open(file.into()));
        opened.map_err(|error| {
            let text = format!(
                "cannot enter the network namespace {}: {error}",
                path.display()
            );
            io::Error::new(error.kind(), text)
        })
    }
}

type Pending<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl RuntimeProvider for Provider {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Udp;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pending<Self::Tcp> {
        let this = self.clone();
        Box::pin(async move {
            let socket = this.sockets.tcp(&this.netns(server)?, &server)?;
            if let Some(bind) = bind {
                socket.bind(bind)?;
            }
            socket.set_nodelay(true)?;
            match timeout(limit.unwrap_or(CONNECT_LIMIT), socket.connect(server)).await {
                Ok(stream) => stream.map(AsyncIoTokioAsStd),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Pending<Self::Udp> {
        let this = self.clone();
        Box::pin(async move {
            let socket = this.sockets.udp(&this.netns(server)?, local)?;
            let socket = UdpSocket::from_std(socket)?;
            socket.connect(server).await?;
            Ok(Udp { socket, server })
        })
    }
}

/// A UDP socket of one query. hickory expects one that is not connected, and
/// uses it for one server only; connected, it hears at once that the server's
/// port is closed, and nothing from anyone else.
pub(super) struct Udp {
    socket: UdpSocket,
    server: SocketAddr,
}

impl DnsUdpSocket for Udp {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(self.socket.poll_recv(context, &mut buffer))?;
        Poll::Ready(Ok((buffer.filled().len(), self.server)))
    }

    /// What the trait's `async fn` stands for. An ICMP error is no reason to
    /// wake a mere reader, so this waits for errors as well.
    fn recv_from<'a, 'b, 'c>(
        &'a self,
        buffer: &'b mut [u8],
    ) -> Pin<Box<dyn Future<Output = io::Result<(usize, SocketAddr)>> + Send + 'c>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let interest = Interest::READABLE | Interest::ERROR;
            let flags = rustix::net::RecvFlags::empty();
            let receive = || Ok(rustix::net::recv(&self.socket, &mut *buffer, flags)?.0);
            let length = self.socket.async_io(interest, receive).await?;
            Ok((length, self.server))
        })
    }

    fn poll_send_to(
        &self,
        context: &mut Context<'_>,
        buffer: &[u8],
        _: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_send(context, buffer)
    }
}
