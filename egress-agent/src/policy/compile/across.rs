//! Rules between documents. They only warn: what a document refers to may
//! come later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Problems;
use super::hosts::{is_cluster_host, rule_pattern};
use super::policy::blocks;
use super::rules::{Rule, Rules};
use super::services::Shell;
use super::virtual_services::VirtualServices;
use crate::policy::Options;
use crate::policy::diagnostic::Span;
use crate::policy::document::Document;
use crate::policy::model::{HostPattern, Resolution};
use crate::policy::schema::destination_rule::Subset;
use crate::policy::schema::tls::Mode;
use crate::policy::schema::virtual_service::Destination;

pub(super) struct Across<'c, 'd> {
    pub(super) shells: &'c [Shell<'d>],
    pub(super) by_host: HashMap<&'c HostPattern, Vec<&'c Shell<'d>>>,
    pub(super) rules: &'c Rules<'d>,
    pub(super) options: &'c Options,
    pub(super) problems: &'c mut Problems,
}

/// Warns about documents that do not fit each other.
pub(super) fn check<'d>(
    shells: &[Shell<'d>],
    rules: &Rules<'d>,
    virtuals: &VirtualServices<'d>,
    options: &Options,
    problems: &mut Problems,
) {
    let mut by_host: HashMap<&HostPattern, Vec<&Shell<'_>>> = HashMap::new();
    for shell in shells {
        by_host.entry(&shell.key.host).or_default().push(shell);
    }
    let mut across = Across {
        shells,
        by_host,
        rules,
        options,
        problems,
    };
    for rule in &rules.list {
        across.rule(rule);
    }
    for service in &virtuals.list {
        for (host, span) in &service.hosts {
            across.virtual_host(service.document, host, *span);
        }
        let namespace = &service.document.id.namespace;
        let mut seen = HashSet::new();
        for destination in service.destinations() {
            if seen.insert(destination.span) {
                across.destination(service.document, namespace, destination);
            }
        }
    }
    across.ports_without_address();
    across.claimed_elsewhere();
    across.shadowed(virtuals);
}

impl<'d> Across<'_, 'd> {
    fn cluster_internal(&mut self, document: &Document, host: &HostPattern, span: Span) -> bool {
        if !is_cluster_host(host, self.options) {
            return false;
        }
        let message = format!("{host} is a host of the cluster, whose traffic is not handled here");
        self.problems
            .warn("cluster-host", document, span, message)
            .help("nothing needs to be done if a mesh handles it");
        true
    }

    fn rule(&mut self, rule: &Rule<'d>) {
        let all = self.shells;
        let exact = self.by_host.get(&rule.host).cloned();
        let shells: Vec<&Shell<'d>> = match (exact, &rule.host) {
            (Some(list), _) => list,
            (None, HostPattern::Exact(_)) => Vec::new(),
            (None, HostPattern::Suffix(suffix)) => {
                let covered = |shell: &&Shell<'_>| match &shell.key.host {
                    HostPattern::Exact(_) => shell
                        .key
                        .host
                        .exact()
                        .is_some_and(|name| rule.host.matches(name)),
                    HostPattern::Suffix(own) => own.ends_with(&**suffix),
                };
                all.iter().filter(covered).collect()
            }
        };
        if shells.is_empty() {
            if self.cluster_internal(rule.document, &rule.host, rule.host_span) {
                return;
            }
            let message = format!(
                "no ServiceEntry registers {}, so this rule acts on nothing yet",
                rule.host
            );
            let mut help = "add a ServiceEntry for the host, or correct the name".to_owned();
            let wide = all.iter().find(|shell| {
                shell.key.host.exact().is_none()
                    && rule
                        .host
                        .exact()
                        .is_some_and(|name| shell.key.host.matches(name))
            });
            if let Some(wide) = wide {
                help = format!(
                    "rules are looked up by the host as registered: write {}",
                    wide.key.host
                );
            }
            self.problems
                .warn(
                    "rule-without-service",
                    rule.document,
                    rule.host_span,
                    message,
                )
                .help(help);
            return;
        }
        self.rule_ports(rule, &shells);
        for shell in &shells {
            self.rule_on_service(rule, None, shell);
            for (document, subset) in &rule.subsets {
                self.subset(document, subset, shell);
                if subset.traffic_policy.is_some() {
                    self.rule_on_service(rule, Some(subset), shell);
                }
            }
        }
    }

    /// Port settings for a port that the service does not have.
    fn rule_ports(&mut self, rule: &Rule<'d>, shells: &[&Shell<'d>]) {
        let policies = rule
            .subsets
            .iter()
            .filter_map(|(document, subset)| Some((*document, subset.traffic_policy.as_deref()?)));
        for (document, policy) in rule.policy.into_iter().chain(policies) {
            for settings in &policy.port_level_settings {
                let Some(port) = settings.port else { continue };
                let number = port.number();
                let has = |shell: &&Shell<'_>| u32::from(shell.key.port) == number;
                if number != 0 && !shells.iter().any(has) {
                    let mut ports: Vec<u16> = shells.iter().map(|s| s.key.port).collect();
                    ports.sort_unstable();
                    ports.dedup();
                    let message = format!("{} has no port {number}", rule.host);
                    self.problems
                        .warn("port-unknown", document, port.span, message)
                        .help(format!("its ports are {}", join(&ports)));
                }
            }
        }
    }

    fn rule_on_service(&mut self, rule: &Rule<'d>, subset: Option<&'d Subset>, shell: &Shell<'d>) {
        let document = rule.policy.map_or(rule.document, |(document, _)| document);
        let blocks = blocks(rule, shell.key.port, subset);
        if let Some(tls) = blocks.tls {
            let span = tls.mode.map_or(tls.span, |mode| mode.span);
            let (host, port) = (&shell.key.host, shell.key.port);
            let speaks_tls = shell.target.protocol.is_tls();
            match tls.mode() {
                Mode::Disable if speaks_tls => {
                    let message = format!(
                        "`tls.mode: DISABLE`: cleartext HTTP to {host}:{port} leaves in the clear, though the port says TLS"
                    );
                    self.problems
                        .warn("tls-off", document, span, message)
                        .help("remove `tls`, and cleartext HTTP leaves as TLS");
                }
                Mode::Disable => {}
                _ if speaks_tls => {
                    let message = format!(
                        "clients that speak TLS to {host}:{port} are passed on as they are: TLS is not wrapped in TLS"
                    );
                    self.problems
                        .warn("tls-in-tls", document, span, message)
                        .help("let clients speak cleartext HTTP to the port, or register a port of protocol HTTP with `targetPort`");
                }
                _ => {}
            }
            if tls.mode() == Mode::IstioMutual && !self.options.mesh_identity {
                let message = "`ISTIO_MUTUAL` needs a mesh identity, and the settings name none: connections are refused";
                self.problems
                    .warn("mesh-identity", document, span, message)
                    .help("name one in the agent's settings, or use MUTUAL");
            }
        }
        let endpoints = &shell.endpoints;
        let (Some(outlier), count) = (blocks.outlier, endpoints.len()) else {
            return;
        };
        if let Some(percent) = outlier.max_ejection_percent
            && shell.target.resolution == Resolution::Static
            && count > 0
            && percent.value > 0
            && usize::try_from(percent.value).is_ok_and(|percent| 100 > percent * count)
        {
            let message = format!(
                "`maxEjectionPercent: {}` of {count} endpoints is less than one, so none is ever ejected",
                percent.value
            );
            self.problems
                .warn("ejection-never", document, percent.span, message)
                .help("raise it, or leave it out: then one in each locality may always be");
        }
        if blocks
            .locality
            .is_some_and(|setting| !setting.failover.is_empty())
        {
            let known = endpoints.iter().any(|e| !e.locality.region.is_empty());
            if count > 0 && !known {
                let message = format!(
                    "failover by region, but no endpoint of {} has a `locality`",
                    shell.key.host
                );
                self.problems
                    .warn(
                        "failover-without-locality",
                        document,
                        rule.host_span,
                        message,
                    )
                    .help("give the endpoints `locality: region/zone`");
            }
        }
    }

    fn subset(&mut self, document: &Document, subset: &Subset, shell: &Shell<'_>) {
        if subset.labels.is_empty() || shell.target.resolution == Resolution::None {
            return;
        }
        let fits = |endpoint: &crate::policy::model::EndpointSpec| {
            let mut labels = subset.labels.iter();
            labels.all(|(key, value)| endpoint.labels.get(&key.value) == Some(&value.value))
        };
        if !shell.endpoints.iter().any(fits) {
            let name = subset.name.as_ref().map_or("", |name| &***name);
            let message = format!(
                "no endpoint of {} has the labels of the subset {name:?}, so it is empty",
                shell.key.host
            );
            self.problems
                .warn("subset-empty", document, subset.span, message)
                .help("give endpoints these labels in the ServiceEntry");
        }
    }

    fn virtual_host(&mut self, document: &Document, host: &HostPattern, span: Span) {
        let known = |shell: &Shell<'_>| {
            shell.key.host == *host
                || host
                    .exact()
                    .is_some_and(|name| shell.key.host.matches(name))
                || shell
                    .key
                    .host
                    .exact()
                    .is_some_and(|name| host.matches(name))
                || matches!((host, &shell.key.host), (HostPattern::Suffix(a), HostPattern::Suffix(b)) if a.ends_with(&**b) || b.ends_with(&**a))
        };
        if self.by_host.contains_key(host)
            || self.shells.iter().any(known)
            || self.cluster_internal(document, host, span)
        {
            return;
        }
        let message =
            format!("no ServiceEntry registers {host}, so its traffic does not come here");
        self.problems
            .warn("host-unregistered", document, span, message)
            .help("add a ServiceEntry for the host, or correct the name");
    }

    fn destination(&mut self, document: &Document, namespace: &Arc<str>, to: &Destination) {
        let Some(written) = &to.host else { return };
        let host = rule_pattern(written, namespace, self.options);
        let registered = |shell: &&Shell<'_>| {
            shell.document.id.kind == crate::policy::schema::meta::Kind::ServiceEntry
        };
        let shells: Vec<&Shell<'_>> = self
            .by_host
            .get(&host)
            .map(|list| list.iter().copied().filter(registered).collect())
            .unwrap_or_default();
        if shells.is_empty() {
            if self.cluster_internal(document, &host, written.span) {
                return;
            }
            let message =
                format!("no ServiceEntry registers the destination {host}: requests get 503 NC");
            self.problems
                .warn("destination-unknown", document, written.span, message)
                .help("add a ServiceEntry for the host, or correct the name");
            return;
        }
        if let Some(port) = to.port {
            let has = |shell: &&&Shell<'_>| u32::from(shell.key.port) == port.number();
            if !shells.iter().any(|shell| has(&shell)) {
                let mut ports: Vec<u16> = shells.iter().map(|shell| shell.key.port).collect();
                ports.sort_unstable();
                ports.dedup();
                let message = format!("{host} has no port {}: requests get 503 NC", port.number());
                self.problems
                    .warn("port-unknown", document, port.span, message)
                    .help(format!("its ports are {}", join(&ports)));
            }
        }
        if let Some(subset) = to.subset.as_ref().filter(|name| !name.is_empty()) {
            let rules = self.rules;
            let names: Vec<&str> = rules
                .about(&host)
                .filter_map(|index| rules.get(index))
                .flat_map(|rule| rule.subsets.iter())
                .filter_map(|(_, subset)| subset.name.as_ref().map(|name| &***name))
                .collect();
            if !names.contains(&&***subset) {
                let message = format!(
                    "no DestinationRule gives {host} the subset {:?}: requests get 503 NC",
                    &***subset
                );
                let help = if names.is_empty() {
                    "add it under `subsets` of a DestinationRule".to_owned()
                } else {
                    format!("subsets of this host are {}", names.join(", "))
                };
                self.problems
                    .warn("subset-unknown", document, subset.span, message)
                    .help(help);
            }
        }
    }
}

fn join(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    ports.join(", ")
}
