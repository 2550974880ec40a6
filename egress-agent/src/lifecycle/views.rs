//! What the rooms of a running agent look like from outside, in the shapes of
//! the admin API.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::connect::{Attempt, Connector};
use crate::admin::{ApiError, Query, view};
use crate::capture::{CaptureError, Counters, Kernel, Usage};
use crate::dns::registry::Registry as Names;
use crate::endpoint::resolve::Resolver;
use crate::endpoint::{EndpointSet, EndpointState, EndpointStatus, Live};
use crate::kubernetes::health::Board;
use crate::policy::explain::{self, LiveEndpoint, LiveView};
use crate::policy::model::{DocumentRef, HostPattern, Protocol, Resolution, Visibility};
use crate::policy::snapshot::{Client, Cluster, Path, Service};
use crate::policy::source::keeper::Keeper;
use crate::secret::{CertificateSummary, SecretLabels, SecretStatus, Secrets};
use crate::workload::directory::Directory;

/// A server that is silent for longer is warned of.
const CLUSTER_BEHIND: std::time::Duration = std::time::Duration::from_mins(1);

/// The parts that are looked at; all of them are shared.
pub(super) struct Views {
    pub(super) kernel: Arc<Kernel>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) names: Arc<Names>,
    pub(super) resolver: Resolver,
    pub(super) secrets: Arc<Secrets>,
    pub(super) policy: Keeper,
    pub(super) directory: Directory,
    pub(super) cluster: Option<Board>,
    pub(super) connector: Connector,
}

impl Views {
    /// The policy in force.
    pub(super) fn policy(&self) -> view::Policy {
        let live = self.live.load();
        let published = self.policy.published();
        let published = published.borrow();
        let services = &live.snapshot.services;
        let direct = services.iter().filter(|s| is_direct(s)).count();
        view::Policy {
            generation: live.snapshot.generation,
            documents: published.counts.in_force,
            rejected: published.counts.rejected,
            services: services.len(),
            direct,
            proxied: services.len() - direct,
            age_seconds: SystemTime::now()
                .duration_since(published.at)
                .unwrap_or_default()
                .as_secs(),
        }
    }

    /// The Kubernetes API server, and what is wrong with it.
    pub(super) fn kubernetes(&self, warnings: &mut Vec<String>) -> Option<view::Kubernetes> {
        let report = self.cluster.as_ref()?.report();
        if report.behind > CLUSTER_BEHIND {
            warnings.push(format!(
                "the Kubernetes API server was last seen {} s ago; what it had then is in force",
                report.behind.as_secs()
            ));
        }
        for watch in &report.watches {
            if let Some(error) = watch.error.as_ref().filter(|_| watch.behind.is_zero()) {
                warnings.push(format!("Kubernetes {}: {error}", watch.what));
            }
        }
        Some(view::Kubernetes {
            server: report.server,
            node: report.node,
            synced: report.synced,
            age_seconds: report.behind.as_secs(),
            error: report.error,
            watches: report
                .watches
                .into_iter()
                .map(|watch| view::KubernetesWatch {
                    resource: watch.what.to_string(),
                    objects: watch.objects,
                    synced: watch.synced,
                    age_seconds: watch.behind.as_secs(),
                    lists: watch.lists,
                    watches: watch.watches,
                    failures: watch.failures,
                    error: watch.error.map(|error| error.to_string()),
                })
                .collect(),
        })
    }

    /// The kernel side, and what could not be read of it.
    pub(super) fn capture(&self, warnings: &mut Vec<String>) -> view::Capture {
        let mut told = |error: CaptureError| warnings.push(error.to_string());
        let programs = self.kernel.programs().unwrap_or_else(|error| {
            told(error);
            Vec::new()
        });
        let (ours, others): (Vec<_>, Vec<_>) = programs.into_iter().partition(|p| p.ours);
        let counters = self.kernel.counters().unwrap_or_else(|error| {
            told(error);
            Counters::default()
        });
        let usage = self.kernel.usage().unwrap_or_else(|error| {
            told(error);
            Usage::default()
        });
        let counters = [
            ("proxied", counters.proxied),
            ("direct", counters.direct),
            ("passed", counters.passed),
            ("refused-agent-down", counters.refused_agent_down),
            ("refused-policy", counters.refused_policy),
            ("refused-udp", counters.refused_udp),
            ("refused-unregistered", counters.refused_unregistered),
            ("dns", counters.dns),
            ("bypassed", counters.bypassed),
            ("lost", counters.lost),
            ("opened-agent-down", counters.opened_agent_down),
        ];
        view::Capture {
            cgroup: self.kernel.cgroup().display().to_string(),
            programs: ours.into_iter().map(|p| p.hook.to_owned()).collect(),
            others: others
                .into_iter()
                .map(|p| format!("{} {} (id {})", p.hook, p.name, p.id))
                .collect(),
            namespaces: usage.namespaces,
            counters: counters.map(|(name, n)| (name.to_owned(), n)).into(),
        }
    }

    /// `GET /v1/services`.
    pub(super) fn services(&self, query: &Query) -> Vec<view::Service> {
        let live = self.live.load();
        live.snapshot
            .services
            .iter()
            .filter(|service| chosen(query, &service.key.host, &service.key.namespace))
            .map(|service| self.service(&live, service))
            .collect()
    }

    fn service(&self, live: &Live, service: &Service) -> view::Service {
        let owner = Client {
            namespace: Arc::clone(&service.key.namespace),
            labels: Arc::default(),
        };
        let own = service.view(&owner).or_else(|| service.views.last());
        let base = own.and_then(|view| live.sets.get(view.cluster.index));
        let states = base.map_or_else(Vec::new, |set| set.status().endpoints);
        let present: Vec<_> = states.iter().filter(|e| !is_leaving(e)).collect();
        let healthy = |e: &&&EndpointStatus| e.state == EndpointState::Healthy;
        let (path, reason) = match &service.path {
            Path::Direct(reason) => ("direct", reason),
            Path::Proxy(reason) => ("proxy", reason),
        };
        let assigned = self.names.addresses_of(&live.snapshot, service);
        view::Service {
            namespace: service.key.namespace.to_string(),
            host: service.key.host.to_string(),
            port: service.key.port,
            port_name: service.port_name.to_string(),
            protocol: protocol(service.protocol).to_owned(),
            resolution: resolution(service.resolution).to_owned(),
            path: path.to_owned(),
            reason: reason.to_string(),
            addresses: assigned
                .iter()
                .flat_map(|a| [a.v4().to_string(), a.v6().to_string()])
                .chain(service.addresses.iter().map(ToString::to_string))
                .collect(),
            healthy: present.iter().filter(healthy).count(),
            endpoints: present.len(),
            connections: sets_of(live, service)
                .flat_map(|set| set.status().endpoints)
                .map(|e| open_connections(&e))
                .sum(),
            service_entry: document_name(&service.entry),
            destination_rule: own
                .and_then(|view| view.destination_rule.as_ref())
                .map(document_name),
            virtual_service: own
                .and_then(|view| view.virtual_service.as_ref())
                .map(document_name),
            export_to: match &service.visibility {
                Visibility::All => vec!["*".to_owned()],
                Visibility::Namespaces(names) => names.iter().map(ToString::to_string).collect(),
            },
        }
    }

    /// `GET /v1/endpoints`.
    pub(super) fn endpoints(&self, query: &Query) -> Vec<view::Endpoint> {
        let live = self.live.load();
        let sets = live.sets.iter().filter(|set| {
            let service = &set.key().service;
            chosen(query, &service.host, &service.namespace)
        });
        sets.flat_map(|set| {
            let status = set.status();
            let (host, namespace, port) = (status.host, status.namespace, status.port);
            let subset = status.subset.unwrap_or_default();
            let http = set.cluster().target.protocol.is_http();
            status.endpoints.into_iter().map(move |endpoint| {
                let (health, reason) = health(&endpoint.state);
                let last = endpoint.last_failure.as_ref();
                view::Endpoint {
                    namespace: namespace.to_string(),
                    host: host.clone(),
                    port,
                    subset: subset.to_string(),
                    name: endpoint.name.as_ref().map(ToString::to_string),
                    weight: endpoint.weight,
                    priority: endpoint
                        .priority
                        .and_then(|level| u32::try_from(level).ok())
                        .unwrap_or_default(),
                    health: health.to_owned(),
                    reason,
                    active: open_connections(&endpoint).max(endpoint.active_requests.into()),
                    connections: open_connections(&endpoint),
                    requests: if http {
                        endpoint.active_requests.into()
                    } else {
                        0
                    },
                    total: endpoint.picks,
                    failed: endpoint.failures,
                    ejections: endpoint.ejections,
                    last_failure: last.map_or_else(String::new, |last| last.what.clone()),
                    last_failure_seconds: last.map(|last| last.ms_ago / 1000),
                    locality: endpoint.locality,
                    address: endpoint.address,
                }
            })
        })
        .collect()
    }

    /// `GET /v1/secrets`.
    pub(super) fn secrets(&self, query: &Query) -> Vec<view::Secret> {
        let live = self.live.load();
        let mut list = Vec::new();
        for status in self.secrets.status() {
            if query
                .get("namespace")
                .is_some_and(|wanted| !status.namespace.is_empty() && status.namespace != wanted)
            {
                continue;
            }
            let mut used_by: Vec<String> = live
                .snapshot
                .clusters
                .iter()
                .filter(|cluster| {
                    let of_namespace = status.namespace.is_empty()
                        || status.namespace == *cluster.key.service.namespace;
                    of_namespace
                        && cluster
                            .tls_for_cleartext_http()
                            .is_some_and(|tls| names_same(&SecretLabels::of(&tls), &status))
                })
                .map(|cluster| cluster.target.host.to_string())
                .collect();
            used_by.dedup();
            secret_rows(&status, &used_by, &mut list);
        }
        if let Some(part) = query.get("host") {
            list.retain(|secret| {
                secret.name.contains(part) || secret.used_by.iter().any(|host| host == part)
            });
        }
        list
    }

    /// `GET /v1/explain`.
    ///
    /// # Errors
    /// When the question is none, or its process or cgroup is not there.
    pub(super) fn explain(
        &self,
        query: &Query,
        registry_only: bool,
    ) -> Result<(explain::Explanation, Option<Attempt>), ApiError> {
        let invalid = |error: explain::QueryError| ApiError::Invalid(error.to_string());
        let text = query.get("target").unwrap_or_default();
        let target = explain::Target::parse(text).map_err(invalid)?;
        let from = query.get("from").map(explain::From::parse).transpose();
        let (client, caller) = self.client(from.map_err(invalid)?)?;
        let mut asked = explain::Query::new(target, client);
        asked.caller = caller;
        if let Some(method) = query.get("method") {
            asked = asked.method(method).map_err(invalid)?;
        }
        for line in query.get("headers").unwrap_or_default().lines() {
            asked = asked.header(line).map_err(invalid)?;
        }
        let live = self.live.load();
        let known = Known {
            views: self,
            live: &live,
            registry_only,
        };
        let explanation = explain::explain(&live.snapshot, &asked, &known);
        let attempt = match query.get("connect") {
            None => None,
            Some(_) => {
                explain::destinations(&live.snapshot, &asked).map(|(host, clusters)| Attempt {
                    live: Arc::clone(&live),
                    host,
                    client: asked.client.clone(),
                    clusters,
                })
            }
        };
        Ok((explanation, attempt))
    }

    /// Who is meant by `from`, as policy sees it and for people.
    fn client(&self, from: Option<explain::From>) -> Result<(Client, Option<Box<str>>), ApiError> {
        let path = match &from {
            None => return Ok((self.directory.stranger().client.clone(), None)),
            Some(explain::From::Client(client)) => return Ok((client.clone(), None)),
            Some(explain::From::Process(pid)) => self.directory.of_process(*pid),
            Some(explain::From::Cgroup(path)) => self.directory.of_path(path),
        };
        let workload = path.map_err(|error| {
            ApiError::NotFound(match &from {
                Some(explain::From::Process(pid)) => format!("process {pid}: {error}"),
                Some(explain::From::Cgroup(path)) => format!("cgroup {path}: {error}"),
                _ => error.to_string(),
            })
        })?;
        let who = match from {
            Some(explain::From::Process(pid)) => format!("pid {pid}, {}", workload.name),
            _ => workload.name.to_string(),
        };
        Ok((workload.client, Some(who.into())))
    }

    /// `GET /v1/dns`.
    /// Unregistered destinations by caller, the busiest first.
    pub(super) fn observe(&self, query: &Query) -> Result<Vec<view::Unregistered>, String> {
        let found = self
            .kernel
            .unregistered()
            .map_err(|error| error.to_string())?;
        let mut rows: Vec<view::Unregistered> = found
            .iter()
            .map(|one| super::outbound::view(one, &self.directory, self.names.seen()))
            .filter(|row| {
                query
                    .get("namespace")
                    .is_none_or(|namespace| row.namespace == namespace)
            })
            .collect();
        rows.sort_by(|a, b| {
            (b.count.cmp(&a.count))
                .then_with(|| (&a.namespace, &a.workload).cmp(&(&b.namespace, &b.workload)))
                .then_with(|| a.destination.cmp(&b.destination))
        });
        Ok(rows)
    }

    pub(super) fn dns(&self, query: &Query) -> Vec<view::Name> {
        let mut names: BTreeMap<String, view::Name> = BTreeMap::new();
        for holding in self.names.addresses().all() {
            if holding.held() {
                let host = holding.name.to_string();
                let name = names.entry(host).or_default();
                let (v4, v6) = (holding.address.v4(), holding.address.v6());
                name.virtual_addresses = vec![v4.to_string(), v6.to_string()];
            }
        }
        for status in self.resolver.status() {
            let name = names.entry(status.name.to_string()).or_default();
            name.resolved = status.addresses.iter().map(ToString::to_string).collect();
            name.age_seconds = status.age;
            name.refresh_seconds = Some(status.ttl);
            name.error = status.error;
        }
        for (host, name) in &mut names {
            name.host.clone_from(host);
        }
        let mut list: Vec<_> = names.into_values().collect();
        if let Some(host) = query.get("host") {
            list.retain(|name| name.host == host);
        }
        list
    }
}

/// What `explain` asks of the running agent.
struct Known<'a> {
    views: &'a Views,
    live: &'a Live,
    registry_only: bool,
}

impl LiveView for Known<'_> {
    fn endpoints(&self, cluster: &Cluster) -> Option<Vec<LiveEndpoint>> {
        let set = self.live.sets.get(cluster.index)?;
        if set.is_dialled() {
            return None;
        }
        let endpoints = set.status().endpoints.into_iter();
        let told = endpoints.map(|endpoint| {
            let (health, reason) = health(&endpoint.state);
            LiveEndpoint {
                connections: open_connections(&endpoint),
                address: endpoint.address,
                resolved_from: endpoint.name.as_ref().map(ToString::to_string),
                weight: endpoint.weight,
                locality: endpoint.locality,
                health: health.to_owned(),
                detail: Some(reason).filter(|reason| !reason.is_empty()),
            }
        });
        Some(told.collect())
    }

    fn virtual_addresses(&self, host: &str) -> Vec<IpAddr> {
        let holding = self.views.names.addresses().get(host);
        holding.map_or_else(Vec::new, |holding| {
            vec![holding.address.v4().into(), holding.address.v6().into()]
        })
    }

    fn registry_only(&self) -> Option<bool> {
        Some(self.registry_only)
    }
}

fn is_direct(service: &Service) -> bool {
    matches!(service.path, Path::Direct(_))
}

/// Whether `host` and `namespace` of a query choose this service: the host as
/// it is written, or a name under it.
fn chosen(query: &Query, host: &HostPattern, namespace: &str) -> bool {
    query
        .get("namespace")
        .is_none_or(|wanted| wanted == namespace)
        && query.get("host").is_none_or(|wanted| {
            let wanted = wanted.to_ascii_lowercase();
            host.to_string() == wanted || host.matches(&wanted)
        })
}

fn sets_of<'a>(live: &'a Live, service: &'a Service) -> impl Iterator<Item = &'a Arc<EndpointSet>> {
    live.sets
        .iter()
        .filter(|set| set.key().service == service.key)
}

fn open_connections(endpoint: &EndpointStatus) -> u64 {
    u64::from(endpoint.active_connections) + u64::from(endpoint.direct_connections)
}

fn is_leaving(endpoint: &EndpointStatus) -> bool {
    matches!(
        endpoint.state,
        EndpointState::Draining { .. } | EndpointState::Gone
    )
}

/// The word for a state, and the story behind it.
fn health(state: &EndpointState) -> (&'static str, String) {
    match state {
        EndpointState::Healthy => ("healthy", String::new()),
        EndpointState::Ejected {
            reason,
            times,
            until,
            ..
        } => {
            let again = match times {
                0 | 1 => String::new(),
                n => format!(", {n} times in a row"),
            };
            ("ejected", format!("{reason} until {until}{again}"))
        }
        EndpointState::Unhealthy { reason } => ("unhealthy", reason.clone()),
        EndpointState::Draining { until, .. } => (
            "draining",
            format!("no longer in DNS; its connections are closed at {until}"),
        ),
        EndpointState::Gone => (
            "draining",
            "no longer in DNS; its connections go on until they end".to_owned(),
        ),
    }
}

/// As `ports[].protocol` is written.
const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Https => "HTTPS",
        Protocol::Http2 => "HTTP2",
        Protocol::Grpc => "GRPC",
        Protocol::GrpcWeb => "GRPC-WEB",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Mongo => "MONGO",
        Protocol::Mysql => "MYSQL",
        Protocol::Redis => "REDIS",
        Protocol::Udp => "UDP",
        Protocol::Unset => "",
    }
}

/// As `resolution` is written.
const fn resolution(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::None => "NONE",
        Resolution::Static => "STATIC",
        Resolution::Dns => "DNS",
        Resolution::DnsRoundRobin => "DNS_ROUND_ROBIN",
        Resolution::DynamicDns => "DYNAMIC_DNS",
    }
}

fn document_name(document: &DocumentRef) -> view::DocumentName {
    view::DocumentName {
        kind: document.kind.to_owned(),
        namespace: document.namespace.to_string(),
        name: document.name.to_string(),
    }
}

fn names_same(labels: &SecretLabels, status: &SecretStatus) -> bool {
    (&labels.name, labels.mode, &labels.trust) == (&status.name, status.mode, &status.trust)
}

/// One row for each certificate; one without where there is none to show.
fn secret_rows(status: &SecretStatus, used_by: &[String], list: &mut Vec<view::Secret>) {
    let credential = |name: &str| format!("{}/{name}", status.namespace);
    let row = |kind: &str, name: String, certificate: Option<&CertificateSummary>| view::Secret {
        kind: kind.to_owned(),
        source: match name.as_str() {
            file if file.starts_with('/') => file.to_owned(),
            _ => status.trust.clone(),
        },
        name,
        state: status.state.to_owned(),
        subject: certificate.map_or_else(String::new, |c| c.subject.clone()),
        issuer: certificate.map_or_else(String::new, |c| c.issuer.clone()),
        days_left: certificate.map(|c| c.days_left(jiff::Timestamp::now())),
        version: status.version,
        warnings: status.warnings.clone(),
        alternative_names: certificate.map_or_else(Vec::new, |c| c.names.clone()),
        not_before: certificate.map_or_else(String::new, |c| c.not_before.to_string()),
        not_after: certificate.map_or_else(String::new, |c| c.not_after.to_string()),
        serial: certificate.map_or_else(String::new, |c| c.serial.clone()),
        used_by: used_by.to_vec(),
        error: status.error.clone(),
    };
    let before = list.len();
    // One that cannot be read has its row too, with the reason.
    if status.mode != "SIMPLE" {
        let name = match status.name.as_str() {
            file if file.starts_with('/') => file.to_owned(),
            name if status.mode == "ISTIO_MUTUAL" => name.to_owned(),
            name => credential(name),
        };
        list.push(row("certificate", name, status.certificate.as_ref()));
    }
    let trust = match status.trust.strip_prefix("credential ") {
        Some(name) => credential(name),
        None => status.trust.clone(),
    };
    for authority in &status.authorities {
        list.push(row("ca", trust.clone(), Some(authority)));
    }
    if list.len() == before {
        list.push(row("ca", trust, None));
    }
}
