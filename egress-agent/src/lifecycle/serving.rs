//! What a worker thread runs: the flow, and the DNS servers.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use egress_common::{DNS6_PORTS, Listeners, SERVICE_DNS};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

use super::StartError;
use super::bridges::Callers;
use super::worker::WorkerContext;
use crate::accept::{Accepted, Admission, Inherited, Intake, Kept, Listening, WorkerListeners};
use crate::capture::sockets::{NetNs, Sockets};
use crate::dns::forward::Forwarder;
use crate::dns::registry::Registry;
use crate::dns::server::{self, Counters, ResolverTable, Server};
use crate::flow::{self, Command, Shared};
use crate::memory;

/// DNS connections that one worker has open at once.
const DNS_CONNECTIONS: usize = 1024;

/// What one worker is started with.
pub(super) struct Start {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) dns: Option<DnsStart>,
    pub(super) dns_commands: mpsc::UnboundedReceiver<DnsCommand>,
}

/// What the control runtime tells the DNS servers of a worker.
pub(super) enum DnsCommand {
    /// Answer in one more namespace.
    Serve(Box<DnsStart>),
    /// Nobody is left in a namespace (by cookie).
    Forget(u64),
}

/// The DNS part of it.
pub(super) struct DnsStart {
    registry: Arc<Registry>,
    resolvers: Arc<dyn ResolverTable>,
    callers: Callers,
    counters: Arc<Counters>,
    sockets: Sockets,
    netns: NetNs,
    /// Every worker answers over TCP in the agent's own namespace, and one of
    /// them in each of the others.
    tcp: WorkerListeners,
    /// One worker has the UDP sockets: replies must leave from the socket that
    /// the query came to.
    udp: Option<(UdpSocket, Option<[UdpSocket; DNS6_PORTS]>)>,
}

/// What the DNS servers of all workers share.
#[derive(Clone)]
pub(super) struct DnsShared {
    pub(super) registry: Arc<Registry>,
    pub(super) resolvers: Arc<dyn ResolverTable>,
    pub(super) callers: Callers,
    pub(super) counters: Arc<Counters>,
    pub(super) sockets: Sockets,
}

/// Starts, one for each worker; a worker takes its own.
pub(super) type Starts = Arc<[Mutex<Option<Start>>]>;

/// Opens everything that listens in `netns`, and says on which ports. In other
/// namespaces than the agent's own there is one DNS server for all workers:
/// there may be hundreds of them, each with little to ask.
pub(super) fn open(
    netns: &NetNs,
    workers: usize,
    dns: Option<&DnsShared>,
) -> Result<Opened, StartError> {
    open_or_inherit(netns, workers, dns, &mut Inherited::default(), None)
}

/// Ports, listeners for each worker, and DNS servers.
pub(super) type Opened = (Listeners, Vec<WorkerListeners>, Vec<DnsStart>);

/// As [`open`], with the sockets that another process opened in `netns`, and
/// second descriptors of all of them in `kept`.
pub(super) fn open_or_inherit(
    netns: &NetNs,
    workers: usize,
    dns: Option<&DnsShared>,
    inherited: &mut Inherited,
    mut kept: Option<&mut Kept>,
) -> Result<Opened, StartError> {
    let failed = |what| move |error| StartError::Process { what, error };
    let mut listening = |count: usize, prefix: &str| {
        let listening = match Listening::inherit(netns, count, inherited, prefix) {
            Some(listening) => listening,
            None => Listening::open(netns, count)?,
        };
        if let Some(kept) = kept.as_deref_mut() {
            listening.keep(kept, prefix)?;
        }
        io::Result::Ok(listening)
    };
    let flow = listening(workers, "tcp").map_err(failed("the listeners"))?;
    let mut listeners = Listeners {
        tcp4: flow.ports.v4,
        tcp6: flow.ports.v6,
        dns4: 0,
        dns_tcp4: 0,
        dns_tcp6: 0,
        reserved: 0,
        dns6: [0; DNS6_PORTS],
    };
    let mut starts = Vec::new();
    if let Some(dns) = dns {
        let servers = if netns.is_home() { workers } else { 1 };
        let tcp = listening(servers, "dns-tcp").map_err(failed("the DNS listeners"))?;
        listeners.dns_tcp4 = tcp.ports.v4;
        listeners.dns_tcp6 = tcp.ports.v6;
        let (v4, v6) = match inherit_udp(dns, inherited) {
            Some(sockets) => sockets,
            None => udp(netns, dns).map_err(failed("the DNS sockets"))?,
        };
        if let Some(kept) = kept {
            keep_udp(kept, &v4, v6.as_ref()).map_err(failed("the DNS sockets"))?;
        }
        listeners.dns4 = v4.local_addr().map_or(0, |address| address.port());
        for (port, socket) in listeners.dns6.iter_mut().zip(v6.iter().flatten()) {
            *port = socket.local_addr().map_or(0, |address| address.port());
        }
        let mut udp = Some((v4, v6));
        starts.extend(tcp.workers.into_iter().map(|tcp| DnsStart {
            registry: Arc::clone(&dns.registry),
            resolvers: Arc::clone(&dns.resolvers),
            callers: dns.callers.clone(),
            counters: Arc::clone(&dns.counters),
            sockets: dns.sockets.clone(),
            netns: netns.clone(),
            tcp,
            udp: udp.take(),
        }));
    }
    Ok((listeners, flow.workers, starts))
}

type UdpSockets = (UdpSocket, Option<[UdpSocket; DNS6_PORTS]>);

fn udp(netns: &NetNs, dns: &DnsShared) -> io::Result<UdpSockets> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let v4 = dns.sockets.udp(netns, any)?;
    let loopback = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let v6: io::Result<Vec<UdpSocket>> = (0..DNS6_PORTS)
        .map(|_| dns.sockets.udp(netns, loopback))
        .collect();
    // A namespace without IPv6 has no `[::1]`; its clients cannot ask it.
    Ok((v4, v6.ok().and_then(|list| list.try_into().ok())))
}

fn inherit_udp(dns: &DnsShared, inherited: &mut Inherited) -> Option<UdpSockets> {
    let v4: UdpSocket = inherited.take_group("dns4", 1)?.pop()?;
    let v6: Option<Vec<UdpSocket>> = inherited.take_group("dns6", DNS6_PORTS);
    // The mark is in a map, which may not be the one it was in.
    for socket in std::iter::once(&v4).chain(v6.iter().flatten()) {
        dns.sockets.mark(socket).ok()?;
    }
    Some((v4, v6.and_then(|list| list.try_into().ok())))
}

fn keep_udp(
    kept: &mut Kept,
    v4: &UdpSocket,
    v6: Option<&[UdpSocket; DNS6_PORTS]>,
) -> io::Result<()> {
    kept.add("dns4", 0, v4)?;
    for (index, socket) in v6.into_iter().flatten().enumerate() {
        kept.add("dns6", index, socket)?;
    }
    Ok(())
}

/// The body of each worker.
pub(super) async fn body(context: WorkerContext, starts: Starts) -> Result<(), String> {
    let start = starts
        .get(context.index)
        .and_then(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).take())
        .ok_or("it was started twice")?;
    let mut home = HashMap::new();
    if let Some(dns) = start.dns {
        let cookie = dns.netns.cookie;
        let mut tasks = Vec::new();
        serve_dns(dns, &start.shared, |name, task| {
            tasks.push(context.vitals.spawn(name, task).abort_handle());
        })
        .map_err(|error| format!("DNS: {error}"))?;
        home.insert(cookie, tasks);
    }
    let elsewhere = serve_elsewhere(Arc::clone(&start.shared), start.dns_commands, home);
    context.vitals.spawn("DNS in namespaces", elsewhere);
    context.vitals.spawn("flow", async move {
        flow::run_worker(start.shared, start.commands).await;
    });
    spawn_local(memory::settle());
    context.ready();
    context.drain.ended().await;
    Ok(())
}

/// DNS in other namespaces than the agent's own, and the end of it in all.
async fn serve_elsewhere(
    shared: Arc<Shared>,
    mut commands: mpsc::UnboundedReceiver<DnsCommand>,
    mut serving: HashMap<u64, Vec<AbortHandle>>,
) {
    let stop = |tasks: Option<Vec<AbortHandle>>| {
        for task in tasks.into_iter().flatten() {
            task.abort();
        }
    };
    while let Some(command) = commands.recv().await {
        match command {
            DnsCommand::Serve(start) => {
                let cookie = start.netns.cookie;
                let mut tasks = Vec::new();
                let served = serve_dns(*start, &shared, |_, task| {
                    tasks.push(spawn_local(task).abort_handle());
                });
                if let Err(error) = served {
                    tracing::error!(netns = cookie, "cannot answer DNS in a namespace: {error}");
                }
                stop(serving.insert(cookie, tasks));
            }
            DnsCommand::Forget(cookie) => stop(serving.remove(&cookie)),
        }
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

fn serve_dns(
    dns: DnsStart,
    shared: &Shared,
    mut spawn: impl FnMut(&'static str, Task),
) -> io::Result<()> {
    let forwarder = Forwarder::new(dns.sockets, dns.netns.clone());
    let server = Arc::new(Server::new(
        dns.registry,
        forwarder,
        dns.resolvers,
        dns.counters,
        dns.tcp.v6.is_some(),
    ));
    if let Some((v4, v6)) = dns.udp {
        let udp4 = server::serve_udp4(Arc::clone(&server), v4);
        let udp4 = Box::pin(async move {
            let Err(error) = udp4.await;
            tracing::error!("DNS over UDP ended: {error}");
        });
        spawn("DNS over UDP", udp4);
        if let Some(v6) = v6 {
            let udp6 = server::serve_udp6(Arc::clone(&server), v6);
            let udp6 = Box::pin(async move {
                let Err(error) = udp6.await;
                tracing::error!("DNS over UDP and IPv6 ended: {error}");
            });
            spawn("DNS over UDP and IPv6", udp6);
        }
    }
    let intake = Intake {
        origins: Arc::clone(&shared.origins),
        admission: Admission::new(DNS_CONNECTIONS),
        stats: Arc::clone(&shared.intake),
    };
    for listener in [Some(dns.tcp.v4), dns.tcp.v6].into_iter().flatten() {
        let listener = TcpListener::from_std(listener)?;
        let server = Arc::clone(&server);
        let callers = dns.callers.clone();
        let accepting = intake
            .clone()
            .run(listener, dns.netns.clone(), move |accepted| {
                serve_dns_connection(&server, &callers, accepted);
            });
        spawn("DNS over TCP", Box::pin(accepting));
    }
    Ok(())
}

fn serve_dns_connection(server: &Arc<Server>, callers: &Callers, accepted: Accepted) {
    if accepted.captured.service.0 != SERVICE_DNS {
        return;
    }
    let namespace = callers.namespace(&accepted.captured.caller);
    let server = Arc::clone(server);
    spawn_local(async move {
        let _admitted = accepted.admitted;
        let resolver = accepted.captured.original;
        if let Err(error) = server::serve_tcp(server, accepted.stream, resolver, namespace).await {
            tracing::debug!(%resolver, "DNS over TCP: {error}");
        }
    });
}
