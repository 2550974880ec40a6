//! A client, the relay and a service in one thread, over in-memory streams,
//! so that time can be paused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::sync::watch;
use tokio::task::spawn_local;

use crate::capture::sockets::NetNs;
use crate::connect::pool::{Dial, DialError, DialRequest, Dialled, Dialling, Pool, Security};
use crate::endpoint::resolved::Destination;
use crate::endpoint::{Live, Options, Outcome, Registry};
use crate::flag::Side;
use crate::policy::model::{Protocol, TrafficPolicy};
use crate::policy::routes::HttpRoute;
use crate::policy::snapshot::{Client, Cluster, Snapshot};
use crate::relay::http::{Caller, End, Log, Record, RequestBody, Settings, Worker, serve};
use crate::relay::{Buffers, Transport};
use crate::route::testing;
use crate::secret::Replaced;
pub(super) use crate::testing::paused;

/// What the service got.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) address: SocketAddr,
    /// Number of the connection, from 1.
    pub(super) connection: u32,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Seen {
    /// The request line.
    pub(super) fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    /// All values of a header.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }
}

/// What the service does with a request.
#[derive(Clone, Debug)]
pub(super) enum Do {
    /// Sends these bytes.
    Say(&'static str),
    /// Sends these bytes, then closes.
    SayAndClose(&'static str),
    /// Waits, then sends these bytes.
    SayAfter(Duration, &'static str),
    /// Closes without a word.
    Close,
    /// Never answers.
    Silence,
}

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// The services behind the relay: what they got, and what they do, in turn.
/// When nothing is left to do, they answer [`OK`].
#[derive(Default)]
pub(super) struct World {
    pub(super) seen: RefCell<Vec<Seen>>,
    pub(super) script: RefCell<VecDeque<Do>>,
    pub(super) connections: Cell<u32>,
    pub(super) open: Cell<u32>,
    pub(super) most_open: Cell<u32>,
    /// Told of the material that connections are made with.
    pub(super) replaced: RefCell<Replaced>,
    /// Addresses that refuse connections.
    pub(super) refused: RefCell<Vec<SocketAddr>>,
    /// Serves a connection instead of the script.
    #[allow(clippy::type_complexity, reason = "a test's hook")]
    pub(super) special: RefCell<Option<Box<dyn Fn(DuplexStream)>>>,
}

/// The relay's end of a connection to a service, counted while it is open.
pub(super) struct Wire {
    stream: DuplexStream,
    world: Rc<World>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.world.open.set(self.world.open.get() - 1);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[derive(Clone)]
struct Dialler(Rc<World>);

impl Dial<Wire> for Dialler {
    fn dial<'a>(&'a self, request: DialRequest<'a>) -> Dialling<'a, Wire> {
        Box::pin(async move {
            let Destination::Tcp(address) = request.picked.destination else {
                panic!("only TCP here");
            };
            if self.0.refused.borrow().contains(&address) {
                return Err(DialError {
                    outcome: Outcome::ConnectRefused,
                    side: Side::Upstream,
                    elsewhere: true,
                    message: format!("{address}: connection refused").into(),
                });
            }
            let (ours, theirs) = duplex(64 * 1024);
            let world = Rc::clone(&self.0);
            world.connections.set(world.connections.get() + 1);
            world.open.set(world.open.get() + 1);
            world
                .most_open
                .set(world.most_open.get().max(world.open.get()));
            if let Some(special) = &*world.special.borrow() {
                special(theirs);
            } else {
                let number = world.connections.get();
                let served = Rc::clone(&world);
                spawn_local(async move {
                    let _ = serve_script(&served, address, number, theirs).await;
                });
            }
            Ok(Dialled {
                io: Wire {
                    stream: ours,
                    world: Rc::clone(&self.0),
                },
                http2: None,
                local: None,
                security: Security::None,
                replaced: self.0.replaced.borrow().clone(),
            })
        })
    }
}

async fn serve_script(
    world: &Rc<World>,
    address: SocketAddr,
    connection: u32,
    mut stream: DuplexStream,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some((head, body)) = read_message(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        world.seen.borrow_mut().push(Seen {
            address,
            connection,
            head,
            body,
        });
        let next = world.script.borrow_mut().pop_front();
        match next.unwrap_or(Do::Say(OK)) {
            Do::Say(bytes) => stream.write_all(bytes.as_bytes()).await?,
            Do::SayAndClose(bytes) => {
                stream.write_all(bytes.as_bytes()).await?;
                return Ok(());
            }
            Do::SayAfter(time, bytes) => {
                tokio::time::sleep(time).await;
                stream.write_all(bytes.as_bytes()).await?;
            }
            Do::Close => return Ok(()),
            Do::Silence => {
                // Until the relay gives up.
                let _ = stream.read(&mut [0; 1]).await;
                return Ok(());
            }
        }
    }
}

/// Reads one message with Content-Length or chunked framing; the chunks are
/// left as they are.
pub(super) async fn read_message(
    stream: &mut DuplexStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(String, Vec<u8>)>> {
    let end = loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map(|length| length.parse::<usize>().unwrap());
    let mut body = Vec::new();
    if let Some(length) = length {
        while buffer.len() < length {
            if stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
        body = buffer.drain(..length).collect();
    } else if lower.contains("transfer-encoding: chunked") {
        let end = loop {
            if let Some(at) = memchr::memmem::find(buffer, b"0\r\n\r\n") {
                break at + 5;
            }
            if stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        };
        body = buffer.drain(..end).collect();
    }
    Ok(Some((head, body)))
}

/// Keeps the records of finished requests.
#[derive(Clone, Default)]
pub(super) struct Kept(pub(super) Rc<RefCell<Vec<Brief>>>);

/// The part of a record that tests look at.
#[derive(Clone, Debug)]
pub(super) struct Brief {
    pub(super) status: Option<u16>,
    pub(super) flags: Vec<&'static str>,
    pub(super) details: String,
    pub(super) attempts: u32,
    pub(super) reconnects: u32,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) route: String,
    pub(super) grpc_status: Option<u8>,
}

impl Transport for Wire {
    fn abort(&self) {}
}

impl Log for Kept {
    fn wants_details(&self) -> bool {
        true
    }

    fn request(&self, record: &Record) {
        self.0.borrow_mut().push(Brief {
            status: record.status.map(|status| status.as_u16()),
            flags: record.flags.iter().map(|flag| flag.code()).collect(),
            details: record.details.to_string(),
            attempts: record.attempts,
            reconnects: record.reconnects,
            received: record.received,
            sent: record.sent,
            route: record.route.as_deref().unwrap_or_default().to_owned(),
            grpc_status: record.grpc_status,
        });
    }
}

/// The relay with a policy in front of scripted services.
pub(super) struct Rig {
    pub(super) world: Rc<World>,
    pub(super) log: Kept,
    pub(super) worker: Rc<Worker<Wire>>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) drain: watch::Sender<bool>,
    pub(super) name_decides: Cell<bool>,
}

/// Address number `n` of a service.
pub(super) fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, n], 80))
}

pub(super) const HOST: &str = "api.example.com";

/// A cluster of [`HOST`] with `endpoints` addresses.
pub(super) fn cluster(policy: TrafficPolicy, protocol: Protocol, endpoints: u8) -> Arc<Cluster> {
    let addresses: Vec<_> = (1..=endpoints).map(address).collect();
    testing::cluster(0, HOST, protocol, policy, &addresses)
}

/// The usual: HTTP, one address, no policy.
pub(super) fn plain() -> Arc<Cluster> {
    cluster(testing::traffic_policy(), Protocol::Http, 1)
}

impl Rig {
    pub(super) fn new(cluster: Arc<Cluster>, routes: Option<Vec<HttpRoute>>) -> Self {
        Self::with(cluster, &[], routes, Settings::default())
    }

    pub(super) fn with(
        cluster: Arc<Cluster>,
        more: &[Arc<Cluster>],
        routes: Option<Vec<HttpRoute>>,
        settings: Settings,
    ) -> Self {
        let mut clusters = vec![Arc::clone(&cluster)];
        clusters.extend(more.iter().cloned());
        let service = testing::service(testing::view(cluster, routes));
        let mut snapshot = Snapshot {
            generation: 1,
            services: vec![Arc::clone(&service)],
            clusters,
            ..Snapshot::default()
        };
        snapshot.by_id.insert(service.id, Arc::clone(&service));
        snapshot.by_host.insert(HOST.into(), vec![service]);
        let mut registry = Registry::new(Options::default());
        let live = Arc::new(ArcSwap::new(registry.apply(Arc::new(snapshot))));
        let world = Rc::new(World::default());
        let log = Kept::default();
        let (drain, draining) = watch::channel(false);
        let pool: Rc<Pool<RequestBody, Wire>> = Pool::new(Dialler(Rc::clone(&world)));
        let worker = Worker::new(
            pool,
            Arc::clone(&live),
            settings,
            Buffers::default(),
            draining,
            crate::secret::Secrets::new(crate::secret::SecretSettings::default()),
        );
        Self {
            world,
            log,
            worker,
            live,
            drain,
            name_decides: Cell::new(false),
        }
    }

    /// What the services do, in turn.
    pub(super) fn script(&self, script: &[Do]) {
        self.world
            .script
            .borrow_mut()
            .extend(script.iter().cloned());
    }

    /// A connection of a client, and how it will have ended.
    pub(super) fn connect(&self) -> (DuplexStream, tokio::task::JoinHandle<End>) {
        let (ours, theirs) = duplex(64 * 1024);
        let caller = Caller {
            peer: "10.0.0.1:5000".parse().unwrap(),
            original: "240.240.0.1:80".parse().unwrap(),
            name_decides: self.name_decides.get(),
            netns: NetNs::current().unwrap(),
            host: HOST.into(),
            client: Client {
                namespace: "shop".into(),
                labels: Arc::default(),
            },
        };
        let service = Arc::clone(&self.live.load().snapshot.services[0]);
        let worker = Rc::clone(&self.worker);
        let log = self.log.clone();
        (
            ours,
            spawn_local(serve(worker, caller, service, theirs, log)),
        )
    }

    /// Sends bytes on a connection of their own and returns everything that
    /// comes back until the relay closes, or is silent for a simulated day.
    pub(super) async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let (mut stream, _) = self.connect();
        stream.write_all(bytes.as_ref()).await.unwrap();
        read_all(&mut stream).await
    }

    /// A GET on a connection of its own; status and body.
    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        let (mut stream, _) = self.connect();
        let answer = ask(&mut stream, &request(path)).await;
        (answer.status(), answer.body)
    }

    /// The requests that services got.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.world.seen.borrow().clone()
    }

    /// Records of finished requests.
    pub(super) fn records(&self) -> Vec<Brief> {
        self.log.0.borrow().clone()
    }

    /// The newest record.
    pub(super) fn record(&self) -> Brief {
        self.records().pop().expect("a request was recorded")
    }
}

/// A plain GET.
pub(super) fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

/// A response as a client reads it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) head: String,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

/// Sends a request and reads one response.
pub(super) async fn ask(stream: &mut DuplexStream, request: &str) -> Reply {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = Vec::new();
    let (head, body) = read_message(stream, &mut buffer)
        .await
        .unwrap()
        .expect("a response");
    Reply {
        head,
        body: String::from_utf8(body).unwrap(),
    }
}

/// Reads until the end, or until nothing has come for a day.
pub(super) async fn read_all(stream: &mut DuplexStream) -> String {
    let mut all = Vec::new();
    let day = Duration::from_hours(24);
    while let Ok(Ok(read)) = tokio::time::timeout(day, stream.read_buf(&mut all)).await {
        if read == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}
