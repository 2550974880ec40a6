//! Connections: TLS, HTTP/1.1 and HTTP/2.

use std::net::TcpListener;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::answer::answer;
use super::state::Shared;

pub(super) fn acceptor(
    (certificate, key): (&str, &str),
) -> std::io::Result<tokio_rustls::TlsAcceptor> {
    let invalid = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| invalid(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

pub(super) async fn accept(
    listener: TcpListener,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    shared: Arc<Shared>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        if shared.state().manners.down {
            continue;
        }
        let shared = Arc::clone(&shared);
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut eras = shared.changed.subscribe();
            let serving = async {
                let serve = service_fn(|request| answer(Arc::clone(&shared), request));
                match acceptor {
                    None => {
                        let io = TokioIo::new(stream);
                        let server = hyper::server::conn::http1::Builder::new();
                        let _ = server.serve_connection(io, serve).await;
                    }
                    Some(acceptor) => {
                        let Ok(stream) = acceptor.accept(stream).await else {
                            return;
                        };
                        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                        let io = TokioIo::new(stream);
                        if is_h2 {
                            let server =
                                hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            let _ = server.serve_connection(io, serve).await;
                        } else {
                            let server = hyper::server::conn::http1::Builder::new();
                            let _ = server.serve_connection(io, serve).await;
                        }
                    }
                }
            };
            // A server that goes down takes its connections with it.
            let went_down = async {
                loop {
                    if shared.state().manners.down {
                        return;
                    }
                    if eras.changed().await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = serving => {}
                () = went_down => {}
            }
        });
    }
}
