//! VirtualServices: which one a client gets for a host, and the services that
//! only they name.

use std::collections::HashSet;
use std::sync::Arc;

use super::hosts::{HostIndex, is_cluster_host, rule_pattern};
use super::ids::Ids;
use super::services::{Shell, on_agent_failure};
use super::visibility;
use crate::policy::Options;
use crate::policy::diagnostic::Span;
use crate::policy::document::{Document, Spec};
use crate::policy::model::{HostPattern, Protocol, Resolution, Visibility};
use crate::policy::schema::virtual_service::{Destination, VirtualService};
use crate::policy::snapshot::{ClusterTarget, ServiceKey};

/// A VirtualService that is for the mesh.
#[derive(Debug)]
pub(super) struct Virtual<'d> {
    pub(super) document: &'d Arc<Document>,
    pub(super) spec: &'d VirtualService,
    /// `hosts`, whole, each with its place.
    pub(super) hosts: Vec<(HostPattern, Span)>,
    pub(super) visibility: Visibility,
}

impl<'d> Virtual<'d> {
    fn namespace(&self) -> &Arc<str> {
        &self.document.id.namespace
    }

    /// Every destination of every route, mirrors included.
    pub(super) fn destinations(&self) -> impl Iterator<Item = &'d Destination> {
        self.spec.destinations()
    }
}

/// All VirtualServices for the mesh, oldest first.
#[derive(Debug, Default)]
pub(super) struct VirtualServices<'d> {
    pub(super) list: Vec<Virtual<'d>>,
    hosts: HostIndex<usize>,
}

/// What a VirtualService was chosen from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) chosen: Option<usize>,
    /// Others of the same host, or of a wider one, that the client sees.
    pub(super) lost: Vec<usize>,
}

impl<'d> VirtualServices<'d> {
    /// Takes those among `documents`, which are ordered by age.
    pub(super) fn new(documents: &[&'d Arc<Document>], options: &Options) -> Self {
        let mut out = Self::default();
        for &document in documents {
            let Spec::VirtualService(spec) = &document.spec else {
                continue;
            };
            if spec.hosts.is_empty() || spec.for_gateways_only() {
                continue;
            }
            let namespace = &document.id.namespace;
            let hosts = spec.hosts.iter();
            let hosts: Vec<_> = hosts
                .map(|host| (rule_pattern(host, namespace, options), host.span))
                .collect();
            for (host, _) in &hosts {
                out.hosts.insert(host, out.list.len());
            }
            out.list.push(Virtual {
                document,
                spec,
                hosts,
                visibility: visibility(&spec.export_to, namespace),
            });
        }
        out
    }

    pub(super) fn get(&self, index: usize) -> Option<&Virtual<'d>> {
        self.list.get(index)
    }

    /// Every one, of any namespace, that is about a host.
    pub(super) fn about(&self, host: &HostPattern) -> Vec<usize> {
        let mut list: Vec<usize> = self.hosts.covering(host).flatten().copied().collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    /// The one that a client gets for a host: the most specific host first;
    /// then one private to the client's namespace, one exported to it by name,
    /// one exported to all; the older first.
    pub(super) fn choose(&self, host: &HostPattern, client: &str) -> Choice {
        let rank = |index: &usize| {
            let service = self.get(*index)?;
            let class = match &service.visibility {
                Visibility::All => 2,
                Visibility::Namespaces(list) if !list.iter().any(|name| **name == *client) => {
                    return None;
                }
                Visibility::Namespaces(list) => {
                    let private = **service.namespace() == *client
                        && list.iter().all(|name| **name == *client);
                    u8::from(!private)
                }
            };
            Some((class, *index))
        };
        let mut choice = Choice::default();
        for list in self.hosts.covering(host) {
            let mut seen: Vec<(u8, usize)> = list.iter().filter_map(rank).collect();
            seen.sort_unstable();
            for (_, index) in seen {
                if choice.chosen.is_none() {
                    choice.chosen = Some(index);
                } else if choice.chosen != Some(index) && !choice.lost.contains(&index) {
                    choice.lost.push(index);
                }
            }
        }
        choice
    }

    /// Adds what no ServiceEntry says but a VirtualService needs: a part of a
    /// wildcard service that it names, and hosts that nothing registers, which
    /// are HTTP on port 80.
    pub(super) fn add_services<'s>(
        &self,
        shells: &mut Vec<Shell<'s>>,
        ids: &mut Ids,
        options: &Options,
    ) where
        'd: 's,
    {
        let mut exact: HashSet<HostPattern> = HashSet::new();
        let mut wide: HostIndex<usize> = HostIndex::default();
        for (index, shell) in shells.iter().enumerate() {
            exact.insert(shell.key.host.clone());
            if shell.key.host.exact().is_none() {
                wide.insert(&shell.key.host, index);
            }
        }
        let registered = exact.clone();
        for service in &self.list {
            for (host, span) in &service.hosts {
                if !exact.insert(host.clone()) {
                    continue;
                }
                let parts: Vec<usize> = wide.covering(host).flatten().copied().collect();
                if !parts.is_empty() {
                    for part in parts {
                        add_part(shells, part, host, ids);
                    }
                } else if host.exact().is_some_and(|name| name.contains('.'))
                    && !is_cluster_host(host, options)
                    && !service.spec.http.is_empty()
                    && leads_somewhere(service, &registered, options)
                {
                    shells.push(alone(service, host, *span, ids));
                }
            }
        }
    }
}

/// Whether any route answers itself or goes to a registered host.
fn leads_somewhere(
    service: &Virtual<'_>,
    registered: &HashSet<HostPattern>,
    options: &Options,
) -> bool {
    let answers = |route: &crate::policy::schema::route::HttpRoute| {
        route.redirect.is_some() || route.direct_response.is_some()
    };
    service.spec.http.iter().any(answers)
        || service.destinations().any(|destination| {
            let host = destination.host.as_ref().map_or("", |host| &***host);
            registered.contains(&rule_pattern(host, service.namespace(), options))
        })
}

fn add_part(shells: &mut Vec<Shell<'_>>, part: usize, host: &HostPattern, ids: &mut Ids) {
    let Some(whole) = shells.get(part) else {
        return;
    };
    let key = ServiceKey {
        host: host.clone(),
        ..whole.key.clone()
    };
    // Another wildcard may cover the host as well, for the same port: the
    // more specific one came first.
    if shells
        .iter()
        .any(|shell| shell.part_of.is_some() && shell.key == key)
    {
        return;
    }
    let id = ids.number(&key);
    let shell = Shell {
        id,
        key,
        document: whole.document,
        port_name: Arc::clone(&whole.port_name),
        addresses: whole.addresses.clone(),
        virtual_address: whole.virtual_address,
        endpoints: Arc::clone(&whole.endpoints),
        visibility: whole.visibility.clone(),
        target: Arc::clone(&whole.target),
        subject_alt_names: whole.subject_alt_names,
        span: whole.span,
        part_of: Some(part),
        on_agent_failure: whole.on_agent_failure,
    };
    shells.push(shell);
}

/// A host of a VirtualService that nothing registers.
fn alone<'d>(service: &Virtual<'d>, host: &HostPattern, span: Span, ids: &mut Ids) -> Shell<'d> {
    const HTTP: u16 = 80;
    let key = ServiceKey {
        namespace: Arc::clone(service.namespace()),
        host: host.clone(),
        port: HTTP,
    };
    let id = ids.number(&key);
    Shell {
        id,
        document: service.document,
        port_name: "http".into(),
        addresses: Vec::new(),
        virtual_address: true,
        endpoints: [].into(),
        visibility: service.visibility.clone(),
        target: Arc::new(ClusterTarget {
            service: id,
            host: host.clone(),
            port: HTTP,
            target_port: HTTP,
            protocol: Protocol::Http,
            resolution: Resolution::Static,
            https_port: false,
        }),
        subject_alt_names: &[],
        span,
        key,
        part_of: None,
        on_agent_failure: on_agent_failure(service.document),
    }
}
