//! Opens the pool's connections with [`dial`].

use std::sync::Arc;

use super::{Dial, DialError, DialRequest, Dialled, Dialling, Security, Version};
use crate::capture::sockets::Sockets;
use crate::connect::{Alpn, ConnectError, DialContext, Stream, dial};
use crate::secret::Secrets;

/// Opens the pool's connections.
#[derive(Clone, Debug)]
pub struct Dialler {
    /// Makes sockets.
    pub sockets: Sockets,
    /// TLS material.
    pub secrets: Arc<Secrets>,
}

impl Dial<Stream> for Dialler {
    fn dial<'a>(&'a self, request: DialRequest<'a>) -> Dialling<'a, Stream> {
        Box::pin(async move {
            let nobody = Arc::default();
            let (namespace, host) = match &request.identity.tls {
                Some((namespace, host)) => (namespace, &**host),
                None => (&nobody, ""),
            };
            let context = DialContext {
                sockets: &self.sockets,
                netns: request.reach.netns,
                secrets: &self.secrets,
                policy: request.policy,
                tls: request.reach.tls,
                host,
                namespace,
                // As Istio: HTTP/1.1 is what a server without ALPN speaks.
                alpn: match request.identity.version {
                    Version::Http1 => Alpn::None,
                    Version::Http2 => Alpn::Http2OrHttp1,
                },
                source: request.reach.source,
            };
            let connected = dial(&context, &request.picked.destination).await?;
            Ok(Dialled {
                http2: connected.tls.as_ref().map(|tls| tls.http2),
                security: match &connected.tls {
                    None => Security::None,
                    Some(tls) if tls.mutual => Security::MutualTls,
                    Some(_) => Security::Tls,
                },
                replaced: connected
                    .tls
                    .as_ref()
                    .map(|tls| tls.replaced.clone())
                    .unwrap_or_default(),
                local: connected.local(),
                io: connected.stream,
            })
        })
    }
}

impl From<ConnectError> for DialError {
    fn from(error: ConnectError) -> Self {
        Self {
            outcome: error.outcome(),
            side: error.side(),
            elsewhere: error.is_of_endpoint(),
            message: error.to_string().into(),
        }
    }
}
