//! DestinationRules: merging, and which one a client gets for a host.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::hosts::{HostIndex, rule_pattern};
use super::{Problems, visibility};
use crate::policy::Options;
use crate::policy::diagnostic::Span;
use crate::policy::document::{Document, Spec};
use crate::policy::model::{HostPattern, Labels, Visibility};
use crate::policy::schema::destination_rule::{DestinationRule, Subset, TrafficPolicy};

/// A DestinationRule, or several that were merged.
#[derive(Debug)]
pub(super) struct Rule<'d> {
    /// The oldest, which gives it its name.
    pub(super) document: &'d Arc<Document>,
    /// The document whose `trafficPolicy` counts, and the policy.
    pub(super) policy: Option<(&'d Arc<Document>, &'d TrafficPolicy)>,
    /// Younger rules of the same host, whose `trafficPolicy` does not count.
    pub(super) overruled: Vec<&'d Arc<Document>>,
    /// Subsets, of the older ones first.
    pub(super) subsets: Vec<(&'d Arc<Document>, &'d Subset)>,
    /// `host`, whole.
    pub(super) host: HostPattern,
    /// Where `host` is.
    pub(super) host_span: Span,
    /// `exportTo`.
    pub(super) visibility: Visibility,
    /// `workloadSelector`; `None` when there is none.
    pub(super) selector: Option<Labels>,
}

impl Rule<'_> {
    pub(super) fn namespace(&self) -> &Arc<str> {
        &self.document.id.namespace
    }

    /// Seen by its own namespace alone.
    fn is_private(&self) -> bool {
        match &self.visibility {
            Visibility::All => false,
            Visibility::Namespaces(list) => list.iter().all(|name| name == self.namespace()),
        }
    }
}

/// All rules, and ways to find them.
#[derive(Debug, Default)]
pub(super) struct Rules<'d> {
    pub(super) list: Vec<Rule<'d>>,
    all: HostIndex<usize>,
    by_namespace: HashMap<Arc<str>, HostIndex<usize>>,
}

/// What a rule was chosen from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// The rule.
    pub(super) rule: Option<usize>,
    /// Rules of the same host that had to give way.
    pub(super) lost: Vec<usize>,
}

impl<'d> Rules<'d> {
    /// Takes the rules among `documents`, which are ordered by age.
    pub(super) fn new(
        documents: &[&'d Arc<Document>],
        options: &Options,
        problems: &mut Problems,
    ) -> Self {
        let mut rules = Self::default();
        // Same host, namespace, exportTo and selector: one rule.
        let mut places: HashMap<(Arc<str>, HostPattern, String), usize> = HashMap::new();
        for &document in documents {
            let Spec::DestinationRule(spec) = &document.spec else {
                continue;
            };
            let Some(host) = &spec.host else { continue };
            let pattern = rule_pattern(host, &document.id.namespace, options);
            let visibility = visibility(&spec.export_to, &document.id.namespace);
            let selector = spec.workload_selector.as_ref().map(|selector| {
                let labels = selector.match_labels.iter();
                labels
                    .map(|(k, v)| (k.value.clone(), v.value.clone()))
                    .collect::<Labels>()
            });
            let rest = if visibility == Visibility::All && selector.is_none() {
                String::new()
            } else {
                format!("{visibility:?} {selector:?}")
            };
            let key = (Arc::clone(&document.id.namespace), pattern.clone(), rest);
            if let Some(&place) = places.get(&key) {
                if let Some(rule) = rules.list.get_mut(place) {
                    merge(rule, document, spec, host.span, problems);
                }
                continue;
            }
            let place = rules.list.len();
            places.insert(key, place);
            rules.all.insert(&pattern, place);
            rules
                .by_namespace
                .entry(Arc::clone(&document.id.namespace))
                .or_default()
                .insert(&pattern, place);
            rules.list.push(Rule {
                overruled: Vec::new(),
                document,
                policy: spec
                    .traffic_policy
                    .as_deref()
                    .map(|policy| (document, policy)),
                subsets: spec
                    .subsets
                    .iter()
                    .map(|subset| (document, subset))
                    .collect(),
                host: pattern,
                host_span: host.span,
                visibility,
                selector,
            });
        }
        rules
    }

    pub(super) fn get(&self, index: usize) -> Option<&Rule<'d>> {
        self.list.get(index)
    }

    /// Every rule, of any namespace, that is about a host.
    pub(super) fn about<'s>(&'s self, host: &'s HostPattern) -> impl Iterator<Item = usize> {
        self.all.covering(host).flatten().copied()
    }

    /// The rule that a client gets for a host of a service in
    /// `service_namespace`: of its own namespace, else one that the service's
    /// namespace exports, else one that the root namespace does. `labels` are
    /// the client's; `None` fits no workloadSelector.
    pub(super) fn choose(
        &self,
        host: &HostPattern,
        client: &str,
        labels: Option<&Labels>,
        service_namespace: &str,
        root: &str,
    ) -> Choice {
        if let Some(choice) = self.own(host, client, labels) {
            return choice;
        }
        for namespace in [service_namespace, root] {
            if let Some(choice) = self.exported(host, client, namespace) {
                return choice;
            }
        }
        Choice::default()
    }

    fn own(&self, host: &HostPattern, client: &str, labels: Option<&Labels>) -> Option<Choice> {
        let index = self.by_namespace.get(client)?;
        let fits = |rule: &Rule<'_>| {
            rule.visibility.includes(client)
                && rule.selector.as_ref().is_none_or(|selector| {
                    let has = |labels: &Labels| {
                        selector
                            .iter()
                            .all(|(key, value)| labels.get(key) == Some(value))
                    };
                    labels.is_some_and(has)
                })
        };
        index
            .covering(host)
            .map(|list| self.filter(list, fits))
            .find(|list| !list.is_empty())
            .and_then(|list| self.best(&list))
    }

    /// The best host is found first, and then the client must see the rule.
    fn exported(&self, host: &HostPattern, client: &str, namespace: &str) -> Option<Choice> {
        let index = self.by_namespace.get(namespace)?;
        let list = index
            .covering(host)
            .map(|list| self.filter(list, |rule| !rule.is_private() && rule.selector.is_none()))
            .find(|list| !list.is_empty())?;
        self.best(&self.filter(&list, |rule| rule.visibility.includes(client)))
    }

    fn filter(&self, list: &[usize], keep: impl Fn(&Rule<'_>) -> bool) -> Vec<usize> {
        let keep = |index: &&usize| self.get(**index).is_some_and(&keep);
        list.iter().filter(keep).copied().collect()
    }

    /// Of rules with one host: one with a selector, else the youngest.
    fn best(&self, list: &[usize]) -> Option<Choice> {
        let rank = |index: &usize| {
            let rule = self.get(*index);
            (
                rule.and_then(|r| r.selector.as_ref()).map(|s| s.len() + 1),
                *index,
            )
        };
        // The list is in order of age, so a higher index is younger.
        let rule = list.iter().copied().max_by_key(rank)?;
        Some(Choice {
            rule: Some(rule),
            lost: list
                .iter()
                .copied()
                .filter(|other| *other != rule)
                .collect(),
        })
    }

    /// Selectors of rules about a host in a namespace, the longest first.
    pub(super) fn selectors<'s>(
        &'s self,
        hosts: &'s [HostPattern],
        namespace: &'s str,
    ) -> BTreeMap<(usize, String), &'s Labels> {
        let mut out = BTreeMap::new();
        for host in hosts {
            for index in self.about(host) {
                if let Some(rule) = self.get(index)
                    && **rule.namespace() == *namespace
                    && let Some(selector) = &rule.selector
                    && !selector.is_empty()
                {
                    let order = usize::MAX - selector.len();
                    out.insert((order, format!("{selector:?}")), selector);
                }
            }
        }
        out
    }
}

/// A younger rule of the same host: its policy counts only where the older has
/// none, and its subsets are added.
fn merge<'d>(
    rule: &mut Rule<'d>,
    document: &'d Arc<Document>,
    spec: &'d DestinationRule,
    span: Span,
    problems: &mut Problems,
) {
    let older = rule.document;
    if let Some(policy) = &spec.traffic_policy {
        if rule.policy.is_some() {
            rule.overruled.push(document);
            let message = format!(
                "the trafficPolicy of this rule is ignored: {} is older and has the same host",
                older.id
            );
            problems
                .warn("rule-merged", document, span, message)
                .help("put both into one DestinationRule")
                .related(&older.source, rule.host_span, "the older rule");
        } else {
            rule.policy = Some((document, policy));
        }
    }
    for subset in &spec.subsets {
        let same = |(_, other): &(_, &Subset)| other.name == subset.name;
        if rule.subsets.iter().any(same) {
            let name = subset.name.as_ref().map_or("", |name| &***name);
            let message = format!(
                "the subset {name:?} is ignored: {} has one of that name",
                older.id
            );
            problems
                .warn("rule-merged", document, subset.span, message)
                .help("give it another name");
        } else {
            rule.subsets.push((document, subset));
        }
    }
}
