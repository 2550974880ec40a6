//! A data path over loopback: one worker, a policy made by hand, servers with
//! certificates of their own authority. No kernel program takes part: a client
//! registers where it "was going" before it connects to the listener.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its own part"
)]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use egress_agent::accept::{Accepted, Admission, Listening, Origins, Ports};
use egress_agent::account::{AccessLog, LogTarget, Metrics};
use egress_agent::capture::sockets::{NetNs, Sockets};
use egress_agent::capture::{Caller, Captured, Comm};
use egress_agent::endpoint::{Live, Options, Registry};
use egress_agent::flow::{Command, Settings, Shared, run_worker};
use egress_agent::identify::{Callers, HostNames, Workload};
use egress_agent::lifecycle::drain::Drain;
use egress_agent::policy::model::{
    ClientTls, ConnectionPool, DocumentRef, EndpointAddress, EndpointSpec, HostPattern, Identity,
    Labels, LoadBalancer, Locality, Protocol, Resolution, TlsExtra, TrafficPolicy, Trust,
    Visibility,
};
use egress_agent::policy::snapshot::{
    Client, ClientMatch, Cluster, ClusterKey, ClusterTarget, OnAgentFailure, Path as DataPath,
    Service, ServiceId, ServiceKey, Snapshot, View,
};
use egress_agent::secret::{SecretSettings, Secrets};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, GeneralSubtree,
    IsCa, Issuer, KeyIdMethod, KeyPair, NameConstraints, RevokedCertParams, date_time_ymd,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A certificate authority made for a test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A leaf certificate with its key.
pub(crate) struct Leaf {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    pub key: KeyPair,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// An authority that may issue for one domain only.
    pub(crate) fn constrained(name: &str, domain: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_owned())],
            excluded_subtrees: Vec::new(),
        });
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A revocation list with these serial numbers.
    pub(crate) fn revocation_list(&self, serials: &[u64]) -> String {
        let revoked = serials
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: (*serial).into(),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked,
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .unwrap()
        .pem()
        .unwrap()
    }

    pub(crate) fn issue(&self, name: &str) -> Leaf {
        self.issue_with(name, |_| {})
    }

    pub(crate) fn issue_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Leaf {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            certificate_pem: certificate.pem(),
            certificate: certificate.der().clone(),
            key,
        }
    }

    pub(crate) fn write(&self, directory: &Path) -> PathBuf {
        let path = directory.join(format!("ca-{}.pem", fastrand::u64(..)));
        std::fs::write(&path, &self.pem).unwrap();
        path
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        roots
    }
}

/// A TLS server's settings; with `clients`, it demands a certificate of theirs.
pub(crate) fn server_config(leaf: &Leaf, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider)
                .build()
                .unwrap(),
        ),
    };
    let key = PrivateKeyDer::try_from(leaf.key.serialize_der()).unwrap();
    Arc::new(
        builder
            .with_single_cert(vec![leaf.certificate.clone()], key)
            .unwrap(),
    )
}

/// Accepts one TLS connection.
pub(crate) async fn accept_tls(
    listener: &TcpListener,
    config: &Arc<ServerConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let (stream, _) = listener.accept().await?;
    TlsAcceptor::from(config.clone()).accept(stream).await
}

/// `tls: SIMPLE` that trusts one authority.
pub(crate) fn simple(authority: &Path) -> ClientTls {
    ClientTls {
        identity: Identity::None,
        trust: Trust::File {
            ca: authority.to_owned(),
            crl: None,
        },
        sni: None,
        subject_alt_names: Vec::new(),
        insecure_skip_verify: false,
        secret_namespaces: Vec::new(),
        extra: TlsExtra::default(),
    }
}

pub(crate) fn policy(tls: Option<ClientTls>) -> TrafficPolicy {
    TrafficPolicy {
        connection_pool: ConnectionPool::default(),
        load_balancer: LoadBalancer::default(),
        outlier_detection: None,
        tls,
        tunnel: None,
        proxy_protocol: None,
        retry_budget: None,
        health_check: None,
        credential: None,
    }
}

/// A snapshot with one STATIC service, number 1.
pub(crate) fn snapshot(
    host: &str,
    protocol: Protocol,
    policy: TrafficPolicy,
    endpoints: &[SocketAddr],
) -> Snapshot {
    let port = 80;
    let key = ServiceKey {
        namespace: "shop".into(),
        host: HostPattern::Exact(host.into()),
        port,
    };
    let endpoints: Arc<[EndpointSpec]> = endpoints
        .iter()
        .map(|address| EndpointSpec {
            address: EndpointAddress::Ip(address.ip()),
            port: address.port(),
            weight: 1,
            locality: Locality::default(),
            labels: Labels::new(),
        })
        .collect();
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
            port,
            target_port: port,
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
        entry: Arc::new(DocumentRef {
            kind: "ServiceEntry",
            namespace: "shop".into(),
            name: "test".into(),
            source: "test".into(),
            line: 1,
        }),
        port_name: "port".into(),
        protocol,
        resolution: Resolution::Static,
        target_port: port,
        addresses: Vec::new(),
        virtual_address: true,
        endpoints,
        visibility: Visibility::All,
        path: DataPath::Proxy("test".into()),
        on_agent_failure: OnAgentFailure::Closed,
        views: vec![View {
            clients: ClientMatch::default(),
            destination_rule: None,
            virtual_service: None,
            cluster: cluster.clone(),
            subsets: BTreeMap::new(),
            http: None,
            tls: None,
            tcp: None,
        }],
    });
    let mut snapshot = Snapshot {
        generation: 1,
        services: vec![service.clone()],
        clusters: vec![cluster],
        ..Snapshot::default()
    };
    snapshot.by_id.insert(service.id, service.clone());
    snapshot
        .by_host
        .insert(service.key.host.exact().unwrap().clone(), vec![service]);
    snapshot
}

#[derive(Default)]
struct FakeOrigins(Mutex<HashMap<SocketAddr, Captured>>);

impl Origins for FakeOrigins {
    fn take(&self, _: u64, peer: SocketAddr, listener: u16) -> io::Result<Option<Captured>> {
        assert_ne!(listener, 0);
        Ok(self.0.lock().unwrap().remove(&peer))
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
                namespace: "shop".into(),
                labels: Arc::default(),
            },
            name: "cart.service".into(),
            instance: None,
        }
    }
}

/// A running data path. Must be made inside a `LocalSet`.
pub(crate) struct Agent {
    pub directory: tempfile::TempDir,
    pub secrets: Arc<Secrets>,
    pub live: Arc<ArcSwap<Live>>,
    pub metrics: Arc<Metrics>,
    pub shared: Arc<Shared>,
    ports: Ports,
    origins: Arc<FakeOrigins>,
    log: AccessLog,
    log_path: PathBuf,
    _commands: mpsc::UnboundedSender<Command>,
}

impl Agent {
    pub(crate) fn start(directory: tempfile::TempDir, snapshot: Snapshot) -> Self {
        let secrets = Secrets::new(SecretSettings {
            directory: Some(directory.path().join("secrets")),
            ..SecretSettings::default()
        });
        let live = Registry::new(Options::default()).apply(Arc::new(snapshot));
        let live = Arc::new(ArcSwap::new(live));
        let metrics = Metrics::new();
        let log_path = directory.path().join("access.log");
        let log = AccessLog::open(LogTarget::File(log_path.clone()), &metrics).unwrap();
        let origins = Arc::new(FakeOrigins::default());
        let shared = Arc::new(Shared {
            live: live.clone(),
            origins: origins.clone(),
            names: Arc::new(NoNames),
            callers: Arc::new(OneWorkload),
            sockets: Sockets::unmarked(),
            secrets: secrets.clone(),
            metrics: metrics.clone(),
            log: Some(log.clone()),
            intake: Arc::default(),
            drain: Drain::new(),
            settings: Settings::default(),
        });
        let (commands, receiver) = mpsc::unbounded_channel();
        let mut listening = Listening::open(&NetNs::current().unwrap(), 1).unwrap();
        let listeners = listening.workers.pop().unwrap();
        commands.send(Command::Listen(listeners)).unwrap();
        tokio::task::spawn_local(run_worker(shared.clone(), receiver));
        Self {
            directory,
            secrets,
            live,
            metrics,
            shared,
            ports: listening.ports,
            origins,
            log,
            log_path,
            _commands: commands,
        }
    }

    /// Connects as an application that dialled service 1.
    pub(crate) async fn dial(&self) -> TcpStream {
        self.dial_as(|_| {}).await
    }

    pub(crate) async fn dial_as(&self, change: impl FnOnce(&mut Captured)) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let peer = socket.local_addr().unwrap();
        let mut captured = captured(peer);
        change(&mut captured);
        self.origins.0.lock().unwrap().insert(peer, captured);
        let to = SocketAddr::from(([127, 0, 0, 1], self.ports.v4));
        socket.connect(to).await.unwrap()
    }

    /// A connection as the accept loop hands it on.
    pub async fn accepted(&self) -> Accepted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (_, accepted) = tokio::join!(client, listener.accept());
        let (stream, peer) = accepted.unwrap();
        Accepted {
            captured: captured(peer),
            stream,
            netns: NetNs::current().unwrap(),
            started: tokio::time::Instant::now(),
            started_at: SystemTime::now(),
            admitted: Admission::new(1).admit().unwrap(),
        }
    }

    /// The records written so far, when there are `count` of them.
    pub(crate) async fn records(&self, count: usize) -> Vec<serde_json::Value> {
        let all = async {
            loop {
                tokio::time::sleep(Duration::from_millis(2)).await;
                assert!(self.log.flush(Duration::from_secs(5)));
                let text = std::fs::read_to_string(&self.log_path).unwrap();
                if text.lines().count() >= count {
                    return text;
                }
            }
        };
        let text = tokio::time::timeout(Duration::from_secs(5), all)
            .await
            .expect("records in time");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The only record.
    pub(crate) async fn record(&self) -> serde_json::Value {
        let mut records = self.records(1).await;
        assert_eq!(records.len(), 1, "{records:?}");
        records.remove(0)
    }
}

/// A connection of `curl` to service 1.
fn captured(peer: SocketAddr) -> Captured {
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"curl");
    Captured {
        peer,
        original: "240.240.0.1:80".parse().unwrap(),
        service: ServiceId(1),
        name_decides: false,
        caller: Caller {
            cgroup: 11,
            netns: 12,
            pid: 13,
            uid: 14,
            comm: Comm(comm),
        },
    }
}

/// Runs a test on one thread, as a worker does.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        tokio::time::timeout(Duration::from_mins(1), test)
            .await
            .expect("the test ends in time");
    };
    tokio::task::LocalSet::new().block_on(&runtime, limited);
}

/// An address where TCP connects are never answered: the queue of a listener
/// that accepts nothing is full.
pub(crate) async fn black_hole() -> (SocketAddr, impl Sized) {
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM.nonblocking(),
        None,
    )
    .unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) =
        tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
    {
        held.push(stream.unwrap());
        assert!(held.len() < 10);
    }
    (address, (socket, held))
}
