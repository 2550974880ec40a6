//! What each kind of client gets from a service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Problems;
use super::clusters::{Built, Clusters, Slots};
use super::hosts::rule_pattern;
use super::path;
use super::routes::{self, Expressions};
use super::rules::{Choice as RuleChoice, Rules};
use super::services::Shell;
use super::virtual_services::{Choice as VirtualChoice, Virtual, VirtualServices};
use crate::policy::Options;
use crate::policy::model::{HostPattern, Labels, Protocol, Visibility};
use crate::policy::routes::{HttpRoute, OpaqueRoute, Target};
use crate::policy::schema::virtual_service::Destination;
use crate::policy::snapshot::{ClientMatch, Cluster, Lost, Service, ServiceKey, View};

/// Compiles services one by one.
pub(super) struct Compiler<'c, 'd> {
    options: &'c Options,
    rules: &'c Rules<'d>,
    virtuals: &'c VirtualServices<'d>,
    shells: &'c [Shell<'d>],
    /// Services by host, in the order of age.
    by_host: HashMap<&'c HostPattern, Vec<usize>>,
    clusters: Clusters,
    expressions: Expressions,
    problems: &'c mut Problems,
}

/// A kind of client.
#[derive(Clone, Copy)]
struct Client<'a> {
    /// Its namespace; empty: one that no document names.
    namespace: &'a str,
    labels: Option<&'a Labels>,
    /// It stands for all clients that no other kind fits.
    anyone: bool,
}

impl<'c, 'd> Compiler<'c, 'd> {
    pub(super) fn new(
        options: &'c Options,
        rules: &'c Rules<'d>,
        virtuals: &'c VirtualServices<'d>,
        shells: &'c [Shell<'d>],
        slots: Slots,
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
            clusters: Clusters::new(slots),
            expressions: Expressions::default(),
            problems,
        }
    }

    pub(super) fn into_clusters(self) -> Vec<Arc<Cluster>> {
        self.clusters.list
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
            entry: shell.document.reference.clone(),
            port_name: Arc::clone(&shell.port_name),
            protocol: shell.target.protocol,
            resolution: shell.target.resolution,
            target_port: shell.target.target_port,
            addresses: shell.addresses.clone(),
            virtual_address: shell.virtual_address,
            endpoints: shell.endpoints(),
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

    fn rule(&self, shell: &Shell<'_>, client: Client<'_>) -> RuleChoice {
        let host = rule_host(shell, self.shells);
        let root = &self.options.root_namespace;
        let own = &shell.key.namespace;
        self.rules
            .choose(&host, client.namespace, client.labels, own, root)
    }

    /// Services of a host that a client sees; where two namespaces register
    /// one port, the client's own stands, else the oldest.
    fn find(&self, host: &HostPattern, namespace: &str) -> Vec<usize> {
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
            destination_rule: rule.map(|rule| rule.document.reference.clone()),
            virtual_service: service
                .filter(|_| acts)
                .map(|service| service.document.reference.clone()),
            cluster,
            subsets,
            http,
            tls,
            tcp,
        };
        (view, used)
    }

    #[expect(clippy::type_complexity, reason = "the three lists of a view")]
    fn routes(
        &mut self,
        shell: &Shell<'d>,
        service: &Virtual<'d>,
        client: Client<'_>,
    ) -> (
        Option<Arc<[HttpRoute]>>,
        Option<Arc<[OpaqueRoute]>>,
        Option<Arc<[OpaqueRoute]>>,
    ) {
        let protocol = shell.target.protocol;
        let port = shell.key.port;
        let sniffed = protocol.is_tls() || protocol == Protocol::Unset;
        let mut expressions = std::mem::take(&mut self.expressions);
        let mut bind = |destination: &Destination| self.bind(destination, service, port, client);
        let mut http: Vec<HttpRoute> = Vec::new();
        if protocol.is_http() || sniffed {
            for route in &service.spec.http {
                http.extend(routes::http(route, port, &mut expressions, &mut bind));
            }
        }
        let mut opaque = |list: &[_], wanted: bool| -> Vec<OpaqueRoute> {
            let list = list.iter().filter(|_| wanted);
            list.filter_map(|route| routes::opaque(route, port, &mut bind))
                .collect()
        };
        let tls = opaque(&service.spec.tls, sniffed);
        let tcp = opaque(
            &service.spec.tcp,
            !protocol.is_http() && protocol != Protocol::Udp,
        );
        self.expressions = expressions;
        let some = |list: Vec<OpaqueRoute>| (!list.is_empty()).then(|| Arc::from(list));
        (
            (!http.is_empty()).then(|| Arc::from(http)),
            some(tls),
            some(tcp),
        )
    }

    /// A destination as a cluster, for a client: the service it names, on the
    /// port it names, under the rule of that host.
    fn bind(
        &mut self,
        destination: &Destination,
        service: &Virtual<'_>,
        port: u16,
        client: Client<'_>,
    ) -> Target {
        let missing = |text: String| Target::Missing(text.into());
        let Some(written) = &destination.host else {
            return missing("no host".into());
        };
        let host = rule_pattern(written, &service.document.id.namespace, self.options);
        let found = self.find(&host, client.namespace);
        if found.is_empty() {
            return missing(format!("no ServiceEntry registers {host}"));
        }
        let shells = self.shells;
        let on = |port: u16| {
            let mut found = found.iter();
            found.find(|index| shells.get(**index).is_some_and(|s| s.key.port == port))
        };
        let chosen = match destination.port {
            Some(port) => u16::try_from(port.number()).ok().and_then(on),
            None if found.len() == 1 => found.first(),
            None => on(port),
        };
        let Some((&index, shell)) = chosen.and_then(|index| Some((index, shells.get(*index)?)))
        else {
            let wanted = destination
                .port
                .map_or(u32::from(port), |port| port.number());
            return missing(format!("{host} has no port {wanted}"));
        };
        let rule = self.rule(shell, client).rule;
        let name = destination.subset.as_ref().filter(|name| !name.is_empty());
        let subset = match name {
            None => None,
            Some(name) => {
                let rule = rule.and_then(|rule| self.rules.get(rule));
                let mut subsets = rule.iter().flat_map(|rule| rule.subsets.iter());
                let same = subsets.position(|(_, subset)| {
                    subset
                        .name
                        .as_ref()
                        .is_some_and(|known| known.value == name.value)
                });
                match same {
                    Some(number) => Some(number),
                    None => {
                        return missing(format!(
                            "no DestinationRule gives {host} the subset {}",
                            &***name
                        ));
                    }
                }
            }
        };
        let options = self.options;
        let built = self
            .clusters
            .get(index, shell, self.rules, rule, subset, options);
        Target::Cluster(built.cluster)
    }

    fn lose(&self, choices: &Choices, namespace: Option<&Arc<str>>, lost: &mut Vec<Lost>) {
        let namespace = namespace.cloned();
        let winner = choices.rule.rule.and_then(|rule| self.rules.get(rule));
        for overruled in winner.iter().flat_map(|winner| winner.overruled.iter()) {
            let older = winner.map_or_else(String::new, |winner| winner.document.id.to_string());
            lost.push(Lost {
                document: overruled.reference.clone(),
                namespace: namespace.clone(),
                reason: format!(
                    "{older} is older and has the same host, so its trafficPolicy stands whole"
                )
                .into(),
            });
        }
        for rule in choices
            .rule
            .lost
            .iter()
            .filter_map(|rule| self.rules.get(*rule))
        {
            let reason = winner.map_or_else(String::new, |winner| {
                format!(
                    "{} has the same host and goes before it",
                    winner.document.id
                )
            });
            lost.push(Lost {
                document: rule.document.reference.clone(),
                namespace: namespace.clone(),
                reason: reason.into(),
            });
        }
        let winner = choices
            .chosen
            .chosen
            .and_then(|chosen| self.virtuals.get(chosen));
        for other in choices
            .chosen
            .lost
            .iter()
            .filter_map(|other| self.virtuals.get(*other))
        {
            let reason = winner.map_or_else(String::new, |winner| {
                format!(
                    "{} goes before it: its host is closer, it is exported more narrowly, or it is older",
                    winner.document.id
                )
            });
            lost.push(Lost {
                document: other.document.reference.clone(),
                namespace: namespace.clone(),
                reason: reason.into(),
            });
        }
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
struct Choices {
    rule: RuleChoice,
    chosen: VirtualChoice,
    /// Per destination host: the services and the rule.
    destinations: Vec<Option<(Vec<usize>, Option<usize>)>>,
}

/// The host that rules are looked up by: that of the ServiceEntry, also for a
/// part of a wildcard.
fn rule_host(shell: &Shell<'_>, shells: &[Shell<'_>]) -> HostPattern {
    let whole = shell.part_of.and_then(|part| shells.get(part));
    whole.unwrap_or(shell).key.host.clone()
}
