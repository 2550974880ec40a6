//! What the rooms of a running agent look like from outside, in the shapes of
//! the admin API.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::connect::{Attempt, Connector};
use super::rows::{self, chosen, health, is_direct, names_same, open_connections, secret_rows};
use crate::admin::{ApiError, Query, view};
use crate::capture::{AttachedProgram, CaptureError, Counters, Kernel, Usage};
use crate::dns::registry::Registry as Names;
use crate::endpoint::Live;
use crate::endpoint::resolve::Resolvers;
use crate::kubernetes::health::Board;
use crate::policy::explain::{self, LiveEndpoint, LiveView};
use crate::policy::snapshot::{Client, Cluster};
use crate::policy::source::keeper::Keeper;
use crate::secret::{SecretLabels, Secrets};
use crate::workload::directory::Directory;

/// A server that is silent for longer is warned of.
const CLUSTER_BEHIND: std::time::Duration = std::time::Duration::from_mins(1);

/// The parts that are looked at; all of them are shared.
pub(super) struct Views {
    pub(super) kernel: Arc<Kernel>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) names: Arc<Names>,
    pub(super) resolvers: Resolvers,
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
        let own: HashMap<&str, usize> = ours.iter().map(|p| (p.hook, p.position)).collect();
        let counters = self.kernel.counters().unwrap_or_else(|error| {
            told(error);
            Counters::default()
        });
        let usage = self.kernel.usage().unwrap_or_else(|error| {
            told(error);
            Usage::default()
        });
        view::Capture {
            cgroup: self.kernel.cgroup().display().to_string(),
            programs: ours.into_iter().map(|p| p.hook.to_owned()).collect(),
            others: others.into_iter().map(|p| beside(&p, &own)).collect(),
            namespaces: usage.namespaces,
            counters: counters
                .named()
                .map(|(name, n)| (name.to_owned(), n))
                .into(),
        }
    }

    /// `GET /v1/services`.
    pub(super) fn services(&self, query: &Query) -> Vec<view::Service> {
        let live = self.live.load();
        live.snapshot
            .services
            .iter()
            .filter(|service| chosen(query, &service.key.host, &service.key.namespace))
            .map(|service| {
                let assigned = self.names.addresses_of(&live.snapshot, service);
                let assigned = assigned.iter().flat_map(|a| [a.v4().into(), a.v6().into()]);
                rows::service(&live, service, assigned)
            })
            .collect()
    }

    /// `GET /v1/endpoints`.
    pub(super) fn endpoints(&self, query: &Query) -> Vec<view::Endpoint> {
        let live = self.live.load();
        let sets = live.sets.iter().filter(|set| {
            let service = &set.key().service;
            chosen(query, &service.host, &service.namespace)
        });
        sets.flat_map(|set| rows::endpoints(set)).collect()
    }

    /// `GET /v1/routes`.
    pub(super) fn routes(&self, query: &Query) -> Vec<view::Route> {
        rows::routes(&self.live.load().snapshot, query)
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
        // By host, and the namespace of a resolver of its own.
        let mut names: BTreeMap<(String, Option<String>), view::Name> = BTreeMap::new();
        for holding in self.names.addresses().all() {
            if holding.held() {
                let host = holding.name.to_string();
                let name = names.entry((host, None)).or_default();
                let (v4, v6) = (holding.address.v4(), holding.address.v6());
                name.virtual_addresses = vec![v4.to_string(), v6.to_string()];
            }
        }
        for (namespace, status) in self.resolvers.status() {
            let namespace = namespace.map(|namespace| namespace.to_string());
            let key = (status.name.to_string(), namespace);
            let name = names.entry(key).or_default();
            name.resolved = status.addresses.iter().map(ToString::to_string).collect();
            name.age_seconds = status.age;
            name.refresh_seconds = Some(status.ttl);
            name.error = status.error;
        }
        for ((host, namespace), name) in &mut names {
            name.host.clone_from(host);
            name.namespace.clone_from(namespace);
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

/// A program of somebody else, and whether it runs before ours on its hook or
/// after it. One that refuses has the last word either way.
fn beside(program: &AttachedProgram, own: &HashMap<&str, usize>) -> String {
    let AttachedProgram { hook, name, id, .. } = program;
    let order = match own.get(hook) {
        Some(own) if program.position < *own => ", runs before egress",
        Some(_) => ", runs after egress",
        None => "",
    };
    format!("{hook} {name} (id {id}{order})")
}
