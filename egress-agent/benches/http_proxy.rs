//! The HTTP data plane by itself, without capture: listens on one address and
//! forwards to another, under a hand-made policy. For measurements beside
//! other proxies.
//!
//! `cargo bench --bench http_proxy -- LISTEN UPSTREAM [WORKERS] [http2]`
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measuring tool")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use egress_agent::connect::pool::{Dial, DialError, DialRequest, Dialled, Dialling, Pool};
use egress_agent::endpoint::resolved::Destination;
use egress_agent::endpoint::{Live, Options, Outcome, Registry};
use egress_agent::flag::Side;
use egress_agent::policy::model::{
    ConnectionPool, DocumentRef, EndpointAddress, EndpointSpec, HostPattern, Labels, LoadBalancer,
    Locality, Protocol, Resolution, TrafficPolicy, Visibility,
};
use egress_agent::policy::snapshot::{
    Client, ClientMatch, Cluster, ClusterKey, ClusterTarget, OnAgentFailure, Path, Service,
    ServiceId, ServiceKey, Snapshot, View,
};
use egress_agent::relay::http::{Caller, Log, Record, Settings, Worker, serve};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Tcp;

impl Dial<TcpStream> for Tcp {
    fn dial<'a>(&'a self, request: DialRequest<'a>) -> Dialling<'a, TcpStream> {
        Box::pin(async move {
            let failed = |error: std::io::Error| DialError {
                outcome: Outcome::ConnectFailed,
                side: Side::Upstream,
                message: error.to_string().into(),
            };
            let Destination::Tcp(address) = request.picked.destination else {
                return Err(failed(std::io::ErrorKind::Unsupported.into()));
            };
            let io = TcpStream::connect(address).await.map_err(failed)?;
            io.set_nodelay(true).map_err(failed)?;
            let local = io.local_addr().ok();
            Ok(Dialled {
                io,
                http2: None,
                local,
            })
        })
    }
}

struct Quiet;

impl Log for Quiet {
    fn wants_headers(&self) -> bool {
        false
    }
    fn request(&self, _: &Caller, _: &Record) {}
}

fn snapshot(upstream: SocketAddr, http2: bool) -> (Snapshot, Arc<Service>) {
    let key = ServiceKey {
        namespace: "bench".into(),
        host: HostPattern::Exact("bench.test".into()),
        port: 80,
    };
    let protocol = if http2 {
        Protocol::Http2
    } else {
        Protocol::Http
    };
    let endpoints = vec![EndpointSpec {
        address: EndpointAddress::Ip(upstream.ip()),
        port: upstream.port(),
        weight: 1,
        locality: Locality::default(),
        labels: Labels::new(),
    }];
    let policy = TrafficPolicy {
        connection_pool: ConnectionPool::default(),
        load_balancer: LoadBalancer::default(),
        outlier_detection: None,
        tls: None,
        tunnel: None,
        proxy_protocol: None,
        retry_budget: None,
        health_check: None,
    };
    let cluster = Arc::new(Cluster {
        index: 0,
        key: ClusterKey {
            service: key.clone(),
            subset: "".into(),
            rule: "".into(),
        },
        target: Arc::new(ClusterTarget {
            service: ServiceId(1),
            host: key.host.clone(),
            port: 80,
            target_port: 80,
            protocol,
            resolution: Resolution::Static,
            https_port: false,
        }),
        policy: Arc::new(policy),
        endpoints: endpoints.clone(),
    });
    let service = Arc::new(Service {
        id: ServiceId(1),
        key,
        entry: DocumentRef {
            kind: "ServiceEntry",
            namespace: "bench".into(),
            name: "bench".into(),
            source: "bench".into(),
            line: 1,
        },
        port_name: "http".into(),
        protocol,
        resolution: Resolution::Static,
        target_port: 80,
        addresses: Vec::new(),
        virtual_address: false,
        endpoints,
        visibility: Visibility::All,
        path: Path::Proxy("bench".into()),
        on_agent_failure: OnAgentFailure::Closed,
        views: vec![View {
            clients: ClientMatch::default(),
            destination_rule: None,
            virtual_service: None,
            cluster: Arc::clone(&cluster),
            subsets: BTreeMap::new(),
            http: None,
            tls: None,
            tcp: None,
        }],
    });
    let mut snapshot = Snapshot {
        generation: 1,
        services: vec![Arc::clone(&service)],
        clusters: vec![cluster],
        ..Snapshot::default()
    };
    snapshot.by_id.insert(ServiceId(1), Arc::clone(&service));
    (snapshot, service)
}

async fn run(listener: TcpListener, live: Arc<ArcSwap<Live>>, service: Arc<Service>) {
    let (_drain, draining) = tokio::sync::watch::channel(false);
    let pool = Pool::new(Tcp);
    let worker = Worker::new(pool, live, Settings::default(), Quiet, draining);
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).unwrap();
        let caller = Caller {
            peer,
            original: stream.local_addr().unwrap(),
            name_decides: false,
            netns: 0,
            host: "bench.test".into(),
            client: Client {
                namespace: "bench".into(),
                labels: Arc::default(),
            },
        };
        let (worker, service) = (worker.clone(), Arc::clone(&service));
        tokio::task::spawn_local(async move {
            serve(worker, caller, service, stream).await;
        });
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [listen, upstream, rest @ ..] = arguments.as_slice() else {
        eprintln!("http_proxy LISTEN UPSTREAM [WORKERS] [http2]; nothing to do");
        return;
    };
    let (listen, upstream): (SocketAddr, SocketAddr) =
        (listen.parse().unwrap(), upstream.parse().unwrap());
    let workers: usize = rest.first().map_or(1, |count| count.parse().unwrap());
    let http2 = rest.get(1).is_some_and(|word| word == "http2");
    let (snapshot, service) = snapshot(upstream, http2);
    let mut registry = Registry::new(Options::default());
    let live = Arc::new(ArcSwap::new(registry.apply(Arc::new(snapshot))));
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (live, service) = (Arc::clone(&live), Arc::clone(&service));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build_local(tokio::runtime::LocalOptions::default())
                    .unwrap();
                runtime.block_on(async {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.set_reuseport(true).unwrap();
                    socket.set_reuseaddr(true).unwrap();
                    socket.bind(listen).unwrap();
                    run(socket.listen(1024).unwrap(), live, service).await;
                });
            })
        })
        .collect();
    println!("listening on {listen}, forwarding to {upstream}");
    for thread in threads {
        thread.join().unwrap();
    }
}
