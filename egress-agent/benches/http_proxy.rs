//! The data path without the kernel programs: one service, compiled from a
//! policy, whose connections come to a fixed port. For measurements beside
//! other proxies; identification, records and metrics are all there.
//!
//! `cargo bench --bench http_proxy -- LISTEN UPSTREAM [WORKERS] [PROTOCOL] [ACCESS-LOG]`,
//! PROTOCOL being that of the service's port: `HTTP` or `HTTP2`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measuring tool")]

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use arc_swap::ArcSwap;
use egress_agent::accept::{Origins, WorkerListeners};
use egress_agent::account::{AccessLog, LogTarget, Metrics};
use egress_agent::capture::sockets::{NetNs, Sockets};
use egress_agent::capture::{Caller, Captured, Comm};
use egress_agent::endpoint::Registry;
use egress_agent::flow::{Command, Settings, Shared, run_worker};
use egress_agent::identify::{Callers, HostNames, Workload};
use egress_agent::policy::Options;
use egress_agent::policy::compile::{Ids, compile};
use egress_agent::policy::load::load_text;
use egress_agent::policy::snapshot::{Client, ServiceId};
use egress_agent::secret::{SecretSettings, Secrets};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Everything was meant for one service.
struct OneService {
    id: ServiceId,
    original: SocketAddr,
}

impl Origins for OneService {
    fn take(&self, _: u64, peer: SocketAddr, _: u16) -> io::Result<Option<Captured>> {
        Ok(Some(Captured {
            peer,
            original: self.original,
            service: self.id,
            name_decides: false,
            caller: Caller {
                cgroup: 1,
                netns: 1,
                pid: 1,
                uid: 1,
                comm: Comm::default(),
            },
        }))
    }
}

struct NoNames;

impl HostNames for NoNames {
    fn host_of(&self, _: IpAddr) -> Option<Arc<str>> {
        None
    }
}

struct OneWorkload;

impl Callers for OneWorkload {
    fn workload_of(&self, _: &Caller) -> Workload {
        Workload {
            client: Client {
                namespace: "bench".into(),
                labels: Arc::default(),
            },
            name: "bench".into(),
            instance: None,
        }
    }
}

fn policy(upstream: SocketAddr, protocol: &str) -> String {
    let (address, port) = (upstream.ip(), upstream.port());
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: bench, namespace: bench}}
spec:
  hosts: [bench.test]
  ports: [{{number: 80, name: http, protocol: {protocol}, targetPort: {port}}}]
  resolution: STATIC
  endpoints: [{{address: {address}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: bench, namespace: bench}}
spec:
  hosts: [bench.test]
  http:
    - match: [{{uri: {{prefix: /other}}}}]
      route: [{{destination: {{host: bench.test}}}}]
    - route: [{{destination: {{host: bench.test}}}}]
"
    )
}

fn listener(listen: SocketAddr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&listen.into()).unwrap();
    socket.listen(1024).unwrap();
    socket.into()
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [listen, upstream, rest @ ..] = arguments.as_slice() else {
        eprintln!("http_proxy LISTEN UPSTREAM [WORKERS] [PROTOCOL] [ACCESS-LOG]; nothing to do");
        return;
    };
    let (listen, upstream): (SocketAddr, SocketAddr) =
        (listen.parse().unwrap(), upstream.parse().unwrap());
    let workers: usize = rest.first().map_or(1, |count| count.parse().unwrap());
    let protocol = rest.get(1).map_or("HTTP", String::as_str);

    let options = Options::default();
    let loaded = load_text("bench", &policy(upstream, protocol), &options);
    assert!(loaded.is_valid(), "{:?}", loaded.diagnostics);
    let (snapshot, _) = compile(&mut Ids::default(), &loaded.documents, &options);
    let id = snapshot.services[0].id;
    let metrics = Metrics::new();
    let log = rest
        .get(2)
        .map(|path| AccessLog::open(LogTarget::File(path.into()), &metrics).unwrap());
    let shared = Arc::new(Shared {
        live: Arc::new(ArcSwap::new(
            Registry::new(egress_agent::endpoint::Options::default()).apply(Arc::new(snapshot)),
        )),
        origins: Arc::new(OneService {
            id,
            original: SocketAddr::from(([240, 240, 0, 1], 80)),
        }),
        names: Arc::new(NoNames),
        callers: Arc::new(OneWorkload),
        sockets: Sockets::unmarked(),
        secrets: Secrets::new(SecretSettings::default()),
        metrics,
        log,
        intake: Arc::default(),
        drain: egress_agent::lifecycle::drain::Drain::new(),
        settings: Settings::default(),
    });
    let netns = NetNs::current().unwrap();
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (commands, receiver) = mpsc::unbounded_channel();
            let listeners = WorkerListeners {
                netns: netns.clone(),
                v4: listener(listen),
                v6: None,
            };
            commands.send(Command::Listen(listeners)).unwrap();
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let _commands = commands;
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build_local(tokio::runtime::LocalOptions::default())
                    .unwrap()
                    .block_on(run_worker(shared, receiver));
            })
        })
        .collect();
    println!("listening on {listen}, forwarding to {upstream}");
    for thread in threads {
        thread.join().unwrap();
    }
}
