//! Active health checks against servers on loopback: what counts as healthy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

mod support;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use egress_agent::capture::sockets::{NetNs, Sockets};
use egress_agent::connect::EndpointProber;
use egress_agent::endpoint::resolved::{Destination, ResolvedEndpoint};
use egress_agent::endpoint::{EndpointSet, Options, ProbeFailure, ProbeTarget, Prober};
use egress_agent::policy::model::{
    EndpointAddress, EndpointSpec, HealthCheck, HostPattern, Labels, Locality, Probe, Protocol,
    Resolution, TrafficPolicy,
};
use egress_agent::policy::snapshot::{Cluster, ClusterKey, ClusterTarget, ServiceId, ServiceKey};
use egress_agent::secret::{SecretSettings, Secrets};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Authority, accept_tls, policy, run, server_config, simple};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};

const HOST: &str = "api.example.com";

fn http(path: &str, expected: &[(u16, u16)]) -> Probe {
    Probe::Http {
        path: path.into(),
        expected: expected.to_vec(),
    }
}

/// The result of one check of `destination`.
async fn check(
    probe: Probe,
    destination: Destination,
    protocol: Protocol,
    change: impl FnOnce(&mut TrafficPolicy),
) -> Result<(), ProbeFailure> {
    let mut policy = policy(None);
    policy.health_check = Some(HealthCheck {
        probe,
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(2),
        unhealthy_threshold: 3,
        healthy_threshold: 2,
    });
    change(&mut policy);
    let key = ClusterKey {
        service: ServiceKey {
            namespace: "default".into(),
            host: HostPattern::Exact(HOST.into()),
            port: 80,
        },
        subset: Box::default(),
        rule: Box::default(),
    };
    let cluster = Arc::new(Cluster {
        index: 0,
        target: Arc::new(ClusterTarget {
            service: ServiceId(1),
            host: key.service.host.clone(),
            port: 80,
            target_port: 80,
            protocol,
            resolution: Resolution::Dns,
            https_port: false,
        }),
        key,
        policy: Arc::new(policy),
        endpoints: [EndpointSpec {
            address: EndpointAddress::Name(HOST.into()),
            port: 80,
            weight: 1,
            locality: Locality::default(),
            labels: Labels::new(),
        }]
        .into(),
    });
    let set = EndpointSet::new(cluster, &Options::default());
    set.update(vec![ResolvedEndpoint {
        destination,
        name: None,
        weight: 1,
        locality: Locality::default(),
        labels: Labels::new(),
    }]);
    let secrets = Secrets::new(SecretSettings::default());
    let prober = EndpointProber::new(Sockets::unmarked(), NetNs::current().unwrap(), secrets);
    let endpoint = set.endpoints().remove(0);
    let cluster = set.cluster();
    let checked = prober.probe(ProbeTarget { cluster, endpoint });
    tokio::time::timeout(Duration::from_secs(5), checked)
        .await
        .expect("the check ends")
}

/// An address where nobody listens.
fn nobody() -> Destination {
    Destination::Tcp("127.9.9.9:1".parse().unwrap())
}

async fn answer(request: Request<Incoming>) -> Result<Response<String>, io::Error> {
    let head = request.headers();
    let host = request.uri().host().map(ToOwned::to_owned);
    let host = host.or_else(|| Some(head.get("host")?.to_str().ok()?.to_owned()));
    assert_eq!(host.as_deref(), Some(HOST));
    assert_eq!(head["user-agent"], "egress-health-check");
    let status = match request.uri().path() {
        "/healthz" => 200,
        "/gone" => 404,
        _ => 503,
    };
    Ok(Response::builder()
        .status(status)
        .body("x".repeat(100_000))
        .unwrap())
}

async fn web_server(http2: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let io = TokioIo::new(stream);
            tokio::task::spawn_local(async move {
                // The check goes away once it has the head.
                if http2 {
                    let server = http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(io, service_fn(answer)).await;
                } else {
                    let server = http1::Builder::new();
                    let _ = server.serve_connection(io, service_fn(answer)).await;
                }
            });
        }
    });
    address
}

#[test]
fn a_tcp_check_connects() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = Destination::Tcp(listener.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _unix = UnixListener::bind(&path).unwrap();
        let unix = Destination::Unix(path.to_str().unwrap().into());
        let tcp = |destination| check(Probe::Tcp, destination, Protocol::Tcp, |_| {});
        assert_eq!(tcp(open).await, Ok(()));
        assert_eq!(tcp(unix).await, Ok(()));
        let refused = ProbeFailure::Connect(io::ErrorKind::ConnectionRefused);
        assert_eq!(tcp(nobody()).await, Err(refused));
    });
}

#[test]
fn a_tls_check_verifies_as_connections_do() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (right, other) = (Authority::new("right"), Authority::new("other"));
        let tls = simple(&right.write(directory.path()));
        for (leaf, expected) in [
            (right.issue(HOST), Ok(())),
            (right.issue("else.example.com"), Err(ProbeFailure::Tls)),
            (other.issue(HOST), Err(ProbeFailure::Tls)),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = Destination::Tcp(listener.local_addr().unwrap());
            let config = server_config(&leaf, None);
            let server = tokio::task::spawn_local(async move {
                let _ = accept_tls(&listener, &config).await;
            });
            let set_tls = |policy: &mut TrafficPolicy| policy.tls = Some(tls.clone());
            let checked = check(Probe::Tls, address, Protocol::Http, set_tls).await;
            assert_eq!(checked, expected);
            server.await.unwrap();
        }
        // Our own side: no material, so the endpoint is not blamed.
        let missing = simple(&directory.path().join("missing.pem"));
        let checked = check(Probe::Tls, nobody(), Protocol::Http, |policy| {
            policy.tls = Some(missing);
        });
        assert_eq!(checked.await, Err(ProbeFailure::NotTried));
    });
}

#[test]
fn an_http_check_asks_for_the_path_and_looks_at_the_status() {
    run(async {
        for (http2, protocol) in [(false, Protocol::Http), (true, Protocol::Http2)] {
            let address = web_server(http2).await;
            let ask = |probe| check(probe, Destination::Tcp(address), protocol, |_| {});
            assert_eq!(ask(http("/healthz?a=b", &[])).await, Ok(()));
            let status = |status| Err(ProbeFailure::Status(status));
            assert_eq!(ask(http("/gone", &[])).await, status(404));
            assert_eq!(ask(http("/gone", &[(200, 299), (404, 404)])).await, Ok(()));
            assert_eq!(ask(http("/", &[(200, 299)])).await, status(503));
        }
    });
}

#[test]
fn an_answer_that_is_not_http_fails_the_check() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Destination::Tcp(listener.local_addr().unwrap());
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(b"220 mail.example.com ready\r\n")
                .await
                .unwrap();
        });
        let checked = check(http("/", &[]), address, Protocol::Http, |_| {});
        assert_eq!(checked.await, Err(ProbeFailure::Protocol));
    });
}
