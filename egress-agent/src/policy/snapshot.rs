//! The compiled policy: one immutable value, swapped whole.
//!
//! A [`Service`] is one host of one ServiceEntry on one of its ports. What a
//! client gets from it depends on who the client is, so a service holds
//! [`View`]s, and the first whose `clients` fit applies. A [`Cluster`] is what
//! limits and ejection are counted for: service, subset and policy.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ipnet::IpNet;

use super::model::{
    ClientTls, DocumentRef, EndpointSpec, HostPattern, Labels, Protocol, Resolution, TrafficPolicy,
    Visibility,
};
use super::routes::{HttpRoute, OpaqueRoute};
use super::schema::secret::Secret;

/// Number of a service in the kernel's maps: stable across snapshots while the
/// same (namespace, host, port) is registered, never reused while the agent
/// runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceId(pub u32);

/// What identifies a service across snapshots.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceKey {
    /// Namespace of the ServiceEntry.
    pub namespace: Arc<str>,
    /// Host.
    pub host: HostPattern,
    /// `ports[].number`.
    pub port: u16,
}

/// One host of a ServiceEntry on one of its ports.
#[derive(Debug)]
pub struct Service {
    /// Number in the kernel's maps.
    pub id: ServiceId,
    /// Identity across snapshots.
    pub key: ServiceKey,
    /// The ServiceEntry.
    pub entry: Arc<DocumentRef>,
    /// `ports[].name`.
    pub port_name: Arc<str>,
    /// `ports[].protocol`.
    pub protocol: Protocol,
    /// `resolution`.
    pub resolution: Resolution,
    /// `ports[].targetPort`, else the port.
    pub target_port: u16,
    /// `addresses` (single ones as /32 or /128).
    pub addresses: Vec<IpNet>,
    /// The host gets a virtual address from DNS capture.
    pub virtual_address: bool,
    /// `endpoints`; for DNS resolutions without endpoints, the host itself.
    pub endpoints: Arc<[EndpointSpec]>,
    /// Who sees it.
    pub visibility: Visibility,
    /// Direct or through the agent, and why. The same for every client, since
    /// the kernel decides before it is known who will be served: proxy if any
    /// view needs the agent.
    pub path: Path,
    /// `egress-agent.dev/on-agent-failure`.
    pub on_agent_failure: OnAgentFailure,
    /// What clients get, the most specific first; the last fits everyone.
    pub views: Vec<View>,
}

impl Service {
    /// The view of a client.
    pub fn view(&self, client: &Client) -> Option<&View> {
        self.views.iter().find(|view| view.clients.fit(client))
    }
}

/// A workload, as far as policy looks at it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Client {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Labels.
    pub labels: Arc<Labels>,
}

/// Which clients a view is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientMatch {
    /// Only this namespace; `None`: any.
    pub namespace: Option<Arc<str>>,
    /// Labels that the client must have (`workloadSelector`).
    pub labels: Labels,
}

impl ClientMatch {
    /// Whether the client fits.
    pub fn fit(&self, client: &Client) -> bool {
        self.namespace
            .as_ref()
            .is_none_or(|name| *name == client.namespace)
            && self
                .labels
                .iter()
                .all(|(key, value)| client.labels.get(key) == Some(value))
    }
}

/// What one kind of client gets from a service.
#[derive(Debug)]
pub struct View {
    /// Who.
    pub clients: ClientMatch,
    /// The DestinationRule that applies.
    pub destination_rule: Option<Arc<DocumentRef>>,
    /// The VirtualService that applies.
    pub virtual_service: Option<Arc<DocumentRef>>,
    /// The cluster of the service without a subset.
    pub cluster: Arc<Cluster>,
    /// Named subsets.
    pub subsets: BTreeMap<Box<str>, Arc<Cluster>>,
    /// `http` routes in order; `None` without a VirtualService, which means
    /// one route to `cluster`.
    pub http: Option<Arc<[HttpRoute]>>,
    /// `tls` routes in order.
    pub tls: Option<Arc<[OpaqueRoute]>>,
    /// `tcp` routes in order.
    pub tcp: Option<Arc<[OpaqueRoute]>>,
}

/// What limits, balance and ejection are kept for.
#[derive(Debug)]
pub struct Cluster {
    /// Place in [`Snapshot::clusters`].
    pub index: usize,
    /// Identity across snapshots.
    pub key: ClusterKey,
    /// Service facts that endpoint choice needs.
    pub target: Arc<ClusterTarget>,
    /// Effective policy.
    pub policy: Arc<TrafficPolicy>,
    /// Endpoints (those of the subset), before resolution.
    pub endpoints: Arc<[EndpointSpec]>,
}

impl Cluster {
    /// TLS that cleartext HTTP leaves with: what the policy says, or, on a
    /// port that says HTTPS or TLS, the system's roots. `None`: it leaves as
    /// it came.
    pub fn tls_for_cleartext_http(&self) -> Option<ClientTls> {
        match &self.policy.tls {
            Some(tls) => Some(tls.clone()),
            None => self.target.https_port.then(ClientTls::simple),
        }
    }
}

/// Identity of a cluster across snapshots.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClusterKey {
    /// The service.
    pub service: ServiceKey,
    /// The subset; empty for none.
    pub subset: Box<str>,
    /// The DestinationRule as `namespace/name`; empty for none. Two clients
    /// with different rules never share limits, pools or tickets.
    pub rule: Box<str>,
}

/// Facts of the service that its clusters share.
#[derive(Debug)]
pub struct ClusterTarget {
    /// Number in the kernel's maps.
    pub service: ServiceId,
    /// Host.
    pub host: HostPattern,
    /// Service port.
    pub port: u16,
    /// `targetPort`, else the port.
    pub target_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Resolution.
    pub resolution: Resolution,
    /// Cleartext HTTP on this port leaves as TLS: the port says HTTPS or TLS,
    /// and no `tls.mode: DISABLE` is written out.
    pub https_port: bool,
}

/// Direct or through the agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Path {
    /// The kernel picks; the text says why no proxy is needed.
    Direct(Cow<'static, str>),
    /// Through the agent; the text says which setting asks for it.
    Proxy(Cow<'static, str>),
}

/// What happens to a proxied service while the agent is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnAgentFailure {
    /// `connect` fails with ECONNREFUSED.
    #[default]
    Closed,
    /// The connection goes to a real endpoint without the agent; allowed only
    /// where no TLS would be lost.
    Open,
}

/// The compiled policy.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each snapshot.
    pub generation: u64,
    /// All services, ordered by key.
    pub services: Vec<Arc<Service>>,
    /// By number.
    pub by_id: HashMap<ServiceId, Arc<Service>>,
    /// All clusters; `Cluster::index` points here.
    pub clusters: Vec<Arc<Cluster>>,
    /// Services by exact host.
    pub by_host: HashMap<Arc<str>, Vec<Arc<Service>>>,
    /// Services of wildcard hosts, longest suffix first.
    pub wildcards: Vec<(Arc<str>, Vec<Arc<Service>>)>,
    /// Secrets, by namespace and name.
    pub secrets: BTreeMap<(Arc<str>, Arc<str>), Arc<Secret>>,
    /// Documents that are about a service and do not act on it, with the
    /// reason, for `explain`.
    pub lost: HashMap<ServiceId, Vec<Lost>>,
}

/// A document that is about a service and does not act on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The document.
    pub document: Arc<DocumentRef>,
    /// Clients that this is true for; `None`: all.
    pub namespace: Option<Arc<str>>,
    /// Why.
    pub reason: Box<str>,
}

/// What differs between the services of two snapshots. A service that changed
/// is in both lists.
#[derive(Debug, Default)]
pub struct Difference<'s> {
    /// Services that are not there any more as they were.
    pub gone: Vec<&'s Arc<Service>>,
    /// Services that were not there before as they are.
    pub new: Vec<&'s Arc<Service>>,
}

impl Snapshot {
    /// How the services differ from those of an earlier snapshot. One look at
    /// the pointer of each: a service that did not change is the same value.
    pub fn since<'s>(&'s self, before: &'s Self) -> Difference<'s> {
        let mut difference = Difference::default();
        let mut old = before.services.iter().peekable();
        for new in &self.services {
            while let Some(gone) = old.next_if(|old| old.key < new.key) {
                difference.gone.push(gone);
            }
            match old.next_if(|old| old.key == new.key) {
                Some(old) if Arc::ptr_eq(old, new) => continue,
                Some(old) => difference.gone.push(old),
                None => {}
            }
            difference.new.push(new);
        }
        difference.gone.extend(old);
        difference
    }

    /// The service with this number.
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.by_id.get(&id)
    }

    /// The services that `host` (lower case, no trailing dot) names for a
    /// client in `namespace`: an exact host before wildcards, a longer suffix
    /// before a shorter one, an entry of the own namespace before others.
    /// Only entries that are visible to the client count. Several services
    /// are several ports of the same host.
    pub fn services_of<'a>(
        &'a self,
        host: &str,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let visible = move |list: &'a Vec<Arc<Service>>| {
            let mut seen: Vec<&'a Arc<Service>> = list
                .iter()
                .filter(|service| service.visibility.includes(namespace))
                .collect();
            let own = |service: &Service| *service.key.namespace == *namespace;
            // Where two entries claim one host and port, the own one stands.
            let claimed: Vec<u16> = seen
                .iter()
                .filter(|service| own(service))
                .map(|service| service.key.port)
                .collect();
            seen.retain(|service| own(service) || !claimed.contains(&service.key.port));
            (!seen.is_empty()).then_some(seen)
        };
        self.by_host
            .get(host)
            .and_then(visible)
            .or_else(|| {
                self.wildcards
                    .iter()
                    .filter(|(_, list)| list.iter().any(|s| s.key.host.matches(host)))
                    .find_map(|(_, list)| visible(list))
            })
            .unwrap_or_default()
            .into_iter()
    }
}
