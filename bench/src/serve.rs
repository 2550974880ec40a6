//! The service behind every proxy: HTTP/1.1, HTTP/2, echo and bulk, plain or
//! over TLS. One process, one thread, as cheap as it can be.

mod http1;
mod http2;
mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What the server listens for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Serve {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Listener {
    pub(crate) port: u16,
    pub(crate) speaks: Speaks,
    pub(crate) tls: Tls,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Speaks {
    Http1,
    Http2,
    Echo,
    Bulk,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Tls {
    Off,
    /// Sessions may be resumed.
    Resumed,
    /// Every handshake is a full one.
    Full,
}

/// Serves until the process is ended; prints `ready`.
pub(crate) fn run(json: &str) -> Result<()> {
    let serve: Serve = serde_json::from_str(json).context("the server's description")?;
    crate::limits::raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        for listener in &serve.listeners {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from(([0, 0, 0, 0], listener.port)))?;
            let socket = socket.listen(8192)?;
            let tls = acceptor(&serve, listener.tls)?;
            tokio::task::spawn_local(accept(socket, listener.speaks, tls));
        }
        println!("ready");
        std::future::pending().await
    })
}

async fn accept(listener: TcpListener, speaks: Speaks, tls: Option<TlsAcceptor>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let tls = tls.clone();
        tokio::task::spawn_local(async move {
            // Whoever broke the connection tells its own side.
            let _ = connection(stream, speaks, tls).await;
        });
    }
}

async fn connection(stream: TcpStream, speaks: Speaks, tls: Option<TlsAcceptor>) -> Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => speak(stream, speaks).await,
        Some(tls) => speak(tls.accept(stream).await?, speaks).await,
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(stream: S, speaks: Speaks) -> Result<()> {
    match speaks {
        Speaks::Http1 => http1::serve(stream).await,
        Speaks::Http2 => http2::serve(stream).await,
        Speaks::Echo => tcp::echo(stream).await,
        Speaks::Bulk => tcp::bulk(stream).await,
    }
}

fn acceptor(serve: &Serve, tls: Tls) -> Result<Option<TlsAcceptor>> {
    if tls == Tls::Off {
        return Ok(None);
    }
    let certificates = CertificateDer::pem_file_iter(&serve.certificate)
        .context("certificate")?
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&serve.key).context("key")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    if tls == Tls::Full {
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    }
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
