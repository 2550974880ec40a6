//! What is measured: one function for each, which prepares and returns the
//! step. A step does the same work each time.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use divan::black_box;
use egress_agent::accept::{Accepted, Admission};
use egress_agent::account::{Account, Metrics};
use egress_agent::capture::keys::{AddressBook, Changed, Planner, Scopes};
use egress_agent::capture::sockets::NetNs;
use egress_agent::capture::{Caller, Captured, Comm};
use egress_agent::endpoint::resolved::{Destination, ResolvedEndpoint};
use egress_agent::endpoint::{EndpointSet, Options as SetOptions, Outcome, PickContext};
use egress_agent::identify::{Spoken, Workload};
use egress_agent::policy::Options;
use egress_agent::policy::compile::{Compiler, Ids, compile};
use egress_agent::policy::document::{Document, DocumentId};
use egress_agent::policy::load::load_text;
use egress_agent::policy::model::{Labels, Locality};
use egress_agent::policy::snapshot::{Client, Service, Snapshot};
use egress_agent::route::RequestFacts;
use egress_agent::route::http::decide;
use http::{HeaderMap, HeaderValue, Method};

/// One step of a body.
pub(crate) type Step = Box<dyn FnMut()>;

/// Its name, how often its step is repeated where instructions are counted, and
/// how it is made.
pub(crate) type Body = (&'static str, u32, fn() -> Step);

/// Every body.
pub(crate) const BODIES: [Body; 13] = [
    ("match-first-of-100", 1000, match_first),
    ("match-last-of-100", 100, match_last),
    ("match-none-of-100", 100, match_none),
    ("pick-least-request", 1000, pick_least_request),
    ("pick-round-robin-weighted", 1000, pick_round_robin),
    ("pick-hashed", 1000, pick_hashed),
    ("read-100-services", 1, read),
    ("compile-1000-services", 1, compile_all),
    ("compile-one-of-1000", 10, compile_one),
    ("plan-1000-services", 1, plan_all),
    ("plan-one-of-1000", 10, plan_one),
    ("access-log-line", 1000, access_log_line),
    ("dns-answer", 1000, crate::dns::answer),
];

fn documents(text: &str) -> Vec<Arc<Document>> {
    let loaded = load_text("bench.yaml", text, &Options::default());
    assert!(loaded.is_valid(), "{:?}", loaded.diagnostics);
    loaded.documents.list
}

/// A service of the kind that most are, with its rule.
fn service_text(out: &mut String, n: usize, limit: u32) {
    let _ = write!(
        out,
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: service-{n}, namespace: production}}
spec:
  hosts: [api-{n}.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
  - {{number: 443, name: https, protocol: HTTPS}}
  - {{number: 80, name: http, protocol: HTTP, targetPort: 443}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: rule-{n}, namespace: production}}
spec:
  host: api-{n}.example.com
  trafficPolicy:
    connectionPool: {{tcp: {{maxConnections: {limit}, connectTimeout: 5s}}}}
    outlierDetection: {{consecutive5xxErrors: 5, interval: 30s}}
    portLevelSettings:
    - {{port: {{number: 80}}, tls: {{mode: SIMPLE, sni: api-{n}.example.com}}}}
"
    );
}

pub(crate) fn services_text(count: usize) -> String {
    let mut out = String::new();
    (0..count).for_each(|n| service_text(&mut out, n, 100));
    out
}

pub(crate) fn snapshot(text: &str) -> Arc<Snapshot> {
    let documents = egress_agent::policy::document::Documents {
        list: documents(text),
    };
    Arc::new(compile(&mut Ids::default(), &documents, &Options::default()).0)
}

fn client() -> Client {
    Client {
        namespace: "production".into(),
        labels: Arc::new(Labels::from([("app".into(), "shop".into())])),
    }
}

/// A hundred routes that match by path, header, method and query in turn.
fn routes_text() -> String {
    let mut out = String::from(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: production}
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{address: 192.0.2.1}]
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api, namespace: production}
spec:
  hosts: [api.example.com]
  http:
",
    );
    for n in 0..100 {
        let condition = match n % 4 {
            0 => format!("uri: {{prefix: /v1/part-{n}/}}"),
            1 => format!("uri: {{exact: /v1/part-{n}}}, method: {{exact: POST}}"),
            2 => format!("headers: {{x-part: {{exact: part-{n}}}}}"),
            _ => format!("uri: {{prefix: /v1/}}, queryParams: {{part: {{exact: \"{n}\"}}}}"),
        };
        let _ = writeln!(
            out,
            "  - match: [{{{condition}}}]\n    route: [{{destination: {{host: api.example.com}}}}]"
        );
    }
    out
}

fn matching(path: &'static str, query: Option<&'static str>, matches: bool) -> Step {
    let snapshot = snapshot(&routes_text());
    let client = client();
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "api.example.com"),
        ("user-agent", "curl/7.88.1"),
        ("accept", "*/*"),
        ("x-part", "none of them"),
        ("x-request-id", "3f1c9f60-5f0a-4a9e-9a43-5d2d2c1e1f77"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Box::new(move || {
        let view = &snapshot.services[0].views[0];
        let facts = RequestFacts {
            method: &Method::GET,
            path,
            query,
            scheme: "http",
            authority: "api.example.com",
            headers: &headers,
            port: 80,
            client: &client,
        };
        let routed = decide(view, black_box(&facts));
        assert_eq!(routed.is_ok(), matches);
    })
}

fn match_first() -> Step {
    matching("/v1/part-0/items", None, true)
}

fn match_last() -> Step {
    matching("/v1/items", Some("colour=red&part=99"), true)
}

fn match_none() -> Step {
    matching("/v2/items", Some("colour=red"), false)
}

/// Pick, report, give back, among a hundred endpoints.
fn picking(balancer: &str, weighted: bool, hashes: bool) -> Step {
    let mut text = String::new();
    service_text(&mut text, 0, 100);
    let text = text.replace(
        "    outlierDetection",
        &format!("    loadBalancer: {balancer}\n    outlierDetection"),
    );
    let snapshot = snapshot(&text);
    // The rule's settings for port 80 stand in the place of all others.
    let services = &mut snapshot.services.iter();
    let service = services.find(|service| service.key.port == 443).unwrap();
    let cluster = Arc::clone(&service.views[0].cluster);
    let set = EndpointSet::new(cluster, &SetOptions::default());
    let endpoints = (0..100_u32).map(|n| ResolvedEndpoint {
        destination: Destination::Tcp(SocketAddr::from((
            Ipv4Addr::from_bits(0x0a00_0000 + n),
            443,
        ))),
        name: None,
        weight: if weighted { 1 + n % 7 } else { 1 },
        locality: Locality::default(),
        labels: Labels::default(),
    });
    set.update(endpoints.collect());
    let client = client();
    let mut hash = 0_u64;
    Box::new(move || {
        hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let picked = set.pick(black_box(&PickContext {
            client: &client,
            original: SocketAddr::from((Ipv4Addr::LOCALHOST, 443)),
            host: "api-0.example.com",
            hash: hashes.then_some(hash),
            tried: &[],
            remote_localities: false,
        }));
        if let Ok(picked) = &picked {
            picked.report(Outcome::Status(200));
        }
        assert!(picked.is_ok());
    })
}

fn pick_least_request() -> Step {
    picking("{simple: LEAST_REQUEST}", false, false)
}

fn pick_round_robin() -> Step {
    picking("{simple: ROUND_ROBIN}", true, false)
}

fn pick_hashed() -> Step {
    picking(
        "{consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 1024}}}",
        false,
        true,
    )
}

fn read() -> Step {
    let text = services_text(100);
    Box::new(move || {
        black_box(documents(black_box(&text)));
    })
}

fn compile_all() -> Step {
    let documents = egress_agent::policy::document::Documents {
        list: documents(&services_text(1000)),
    };
    let options = Options::default();
    Box::new(move || {
        black_box(compile(&mut Ids::default(), &documents, &options));
    })
}

type Change = (DocumentId, Option<Arc<Document>>);

/// A thousand services, and the documents of one of them, in two versions.
fn changing() -> (Compiler, Arc<Snapshot>, [Vec<Change>; 2]) {
    let changes = |documents: Vec<Arc<Document>>| -> Vec<Change> {
        documents
            .into_iter()
            .map(|document| (document.id.clone(), Some(document)))
            .collect()
    };
    let version = |limit| {
        let mut text = String::new();
        service_text(&mut text, 500, limit);
        changes(documents(&text))
    };
    let mut compiler = Compiler::default();
    let all = changes(documents(&services_text(1000)));
    let snapshot = compiler.update(all, &Options::default(), true);
    (compiler, snapshot, [version(7), version(8)])
}

fn compile_one() -> Step {
    let (mut compiler, _, versions) = changing();
    let options = Options::default();
    let mut turn = 0;
    Box::new(move || {
        turn = 1 - turn;
        black_box(compiler.update(versions[turn].clone(), &options, false));
    })
}

/// Each host has two virtual and two real addresses.
struct Book;

impl AddressBook for Book {
    fn virtual_addresses(&self, service: &Service) -> Vec<(Ipv4Addr, Ipv6Addr)> {
        let id = service.id.0;
        vec![(
            Ipv4Addr::from_bits(0xf0f0_0000 + id),
            Ipv6Addr::from_bits(0x2001_0002 << 96 | u128::from(id)),
        )]
    }

    fn resolved(&self, service: &Service) -> Arc<[IpAddr]> {
        let id = service.id.0;
        [0, 0x8000]
            .map(|part| Ipv4Addr::from_bits(0xcb00_0000 + part + id).into())
            .into()
    }
}

fn plan_all() -> Step {
    let (_, snapshot, _) = changing();
    Box::new(move || {
        let mut planner = Planner::default();
        let mut scopes = Scopes::default();
        black_box(planner.update(&snapshot, &mut scopes, &Book, Changed::Policy));
    })
}

fn plan_one() -> Step {
    let (mut compiler, first, versions) = changing();
    let options = Options::default();
    let [one, other] = versions.map(|version| compiler.update(version, &options, false));
    let (mut planner, mut scopes) = (Planner::default(), Scopes::default());
    planner.update(&first, &mut scopes, &Book, Changed::Policy);
    let mut turn = false;
    Box::new(move || {
        turn = !turn;
        let next = if turn { &one } else { &other };
        black_box(planner.update(next, &mut scopes, &Book, Changed::Policy));
    })
}

/// The JSON line of a finished connection.
fn access_log_line() -> Step {
    let snapshot = snapshot(&services_text(1));
    let service = Arc::clone(&snapshot.services[0]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_guard, accepted) = (runtime.enter(), runtime.block_on(accepted(&service)));
    let account = Account::new(Metrics::new(), None);
    let workload = Workload {
        client: client(),
        name: "shop-5d4f8c7b9-x2x7q".into(),
        instance: Some("/kubepods.slice/kubepods-burstable.slice".into()),
    };
    let mut record = account.begin(&accepted, workload);
    record.identified(&service, &"api-0.example.com".into(), &Spoken::Http);
    record.routed(&service.views[0].cluster);
    record.trying(&Destination::Tcp(SocketAddr::from((
        [203, 0, 113, 10],
        443,
    ))));
    record.carries_http();
    Box::new(move || {
        let line = black_box(&record).json();
        assert!(line.len() > 200);
    })
}

async fn accepted(service: &Service) -> Accepted {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"curl");
    Accepted {
        captured: Captured {
            peer: SocketAddr::from(([10, 244, 1, 7], 43210)),
            original: SocketAddr::from(([240, 240, 1, 2], 80)),
            service: service.id,
            name_decides: false,
            caller: Caller {
                cgroup: 21,
                netns: 22,
                pid: 23,
                uid: 24,
                comm: Comm(comm),
            },
        },
        stream: stream.await.unwrap(),
        netns: NetNs::current().unwrap(),
        started: tokio::time::Instant::now(),
        started_at: SystemTime::UNIX_EPOCH,
        admitted: Admission::new(9).admit().unwrap(),
    }
}
