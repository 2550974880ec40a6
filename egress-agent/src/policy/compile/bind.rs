//! Routes bound to clusters, and documents that had to give way.

use std::sync::Arc;

use super::hosts::rule_pattern;
use super::routes;
use super::services::Shell;
use super::views::{Choices, Client, Compiler};
use super::virtual_services::Virtual;
use crate::policy::document::Document;
use crate::policy::model::Protocol;
use crate::policy::routes::{HttpRoute, OpaqueRoute, Target};
use crate::policy::schema::virtual_service::Destination;
use crate::policy::snapshot::Lost;

impl<'d> Compiler<'_, 'd> {
    #[expect(clippy::type_complexity, reason = "the three lists of a view")]
    pub(super) fn routes(
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

    pub(super) fn lose(
        &self,
        choices: &Choices,
        namespace: Option<&Arc<str>>,
        lost: &mut Vec<Lost>,
    ) {
        let mut lose = |document: &Document, reason: String| {
            lost.push(Lost {
                document: Arc::clone(&document.reference),
                namespace: namespace.cloned(),
                reason: reason.into(),
            });
        };
        let rules = &choices.rule;
        let winner = rules.rule.and_then(|rule| self.rules.get(rule));
        if let Some(winner) = winner {
            let id = &winner.document.id;
            for overruled in &winner.overruled {
                let reason = format!(
                    "{id} is older and has the same host, so its trafficPolicy stands whole"
                );
                lose(overruled, reason);
            }
        }
        let reason = winner.map_or_else(String::new, |winner| {
            format!(
                "{} has the same host and goes before it",
                winner.document.id
            )
        });
        for rule in rules.lost.iter().filter_map(|rule| self.rules.get(*rule)) {
            lose(rule.document, reason.clone());
        }
        let virtuals = &choices.chosen;
        let winner = virtuals.chosen.and_then(|one| self.virtuals.get(one));
        let reason = winner.map_or_else(String::new, |winner| {
            format!(
                "{} goes before it: its host is closer, it is exported more narrowly, or it is older",
                winner.document.id
            )
        });
        for other in virtuals
            .lost
            .iter()
            .filter_map(|one| self.virtuals.get(*one))
        {
            lose(other.document, reason.clone());
        }
    }
}
