//! Connections to the API server: marked so that the agent does not capture
//! itself, over HTTP/2 with pings where the server offers it, so that a dead
//! connection is noticed within a minute.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::{BoxError, Layer, Service, ServiceBuilder};

use super::KubernetesError;
use crate::capture::sockets::{NetNs, Sockets};

/// Time for one address to accept a connection, and for the handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// Pings on connections with nothing to say.
const PING: Duration = Duration::from_secs(20);

/// How the API server is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// A kubeconfig; `None`: the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// Where the agent's sockets come from.
    pub sockets: Sockets,
    /// Network namespace of the agent.
    pub netns: NetNs,
}

/// Makes clients, each with connections of its own: one HTTP/2 connection
/// carries 100 watches at most.
#[derive(Clone)]
pub struct Clients {
    config: Config,
    connector: Connector,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients")
            .field("server", &self.server())
            .finish_non_exhaustive()
    }
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, KubernetesError> {
    let access = |error: &dyn std::error::Error| KubernetesError::Access(error.to_string().into());
    let mut config = match kubeconfig {
        Some(path) => {
            let named = |error: &dyn std::error::Error| {
                KubernetesError::Access(format!("{}: {error}", path.display()).into())
            };
            let file = Kubeconfig::read_from(path).map_err(|error| named(&error))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| named(&error))?
        }
        None => Config::incluster().map_err(|error| access(&error))?,
    };
    if config.proxy_url.is_some() {
        // It may hold a password, so it is not told.
        tracing::warn!(
            "the API server is dialled itself; the proxy that the kubeconfig or the environment \
             names is not used"
        );
    }
    // Ours waits longer, and counts.
    config.default_retry = false;
    Ok(config)
}

impl Clients {
    /// Reads where the server is and who we are. Connects to nothing yet.
    ///
    /// # Errors
    /// When there is no usable kubeconfig or service account.
    pub async fn new(access: &Access) -> Result<Self, KubernetesError> {
        let config = config(access.kubeconfig.as_deref()).await?;
        let tls = config
            .rustls_client_config()
            .map_err(|error| KubernetesError::Access(error.to_string().into()))?;
        let name = match &config.tls_server_name {
            Some(name) => name.clone(),
            None => config.cluster_url.host().unwrap_or_default().to_owned(),
        };
        Ok(Self {
            connector: Connector::new(access, tls, &name),
            config,
        })
    }

    /// URL of the server.
    pub fn server(&self) -> String {
        self.config.cluster_url.to_string()
    }

    /// A client with connections of its own, which open when it is used.
    ///
    /// # Errors
    /// When the credentials of the kubeconfig cannot be read.
    pub fn client(&self) -> Result<kube::Client, KubernetesError> {
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_mins(1))
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PING)
            .build::<_, Body>(self.connector.clone());
        let service = ServiceBuilder::new()
            .option_layer(self.config.auth_layer()?)
            .layer(self.config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service(http);
        let service = self.config.base_uri_layer().layer(service);
        Ok(kube::Client::new(
            service,
            self.config.default_namespace.clone(),
        ))
    }
}

/// Dials for hyper.
#[derive(Clone)]
struct Connector {
    sockets: Sockets,
    netns: NetNs,
    tls: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl Connector {
    fn new(access: &Access, mut tls: rustls::ClientConfig, name: &str) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        Self {
            sockets: access.sockets.clone(),
            netns: access.netns.clone(),
            tls: TlsConnector::from(Arc::new(tls)),
            name: ServerName::try_from(bare.to_owned()).ok(),
        }
    }

    async fn connect(self, uri: Uri) -> io::Result<Stream> {
        let secure = uri.scheme_str() != Some("http");
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let mut last = io::Error::new(
            io::ErrorKind::NotFound,
            format!("{bare} resolves to no address"),
        );
        for address in tokio::net::lookup_host((bare, port)).await? {
            match self.dial(address).await {
                Ok(tcp) if !secure => return Ok(Stream::Plain(TokioIo::new(tcp))),
                Ok(tcp) => {
                    let name = self.name.clone().ok_or_else(|| {
                        let why = "the API server's name is none that TLS can check";
                        io::Error::new(io::ErrorKind::InvalidInput, why)
                    })?;
                    let tls = timeout(CONNECT, self.tls.connect(name, tcp)).await??;
                    return Ok(Stream::Tls(Box::new(TokioIo::new(tls))));
                }
                Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
            }
        }
        Err(last)
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.sockets.tcp(&self.netns, &address)?;
        let stream = timeout(CONNECT, socket.connect(address)).await??;
        stream.set_nodelay(true)?;
        // For servers that speak HTTP/1.1 only.
        let keepalive = TcpKeepalive::new().with_time(PING).with_interval(PING);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(stream)
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection to the server.
enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(tls) if tls.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(context),
        }
    }
}
