//! The TLS handshake towards a service.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::Poll;

use rustls::client::Resumption;
use rustls::{CipherSuite, ClientConfig, HandshakeKind, ProtocolVersion};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::DialContext;
use super::error::{ConnectError, TlsFailure};
use super::read_ahead::ReadAhead;
use crate::endpoint::resolved::Destination;
use crate::identify::Spoken;
use crate::policy::model::ClientTls;
use crate::policy::snapshot::Cluster;
use crate::secret::{CertificateSummary, Replaced, SecretError, TlsConfig, take_refused};

/// Protocols to offer (RFC 7301).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Alpn {
    /// No extension: the application's protocol has no name, or is unknown.
    #[default]
    None,
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
    /// `h2`, else `http/1.1`.
    Http2OrHttp1,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        let (h2, http1) = (b"h2".to_vec(), b"http/1.1".to_vec());
        match self {
            Self::None => Vec::new(),
            Self::Http1 => vec![http1],
            Self::Http2 => vec![h2],
            Self::Http2OrHttp1 => vec![h2, http1],
        }
    }
}

/// What a handshake came to.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// Version.
    pub version: Option<ProtocolVersion>,
    /// Cipher suite.
    pub cipher: Option<CipherSuite>,
    /// The name sent as SNI; `None` for an IP address.
    pub sni: Option<Arc<str>>,
    /// ALPN chose HTTP/2.
    pub http2: bool,
    /// A session was resumed.
    pub resumed: bool,
    /// A client certificate was at hand.
    pub mutual: bool,
    /// The material that it was made with is out of force.
    pub replaced: Replaced,
}

impl TlsFacts {
    /// `TLSv1.3` or `TLSv1.2`, as Envoy's `%UPSTREAM_TLS_VERSION%` has it.
    pub const fn version_name(&self) -> &'static str {
        match self.version {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        }
    }
}

/// A handshake ready to start.
#[derive(Debug)]
pub(super) struct Prepared {
    config: Arc<TlsConfig>,
    /// Instead of the configuration's own.
    client: Option<Arc<ClientConfig>>,
    name: ServerName<'static>,
    sni: Option<Arc<str>>,
}

impl Prepared {
    /// A full handshake, which no earlier session shortens and which leaves
    /// none behind.
    pub(super) fn anew(mut self) -> Self {
        let mut client = ClientConfig::clone(&self.config.client);
        client.resumption = Resumption::disabled();
        self.client = Some(Arc::new(client));
        self
    }

    /// The client certificate at hand.
    pub(super) fn certificate(&self) -> Option<&CertificateSummary> {
        self.config.certificate()
    }
}

/// Material and name, before anything is dialled.
pub(super) fn prepare(
    context: &DialContext<'_>,
    tls: &ClientTls,
) -> Result<Prepared, ConnectError> {
    let config = context.secrets.client_config(tls, context.namespace)?;
    let text = tls.sni.as_deref().unwrap_or(context.host);
    let name =
        ServerName::try_from(text.to_owned()).map_err(|_| SecretError::BadName(text.to_owned()))?;
    let sni = match &name {
        ServerName::DnsName(name) => Some(Arc::from(name.as_ref())),
        _ => None,
    };
    Ok(Prepared {
        config,
        client: None,
        name,
        sni,
    })
}

pub(super) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    prepared: Prepared,
    alpn: Alpn,
    stream: S,
    destination: &Destination,
) -> Result<(TlsStream<ReadAhead<S>>, TlsFacts), ConnectError> {
    let stream = ReadAhead::new(stream);
    let Prepared {
        config,
        client,
        name,
        sni,
    } = prepared;
    let connector = TlsConnector::from(client.unwrap_or_else(|| config.client.clone()));
    let connecting = match alpn {
        Alpn::None => connector.connect(name.clone(), stream),
        some => connector
            .with_alpn(some.protocols())
            .connect(name.clone(), stream),
    };
    let mut connecting = pin!(connecting);
    let mut refused = None;
    let done: io::Result<_> = poll_fn(|context| {
        // What another handshake on this thread left is not ours.
        take_refused();
        let polled = connecting.as_mut().poll(context);
        if let Some(chain) = take_refused() {
            refused = Some(chain);
        }
        match polled {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    let stream = done.map_err(|error| {
        let failure = TlsFailure::explain(&error, refused, &name.to_str(), config.mutual);
        ConnectError::Tls {
            to: destination.clone(),
            failure: Box::new(failure),
        }
    })?;
    let session = stream.get_ref().1;
    let facts = TlsFacts {
        version: session.protocol_version(),
        cipher: session.negotiated_cipher_suite().map(|s| s.suite()),
        sni,
        http2: session.alpn_protocol() == Some(b"h2"),
        resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        mutual: config.mutual,
        replaced: config.replaced.clone(),
    };
    Ok((stream, facts))
}

/// The TLS that a connection to a cluster starts, given what the application
/// speaks: never around TLS of its own, unless the TLS is that of a `tunnel`
/// to a proxy, inside of which the application's bytes pass untouched. An `HTTPS` port is HTTPS on the wire
/// whatever the application speaks, so without settings of its own it gets
/// `SIMPLE` with the system's roots.
pub fn origination<'a>(cluster: &'a Cluster, spoken: &Spoken) -> Option<&'a ClientTls> {
    static SYSTEM: LazyLock<ClientTls> = LazyLock::new(ClientTls::simple);
    if matches!(spoken, Spoken::Tls { .. }) && cluster.policy.tunnel.is_none() {
        return None;
    }
    match &cluster.policy.tls {
        Some(tls) => Some(tls),
        None if cluster.target.https_port => Some(&SYSTEM),
        None => None,
    }
}
