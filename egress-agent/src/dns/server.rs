//! The service loops over sockets that others made, for the clients of one
//! network namespace. They run on a worker's runtime; every future is `Send`
//! and holds its state in a [`Server`], so any runtime will do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use egress_common::{RESOLVER_NET, RESOLVER_SLOTS};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::DnsError;
use super::answer::{Context, Extended, Transport, Verdict, answer, failure, has_address, quick};
use super::forward::Forwarder;
use super::registry::Registry;

mod tcp;
mod udp;

pub use tcp::serve as serve_tcp;
pub use udp::{serve_v4 as serve_udp4, serve_v6 as serve_udp6};

/// Most queries of one server that wait for a resolver or for the kernel.
pub const QUERIES_LIMIT: usize = 4096;

/// Most captured DNS connections of one server.
pub const CONNECTIONS_LIMIT: usize = 1024;

/// What a slot stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The resolver that was asked.
    pub resolver: SocketAddr,
    /// The policy namespace of those who asked: callers of two namespaces never
    /// share a slot, even in one network namespace.
    pub namespace: Arc<str>,
}

/// What slots stand for; the typed face of the maps `RESOLVERS` and
/// `RESOLVERS6`. Asked for every datagram, so it must be quick.
pub trait ResolverTable: Send + Sync + 'static {
    /// The IPv4 resolver in a slot below [`RESOLVER_SLOTS`].
    fn v4(&self, slot: u32) -> Option<Asked>;
    /// The IPv6 resolver in a slot below
    /// [`DNS6_PORTS`](egress_common::DNS6_PORTS).
    fn v6(&self, slot: u32) -> Option<Asked>;
}

/// What happened to queries, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Answered here.
    pub answered: AtomicU64,
    /// Answered by the resolver that was asked.
    pub forwarded: AtomicU64,
    /// Left unanswered because the resolver was silent.
    pub unanswered: AtomicU64,
    /// Answered with SERVFAIL: resolver unreachable, kernel or limit.
    pub failed: AtomicU64,
    /// Dropped: no query, or not from our hook.
    pub dropped: AtomicU64,
}

impl Counters {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// All counters by the name that they have in metrics.
    pub fn read(&self) -> [(&'static str, u64); 5] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("answered", read(&self.answered)),
            ("forwarded", read(&self.forwarded)),
            ("unanswered", read(&self.unanswered)),
            ("failed", read(&self.failed)),
            ("dropped", read(&self.dropped)),
        ]
    }
}

/// What the loops of one worker in one network namespace share.
pub struct Server {
    registry: Arc<Registry>,
    forwarder: Forwarder,
    resolvers: Arc<dyn ResolverTable>,
    counters: Arc<Counters>,
    ipv6: bool,
    queries: Limit,
    connections: Limit,
}

/// A bound on how many of a thing there may be.
struct Limit {
    limit: usize,
    places: Arc<Semaphore>,
}

impl Limit {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            places: Arc::new(Semaphore::new(limit)),
        }
    }

    fn take(&self) -> Result<OwnedSemaphorePermit, DnsError> {
        let places = Arc::clone(&self.places);
        let overflow = |_| DnsError::Overflow { limit: self.limit };
        places.try_acquire_owned().map_err(overflow)
    }
}

impl Server {
    /// A server for the clients of the network namespace that `forwarder`
    /// sends from. `ipv6` says whether that namespace has IPv6 on loopback
    /// (there is a listener on `[::1]`).
    pub fn new(
        registry: Arc<Registry>,
        forwarder: Forwarder,
        resolvers: Arc<dyn ResolverTable>,
        counters: Arc<Counters>,
        ipv6: bool,
    ) -> Self {
        Self {
            registry,
            forwarder,
            resolvers,
            counters,
            ipv6,
            queries: Limit::new(QUERIES_LIMIT),
            connections: Limit::new(CONNECTIONS_LIMIT),
        }
    }

    /// Sets other limits than [`QUERIES_LIMIT`] and [`CONNECTIONS_LIMIT`].
    #[must_use]
    pub fn with_limits(mut self, queries: usize, connections: usize) -> Self {
        self.queries = Limit::new(queries);
        self.connections = Limit::new(connections);
        self
    }

    const fn context(&self, transport: Transport) -> Context {
        Context {
            transport,
            ipv6: self.ipv6,
        }
    }

    /// Appends the answer to `query` to `out`; false when it needs the long
    /// way, [`decide`](Self::decide).
    fn answer_quickly(
        &self,
        query: &[u8],
        namespace: &str,
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> bool {
        let view = self.registry.view(namespace);
        let answered = quick(query, &view, self.context(transport), out);
        if answered {
            Counters::count(&self.counters.answered);
        }
        answered
    }

    fn decide(&self, query: &[u8], namespace: &str, transport: Transport) -> Verdict {
        let view = self.registry.view(namespace);
        let verdict = answer(query, &view, self.context(transport));
        match verdict {
            Verdict::Answer(_) => Counters::count(&self.counters.answered),
            Verdict::Drop => Counters::count(&self.counters.dropped),
            Verdict::Forward | Verdict::Allocate { .. } => {}
        }
        verdict
    }

    /// Answers a query that needs a resolver or the kernel. `None`: say
    /// nothing.
    async fn finish(
        &self,
        query: &[u8],
        verdict: Verdict,
        resolver: SocketAddr,
        namespace: &str,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let result = match verdict {
            Verdict::Answer(bytes) => return Some(bytes),
            Verdict::Drop => return None,
            Verdict::Forward => self.forward(query, resolver, transport).await,
            Verdict::Allocate { name, confirm } => {
                let known = if confirm {
                    match self.forward(query, resolver, transport).await {
                        Ok(reply) if has_address(&reply) => Ok(None),
                        // Its own word on a name that it does not know.
                        Ok(reply) => Ok(Some(reply)),
                        Err(error) => Err(error),
                    }
                } else {
                    Ok(None)
                };
                match known {
                    Ok(Some(reply)) => Ok(reply),
                    Ok(None) => match self.registry.ensure(&name).await {
                        Ok(()) => match self.decide(query, namespace, transport) {
                            Verdict::Answer(bytes) => return Some(bytes),
                            // The policy changed meanwhile.
                            _ => self.forward(query, resolver, transport).await,
                        },
                        Err(error) => Err(error),
                    },
                    Err(error) => Err(error),
                }
            }
        };
        match result {
            Ok(reply) => {
                Counters::count(&self.counters.forwarded);
                Some(reply)
            }
            Err(error) => self.refuse(query, &error),
        }
    }

    async fn forward(
        &self,
        query: &[u8],
        resolver: SocketAddr,
        transport: Transport,
    ) -> Result<Vec<u8>, DnsError> {
        let reply = match transport {
            Transport::Udp => self.forwarder.udp(query, resolver).await,
            Transport::Tcp => self.forwarder.tcp(query, resolver).await,
        }?;
        self.registry.learn(&reply);
        Ok(reply)
    }

    /// What the client hears about a failure.
    fn refuse(&self, query: &[u8], error: &DnsError) -> Option<Vec<u8>> {
        let code = match error {
            DnsError::ResolverTimeout { .. } => {
                tracing::debug!("{error}");
                Counters::count(&self.counters.unanswered);
                return None;
            }
            DnsError::Resolver { .. } => {
                tracing::debug!("{error}");
                Extended::NetworkError
            }
            _ => {
                tracing::warn!("{error}");
                Extended::Other
            }
        };
        Counters::count(&self.counters.failed);
        failure(query, code, &format!("egress: {error}"))
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("registry", &self.registry)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// The slot that a loopback address stands for; `None` outside of the network
/// (such a datagram did not come through our hook) and beyond the last slot.
fn slot_of(destination: Ipv4Addr) -> Option<u32> {
    let [a, b, high, low] = destination.octets();
    let number = u32::from(u16::from_be_bytes([high, low]));
    let slot = number.checked_sub(1)?;
    ([a, b] == RESOLVER_NET && slot < RESOLVER_SLOTS).then_some(slot)
}

/// Whether forwarding to `resolver` would come back to a listener of ours.
fn is_ours(resolver: SocketAddr) -> bool {
    match resolver.ip().to_canonical() {
        IpAddr::V4(ip) => ip.octets()[..2] == RESOLVER_NET,
        IpAddr::V6(_) => false,
    }
}

#[cfg(test)]
mod tests;
