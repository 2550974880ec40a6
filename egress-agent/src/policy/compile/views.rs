//! What each kind of client gets from a service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Problems;
use super::clusters::{Built, Clusters};
use super::hosts::rule_pattern;
use super::path;
use super::routes::Expressions;
use super::rules::{Choice as RuleChoice, Rules};
use super::services::Shell;
use super::virtual_services::{Choice as VirtualChoice, VirtualServices};
use crate::policy::Options;
use crate::policy::model::{HostPattern, Labels, Visibility};
use crate::policy::snapshot::{ClientMatch, Lost, Service, ServiceKey, View};

/// Compiles services one by one.
pub(super) struct Compiler<'c, 'd> {
    pub(super) options: &'c Options,
    pub(super) rules: &'c Rules<'d>,
    pub(super) virtuals: &'c VirtualServices<'d>,
    pub(super) shells: &'c [Shell<'d>],
    /// Services by host, in the order of age.
    pub(super) by_host: HashMap<&'c HostPattern, Vec<usize>>,
    pub(super) clusters: Clusters,
    pub(super) expressions: Expressions,
    pub(super) problems: &'c mut Problems,
}

/// A kind of client.
#[derive(Clone, Copy)]
pub(super) struct Client<'a> {
    /// Its namespace; empty: one that no document names.
    pub(super) namespace: &'a str,
    pub(super) labels: Option<&'a Labels>,
    /// It stands for all clients that no other kind fits.
    pub(super) anyone: bool,
}

impl<'c, 'd> Compiler<'c, 'd> {
    pub(super) fn new(
        options: &'c Options,
        rules: &'c Rules<'d>,
        virtuals: &'c VirtualServices<'d>,
        shells: &'c [Shell<'d>],
        clusters: Clusters,
        problems: &'c mut Problems,
    ) -> Self {
        let mut by_host: HashMap<&HostPattern, Vec<usize>> = HashMap::new();
        for (index, shell) in shells.iter().enumerate() {
            by_host.entry(&shell.key.host).or_default().push(index);
        }
        Self {
            options,
            rules,
            virtuals,
            shells,
            by_host,
            clusters,
            expressions: Expressions::default(),
            problems,
        }
    }

    pub(super) fn into_clusters(self) -> Clusters {
        self.clusters
    }

    /// One service, and the documents that do not act on it.
    pub(super) fn service(&mut self, index: usize) -> Option<(Service, Vec<Lost>)> {
        let shells = self.shells;
        let shell = shells.get(index)?;
        let about = self.virtuals.about(&shell.key.host);
        let hosts = self.hosts(shell, &about);
        let mut views: Vec<(View, Vec<Built>)> = Vec::new();
        let mut lost = Vec::new();
        // Of a service that only some namespaces see, one of them stands for
        // all: a namespace that no document names sees nothing of it, not even
        // what its own routes lead to.
        let namespace = match &shell.visibility {
            Visibility::All => "",
            Visibility::Namespaces(list) => list.first().map_or("", |name| &**name),
        };
        let everyone = Client {
            namespace,
            labels: None,
            anyone: true,
        };
        let default = self.choices(shell, &hosts, everyone);
        for namespace in self.namespaces(shell, &about, &hosts) {
            let rules = self.rules;
            let selectors = rules.selectors(&hosts, &namespace);
            let kinds = selectors.values().copied().map(Some).chain([None]);
            for labels in kinds {
                let client = Client {
                    namespace: &namespace,
                    labels,
                    anyone: false,
                };
                let choices = self.choices(shell, &hosts, client);
                // What everybody gets needs no view of its own, unless a
                // stricter view of the namespace stands before it.
                if choices == default && selectors.is_empty() {
                    continue;
                }
                self.lose(&choices, Some(&namespace), &mut lost);
                views.push(self.view(index, shell, client, &choices));
            }
        }
        self.lose(&default, None, &mut lost);
        views.push(self.view(index, shell, everyone, &default));
        let on_agent_failure = path::on_failure(shell.on_agent_failure, &views);
        if on_agent_failure != shell.on_agent_failure
            && let Some((_, span)) = shell.document.annotation("on-agent-failure")
        {
            let message = format!(
                "`on-agent-failure: open` is not followed for {}: traffic that leaves as TLS would go out in the clear",
                shell.key.host
            );
            self.problems
                .warn("open-loses-tls", shell.document, span, message)
                .help("write `closed`");
        }
        let service = Service {
            id: shell.id,
            key: shell.key.clone(),
            entry: Arc::clone(&shell.document.reference),
            port_name: Arc::clone(&shell.port_name),
            protocol: shell.target.protocol,
            resolution: shell.target.resolution,
            target_port: shell.target.target_port,
            addresses: shell.addresses.clone(),
            virtual_address: shell.virtual_address,
            endpoints: Arc::clone(&shell.endpoints),
            visibility: shell.visibility.clone(),
            path: path::decide(shell, &views),
            on_agent_failure,
            views: exact(views.into_iter().map(|(view, _)| view)),
        };
        Some((service, lost))
    }

    /// The host of a service, and those that its VirtualServices lead to.
    fn hosts(&self, shell: &Shell<'_>, about: &[usize]) -> Vec<HostPattern> {
        let mut hosts = vec![rule_host(shell, self.shells)];
        for service in about.iter().filter_map(|index| self.virtuals.get(*index)) {
            let namespace = &service.document.id.namespace;
            for destination in service.destinations() {
                if let Some(host) = &destination.host {
                    let host = rule_pattern(host, namespace, self.options);
                    if !hosts.contains(&host) {
                        hosts.push(host);
                    }
                }
            }
        }
        hosts
    }

    /// Namespaces whose clients may get something of their own.
    fn namespaces(
        &self,
        shell: &Shell<'_>,
        about: &[usize],
        hosts: &[HostPattern],
    ) -> BTreeSet<Arc<str>> {
        let mut out: BTreeSet<Arc<str>> = BTreeSet::new();
        if let Visibility::Namespaces(list) = &shell.visibility {
            out.extend(list.iter().cloned());
        }
        let named = |out: &mut BTreeSet<Arc<str>>, visibility: &Visibility| {
            if let Visibility::Namespaces(list) = visibility {
                out.extend(list.iter().cloned());
            }
        };
        let virtuals = about.iter().filter_map(|index| self.virtuals.get(*index));
        for service in virtuals {
            out.insert(Arc::clone(&service.document.id.namespace));
            named(&mut out, &service.visibility);
        }
        for host in hosts {
            for rule in self
                .rules
                .about(host)
                .filter_map(|index| self.rules.get(index))
            {
                out.insert(Arc::clone(rule.namespace()));
                named(&mut out, &rule.visibility);
            }
            // Which service a destination means depends on the client, too.
            if !about.is_empty()
                && let Some(list) = self.by_host.get(host)
            {
                for shell in list.iter().filter_map(|index| self.shells.get(*index)) {
                    out.insert(Arc::clone(&shell.key.namespace));
                    named(&mut out, &shell.visibility);
                }
            }
        }
        out.retain(|namespace| shell.visibility.includes(namespace));
        out
    }

    fn choices(&self, shell: &Shell<'_>, hosts: &[HostPattern], client: Client<'_>) -> Choices {
        let chosen = self.virtuals.choose(&shell.key.host, client.namespace);
        // Rules of destinations only matter where routes lead to them.
        let hosts = if chosen.chosen.is_some() { hosts } else { &[] };
        let services = hosts.iter().map(|host| self.find(host, client.namespace));
        Choices {
            rule: self.rule(shell, client),
            destinations: services
                .map(|found| {
                    let shell = self.shells.get(*found.first()?)?;
                    Some((found, self.rule(shell, client).rule))
                })
                .collect(),
            chosen,
        }
    }

    pub(super) fn rule(&self, shell: &Shell<'_>, client: Client<'_>) -> RuleChoice {
        let host = rule_host(shell, self.shells);
        let root = &self.options.root_namespace;
        let own = &shell.key.namespace;
        self.rules
            .choose(&host, client.namespace, client.labels, own, root)
    }

    /// Services of a host that a client sees; where two namespaces register
    /// one port, the client's own stands, else the oldest.
    pub(super) fn find(&self, host: &HostPattern, namespace: &str) -> Vec<usize> {
        let Some(list) = self.by_host.get(host) else {
            return Vec::new();
        };
        let own = |key: &ServiceKey| *key.namespace == *namespace;
        let seen = list
            .iter()
            .filter_map(|index| Some((*index, self.shells.get(*index)?)));
        let mut by_port: BTreeMap<u16, (usize, bool)> = BTreeMap::new();
        for (index, shell) in seen.filter(|(_, s)| s.visibility.includes(namespace)) {
            let own = own(&shell.key);
            let slot = by_port.entry(shell.key.port).or_insert((index, own));
            if own && !slot.1 {
                *slot = (index, true);
            }
        }
        by_port.into_values().map(|(index, _)| index).collect()
    }

    fn view(
        &mut self,
        index: usize,
        shell: &Shell<'d>,
        client: Client<'_>,
        choices: &Choices,
    ) -> (View, Vec<Built>) {
        let rules = self.rules;
        let rule = choices.rule.rule.and_then(|rule| rules.get(rule));
        let mut used = Vec::new();
        let mut get = |this: &mut Self, subset| {
            let rule = choices.rule.rule;
            let built = this
                .clusters
                .get(index, shell, rules, rule, subset, this.options);
            used.push(built.clone());
            built.cluster
        };
        let cluster = get(self, None);
        let mut subsets = BTreeMap::new();
        for (number, (_, subset)) in rule.iter().flat_map(|rule| rule.subsets.iter().enumerate()) {
            if let Some(name) = &subset.name {
                subsets.insert(name.value.clone(), get(self, Some(number)));
            }
        }
        // Subsets act only where a route names them.
        used.truncate(1);
        let virtuals = self.virtuals;
        let service = choices
            .chosen
            .chosen
            .and_then(|chosen| virtuals.get(chosen));
        let (http, tls, tcp) = service.map_or((None, None, None), |service| {
            self.routes(shell, service, client)
        });
        // One that has nothing for this port does not act on it.
        let acts = http.is_some() || tls.is_some() || tcp.is_some();
        let view = View {
            clients: ClientMatch {
                namespace: (!client.anyone).then(|| client.namespace.into()),
                labels: client.labels.cloned().unwrap_or_default(),
            },
            destination_rule: rule.map(|rule| Arc::clone(&rule.document.reference)),
            virtual_service: service
                .filter(|_| acts)
                .map(|service| Arc::clone(&service.document.reference)),
            cluster,
            subsets,
            http,
            tls,
            tcp,
        };
        (view, used)
    }
}

/// A list with no room to spare: there are as many as services.
fn exact<T>(items: impl ExactSizeIterator<Item = T>) -> Vec<T> {
    let mut list = Vec::with_capacity(items.len());
    list.extend(items);
    list
}

/// What a kind of client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choices {
    pub(super) rule: RuleChoice,
    pub(super) chosen: VirtualChoice,
    /// Per destination host: the services and the rule.
    pub(super) destinations: Vec<Option<(Vec<usize>, Option<usize>)>>,
}

/// The host that rules are looked up by: that of the ServiceEntry, also for a
/// part of a wildcard.
fn rule_host(shell: &Shell<'_>, shells: &[Shell<'_>]) -> HostPattern {
    let whole = shell.part_of.and_then(|part| shells.get(part));
    whole.unwrap_or(shell).key.host.clone()
}
