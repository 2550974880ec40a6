//! Carries out active health checks: the same dial as for connections, so that
//! a check meets what a connection would meet (TLS settings, PROXY header,
//! tunnel), from the agent's own network namespace.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri, Version};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, spawn_local};

use super::error::ConnectError;
use super::pool::LocalExec;
use super::starttls;
use super::stream::Stream;
use super::{Alpn, DialContext, dial};
use crate::capture::sockets::{NetNs, Sockets};
use crate::endpoint::resolved::Destination;
use crate::endpoint::{Outcome, ProbeFailure, ProbeFuture, ProbeTarget, Prober};
use crate::policy::model::{ClientTls, Probe, Protocol, TrafficPolicy, UpstreamHttp};
use crate::policy::snapshot::Cluster;
use crate::secret::Secrets;

/// What checks call themselves.
const AGENT: HeaderValue = HeaderValue::from_static("egress-health-check");
/// Largest response head of a check.
const HEAD_LIMIT: usize = 60 * 1024;

/// Checks by TCP connection, TLS handshake or HTTP request. Its futures must be
/// made in a `LocalSet`.
#[derive(Clone, Debug)]
pub struct EndpointProber {
    sockets: Sockets,
    netns: NetNs,
    secrets: Arc<Secrets>,
}

impl EndpointProber {
    /// Probes with these sockets and TLS material, from this namespace.
    pub const fn new(sockets: Sockets, netns: NetNs, secrets: Arc<Secrets>) -> Self {
        Self {
            sockets,
            netns,
            secrets,
        }
    }
}

/// Ends a task when dropped.
struct Ends(AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Prober for EndpointProber {
    fn probe(&self, target: ProbeTarget) -> ProbeFuture {
        let this = self.clone();
        let (sender, result) = oneshot::channel();
        let task = spawn_local(async move {
            // Nobody waits any more when the time is over.
            let _ = sender.send(this.check(&target).await);
        });
        let ends = Ends(task.abort_handle());
        Box::pin(async move {
            let _ends = ends;
            // A check that panicked proves nothing good.
            result.await.unwrap_or(Err(ProbeFailure::Protocol))
        })
    }
}

impl EndpointProber {
    async fn check(&self, target: &ProbeTarget) -> Result<(), ProbeFailure> {
        let cluster = &target.cluster;
        let Some(check) = &cluster.policy.health_check else {
            return Err(ProbeFailure::NotTried);
        };
        match &check.probe {
            Probe::Tcp => self.tcp(&target.endpoint.destination).await,
            Probe::Tls => {
                // Where no TLS is originated, as the applications do: by the
                // system's roots.
                let tls = cluster
                    .tls_for_cleartext_http()
                    .unwrap_or_else(ClientTls::simple);
                let mut connected = self.dial(target, Some(&tls), Alpn::None).await?;
                let started = starttls::start_alone(&mut connected).await;
                started.map_err(|error| failure(&error))
            }
            Probe::Http { path, expected } => {
                let status = self.http(target, path).await?.as_u16();
                let counts = match expected.as_slice() {
                    [] => status == 200,
                    ranges => ranges
                        .iter()
                        .any(|(low, high)| (*low..=*high).contains(&status)),
                };
                if counts {
                    Ok(())
                } else {
                    Err(ProbeFailure::Status(status))
                }
            }
        }
    }

    /// A bare connection: no header goes out on it.
    async fn tcp(&self, destination: &Destination) -> Result<(), ProbeFailure> {
        let connected = match destination {
            Destination::Tcp(address) => match self.sockets.tcp(&self.netns, address) {
                Ok(socket) => socket.connect(*address).await.map(drop),
                Err(error) => Err(error),
            },
            // Tokio takes an abstract name with a leading zero byte.
            Destination::Unix(path) => match path.strip_prefix('@') {
                Some(name) => UnixStream::connect(format!("\0{name}")).await.map(drop),
                None => UnixStream::connect(&**path).await.map(drop),
            },
        };
        connected.map_err(|error| failure(&ConnectError::from_io(destination, error)))
    }

    async fn dial(
        &self,
        target: &ProbeTarget,
        tls: Option<&ClientTls>,
        alpn: Alpn,
    ) -> Result<super::Connected, ProbeFailure> {
        let cluster = &target.cluster;
        let context = DialContext {
            sockets: &self.sockets,
            netns: &self.netns,
            secrets: &self.secrets,
            policy: &cluster.policy,
            tls,
            host: &host(target),
            namespace: &cluster.key.service.namespace,
            alpn,
            source: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        };
        let connected = dial(&context, &target.endpoint.destination).await;
        connected.map_err(|error| failure(&error))
    }

    /// The status of the answer to a GET.
    async fn http(&self, target: &ProbeTarget, path: &str) -> Result<StatusCode, ProbeFailure> {
        let tls = target.cluster.tls_for_cleartext_http();
        let http2 = speaks_http2(&target.cluster);
        let alpn = if http2 {
            Alpn::Http2OrHttp1
        } else {
            Alpn::None
        };
        let connected = self.dial(target, tls.as_ref(), alpn).await?;
        // Without ALPN (cleartext) HTTP/2 is spoken by prior knowledge.
        let http2 = http2 && connected.tls.as_ref().is_none_or(|facts| facts.http2);
        let mut host = host(target);
        if host.contains(':') {
            host = format!("[{host}]").into();
        }
        let answer = if http2 {
            let scheme = if tls.is_some() { "https" } else { "http" };
            get_http2(connected.stream, scheme, &host, path).await
        } else {
            get_http1(connected.stream, &host, path).await
        };
        answer.map_err(|error| {
            tracing::debug!(endpoint = %target.endpoint.destination, %error, "health check");
            ProbeFailure::Protocol
        })
    }
}

async fn get_http1(stream: Stream, host: &str, path: &str) -> Result<StatusCode, Broken> {
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_LIMIT);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let drive = spawn_local(connection);
    let _ends = Ends(drive.abort_handle());
    Ok(sender.send_request(request).await?.status())
}

async fn get_http2(
    stream: Stream,
    scheme: &str,
    host: &str,
    path: &str,
) -> Result<StatusCode, Broken> {
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(host)
        .path_and_query(path)
        .build()?;
    let request = Request::get(uri)
        .version(Version::HTTP_2)
        .header(USER_AGENT, AGENT)
        .body(Empty::<Bytes>::new())?;
    let mut builder = http2::Builder::new(LocalExec);
    builder.timer(TokioTimer::new());
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let drive = spawn_local(connection);
    let _ends = Ends(drive.abort_handle());
    Ok(sender.send_request(request).await?.status())
}

/// No answer, or none that is HTTP.
#[derive(Debug)]
enum Broken {
    /// The path or host of the policy makes no request.
    Request(http::Error),
    /// The service's side.
    Answer(hyper::Error),
}

impl From<http::Error> for Broken {
    fn from(error: http::Error) -> Self {
        Self::Request(error)
    }
}

impl From<hyper::Error> for Broken {
    fn from(error: hyper::Error) -> Self {
        Self::Answer(error)
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Request(error) => error.fmt(f),
            Self::Answer(error) => error.fmt(f),
        }
    }
}

/// What a failed dial says about the endpoint.
fn failure(error: &ConnectError) -> ProbeFailure {
    match error.outcome() {
        Outcome::TlsFailed => ProbeFailure::Tls,
        Outcome::ConnectTimeout => ProbeFailure::Timeout,
        Outcome::ConnectRefused => ProbeFailure::Connect(io::ErrorKind::ConnectionRefused),
        // Our own side: no descriptor, or no TLS material.
        Outcome::Cancelled => {
            tracing::warn!("a health check was not made: {error}");
            ProbeFailure::NotTried
        }
        _ => ProbeFailure::Connect(io::ErrorKind::ConnectionReset),
    }
}

/// The name that a connection would be for. A wildcard host has none of its
/// own: then the name that the endpoint was resolved from, else its address.
fn host(target: &ProbeTarget) -> Arc<str> {
    let endpoint = &target.endpoint;
    if let Some(host) = target.cluster.target.host.exact() {
        return Arc::clone(host);
    }
    if let Some(name) = &endpoint.name {
        return Arc::clone(name);
    }
    match &endpoint.destination {
        Destination::Tcp(address) => address.ip().to_string().into(),
        Destination::Unix(_) => Arc::from("localhost"),
    }
}

fn speaks_http2(cluster: &Cluster) -> bool {
    let TrafficPolicy {
        connection_pool, ..
    } = &*cluster.policy;
    match connection_pool.http_version {
        UpstreamHttp::Upgrade => true,
        UpstreamHttp::SameAsClient | UpstreamHttp::ByPort => {
            matches!(cluster.target.protocol, Protocol::Http2 | Protocol::Grpc)
        }
    }
}
