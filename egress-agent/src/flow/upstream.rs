//! From a route to an open connection, and the relay over it.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::context::Context;
use super::error::FlowError;
use super::eyeballs;
use crate::account::ConnectionRecord;
use crate::capture::Captured;
use crate::capture::sockets::NetNs;
use crate::connect::{self, Alpn, Connected, DialContext, dial, starttls};
use crate::endpoint::resolved::Destination;
use crate::endpoint::{
    ConnectionGuard, Endpoint, EndpointId, EndpointSet, Live, Outcome, Permit, PickContext,
    PickError, Picked, hash_address,
};
use crate::identify::{Identified, Spoken};
use crate::policy::model::{Algorithm, HashKey, Resolution, TrafficPolicy};
use crate::policy::snapshot::Cluster;
use crate::relay::{self, End, Limits, Traffic};
use crate::route::opaque::{self, ConnectionFacts};

/// An open connection to a service, and its places under the limits.
#[derive(Debug)]
pub(super) struct Upstream {
    connected: Connected,
    idle: Option<Duration>,
    longest: Option<Duration>,
    /// `None` for connections that no policy is about.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    picked: Picked,
    /// Connections to addresses that vanished from DNS drain.
    drains: bool,
    _permit: Permit,
    _open: ConnectionGuard,
}

/// The cluster that the policy sends a connection to.
pub(super) fn route(identified: &Identified, spoken: &Spoken) -> Result<Arc<Cluster>, FlowError> {
    let view = identified
        .service
        .view(&identified.client)
        .ok_or(FlowError::NoView)?;
    let (tls, sni) = match spoken {
        Spoken::Tls { sni } => (true, sni.as_deref()),
        _ => (false, None),
    };
    let cluster = opaque::decide(
        view,
        &ConnectionFacts {
            sni,
            tls,
            address: identified.captured.original.ip(),
            port: identified.captured.original.port(),
            client: &identified.client,
        },
    )?;
    Ok(cluster.clone())
}

/// Picks and dials.
///
/// Where connecting fails, the next endpoint is tried, up to
/// `Settings::connect_attempts` of them, and only while less than one
/// `connectTimeout` has passed in all: a name with one dead address among
/// several works, and a client of a dead service still learns it in time.
/// (Istio tries a TCP connection once.)
pub(super) async fn connect(
    context: &Context,
    live: &Live,
    identified: &Identified,
    cluster: &Arc<Cluster>,
    spoken: &Spoken,
    record: &mut ConnectionRecord,
) -> Result<Upstream, FlowError> {
    record.routed(cluster);
    let set = live.sets.get(cluster.index).ok_or(FlowError::NoView)?;
    let permit = set.connection_permit()?;
    let tls = connect::origination(cluster, spoken);
    if tls.is_none() && cluster.policy.tls.is_some() {
        record.note("the application speaks TLS itself: relayed untouched, not wrapped again");
        let metrics = context.account.metrics();
        metrics.client_spoke_tls(&identified.service.key.host.to_string());
    }
    let source = context.source(&identified.netns, &identified.captured);
    let hash = hash(&cluster.policy, source);
    let dial_context = DialContext {
        sockets: context.sockets(),
        netns: &identified.netns,
        secrets: context.secrets(),
        policy: &cluster.policy,
        tls,
        host: &identified.host,
        namespace: &identified.client.namespace,
        alpn: Alpn::None,
        source,
    };
    let limit = cluster.policy.connection_pool.connect_timeout;
    let started = Instant::now();
    let mut tried = Vec::new();
    loop {
        let picked = pick(set, identified, hash, &tried, limit)
            .await
            .map_err(|error| FlowError::Pick(error, set.explain(error, &identified.host)))?;
        record.trying(&picked.destination);
        tried.push(picked.endpoint.id);
        let company = |endpoint: &Endpoint, tried: &[EndpointId]| {
            set.pick_sibling(&pick_context(identified, hash, tried), endpoint)
        };
        let dialled = eyeballs::dial(&dial_context, picked, company, &mut tried, record);
        let error = match dialled.await {
            Ok((connected, picked)) => {
                let pool = &cluster.policy.connection_pool;
                return Ok(Upstream {
                    connected,
                    idle: pool.idle_timeout,
                    longest: pool.max_connection_duration,
                    held: Some(Held {
                        drains: cluster.target.resolution == Resolution::Dns,
                        _permit: permit,
                        _open: picked.endpoint.open_connection(),
                        picked,
                    }),
                });
            }
            Err(error) => error,
        };
        let attempts = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        let more = attempts < context.settings().connect_attempts
            && error.is_of_endpoint()
            && started.elapsed() < limit;
        if !more || !others_left(set, identified, hash, &tried) {
            return Err(error.into());
        }
    }
}

/// Whether a pick would give an endpoint that was not tried.
fn others_left(
    set: &Arc<EndpointSet>,
    identified: &Identified,
    hash: Option<u64>,
    tried: &[EndpointId],
) -> bool {
    set.pick(&pick_context(identified, hash, tried))
        .is_ok_and(|picked| {
            picked.report(Outcome::Cancelled);
            !tried.contains(&picked.endpoint.id)
        })
}

/// Hash of the `consistentHash` key: bytes that are not looked into have their
/// source address alone.
fn hash(policy: &TrafficPolicy, source: SocketAddr) -> Option<u64> {
    match &policy.load_balancer.algorithm {
        Algorithm::Hash {
            key: HashKey::SourceIp,
            ..
        } => Some(hash_address(source.ip())),
        _ => None,
    }
}

fn pick_context<'a>(
    identified: &'a Identified,
    hash: Option<u64>,
    tried: &'a [EndpointId],
) -> PickContext<'a> {
    PickContext {
        client: &identified.client,
        original: identified.captured.original,
        host: &identified.host,
        hash,
        tried,
        remote_localities: false,
    }
}

/// Picks; a name that is being resolved for the first time is waited for.
async fn pick(
    set: &Arc<EndpointSet>,
    identified: &Identified,
    hash: Option<u64>,
    tried: &[EndpointId],
    limit: Duration,
) -> Result<Picked, PickError> {
    let context = pick_context(identified, hash, tried);
    match set.pick(&context) {
        Err(PickError::Unresolved) => {
            timeout(limit, set.resolved(context.host))
                .await
                .map_err(|_| PickError::Unresolved)?;
            set.pick(&context)
        }
        picked => picked,
    }
}

/// Dials the address that the application dialled.
pub(super) async fn connect_untouched(
    context: &Context,
    captured: &Captured,
    netns: &NetNs,
    record: &mut ConnectionRecord,
) -> Result<Upstream, FlowError> {
    let destination = Destination::Tcp(captured.original);
    record.trying(&destination);
    let dial_context = DialContext {
        sockets: context.sockets(),
        netns,
        secrets: context.secrets(),
        policy: context.default_policy(),
        tls: None,
        host: "",
        namespace: &Arc::default(),
        alpn: Alpn::None,
        source: captured.peer,
    };
    Ok(Upstream {
        connected: dial(&dial_context, &destination).await?,
        idle: context.default_policy().connection_pool.idle_timeout,
        longest: None,
        held: None,
    })
}

impl Upstream {
    pub(super) const fn connected(&self) -> &Connected {
        &self.connected
    }

    /// Carries out what comes between the connection and its bytes: the start
    /// of the application's session, where TLS starts inside its protocol.
    pub(super) async fn open(&mut self, client: &mut TcpStream) -> Result<(), FlowError> {
        let Some(held) = &self.held else {
            return Ok(());
        };
        if self.connected.opening.is_none() {
            return Ok(());
        }
        let opened = starttls::open(&mut self.connected, client, &held.picked.destination).await;
        held.picked.report(match &opened {
            Ok(()) => Outcome::Connected,
            Err(error) => error.outcome(),
        });
        opened.map_err(FlowError::Connect)
    }

    /// Completes when the service says something, or ends.
    pub(super) async fn speaks(&mut self) {
        if let Some(opening) = &self.connected.opening {
            if !opening.speaks_first() {
                pending::<()>().await;
            }
            return;
        }
        // An error, like the end, shows again when the relay reads.
        let _ = self.connected.stream.speaks().await;
    }

    /// Relays until the end, or until the endpoint has vanished from DNS and
    /// its grace time is over.
    pub(super) async fn relay(
        &mut self,
        context: &Context,
        client: &mut TcpStream,
        traffic: &Traffic,
    ) -> End {
        let limits = Limits {
            idle: self.idle,
            deadline: self.longest.map(|longest| Instant::now() + longest),
        };
        let mutual = self.connected.tls.as_ref().is_some_and(|tls| tls.mutual);
        let stream = &mut self.connected.stream;
        let copy = relay::bytes(client, stream, limits, &context.buffers, traffic);
        let drained = async {
            match &self.held {
                Some(held) if held.drains => held.picked.endpoint.drained().await,
                _ => pending().await,
            }
        };
        let end = tokio::select! {
            end = copy => end,
            () = drained => End::Drained,
        };
        match end {
            End::Upstream(error) => match connect::explain_broken(&error, mutual) {
                Some(text) => End::Upstream(io::Error::new(error.kind(), text)),
                None => End::Upstream(error),
            },
            end => end,
        }
    }
}
