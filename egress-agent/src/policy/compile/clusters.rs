//! Clusters: a service, a rule and a subset, each built once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::policy::{Blocks4, blocks, build, has_port};
use super::rules::{Rule, Rules};
use super::services::Shell;
use super::tls::{Facts, guess, plain};
use crate::policy::Options;
use crate::policy::model::{EndpointSpec, TrafficPolicy};
use crate::policy::schema::destination_rule::Subset;
use crate::policy::schema::tls::Mode;
use crate::policy::snapshot::{Cluster, ClusterKey, ClusterTarget};

/// What was built, with the facts that decide about the path.
#[derive(Clone, Debug)]
pub(super) struct Built {
    pub(super) cluster: Arc<Cluster>,
    /// A setting that only acts on HTTP is written for the port.
    pub(super) http_setting: Option<&'static str>,
    /// `tcp.idleTimeout` is written.
    pub(super) idle_timeout: bool,
    /// TLS is originated because a rule says so.
    pub(super) originates_tls: bool,
}

/// Places for clusters in [`Snapshot::clusters`](crate::policy::snapshot::Snapshot).
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Places that are free, the first one last.
    free: Vec<usize>,
    next: usize,
}

impl Slots {
    /// The free places first, then those from `next` up.
    pub(super) fn new(mut free: Vec<usize>, next: usize) -> Self {
        free.sort_unstable_by(|a, b| b.cmp(a));
        Self { free, next }
    }

    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

/// Builds clusters and keeps them.
#[derive(Default)]
pub(super) struct Clusters {
    pub(super) list: Vec<Arc<Cluster>>,
    slots: Slots,
    known: HashMap<(usize, Option<usize>, Option<usize>), Built>,
    /// Policies of a rule that do not depend on the service.
    policies: HashMap<(Option<usize>, Option<usize>, u16), Arc<TrafficPolicy>>,
    pub(super) shared: Policies,
}

/// Every policy once, whichever rules say it: in most places few differ.
#[derive(Debug, Default)]
pub(super) struct Policies {
    known: HashSet<Arc<TrafficPolicy>>,
    /// How many there were after the last look for unused ones.
    used: usize,
}

impl Policies {
    fn share(&mut self, policy: TrafficPolicy) -> Arc<TrafficPolicy> {
        if let Some(known) = self.known.get(&policy) {
            return Arc::clone(known);
        }
        let policy = Arc::new(policy);
        self.known.insert(Arc::clone(&policy));
        policy
    }

    /// Forgets what nobody uses any more, now and then.
    pub(super) fn tidy(&mut self) {
        if self.known.len() > 2 * self.used + 64 {
            self.known.retain(|policy| Arc::strong_count(policy) > 1);
            self.used = self.known.len();
        }
    }
}

impl Clusters {
    pub(super) fn new(slots: Slots, shared: Policies) -> Self {
        Self {
            slots,
            shared,
            ..Self::default()
        }
    }

    /// The cluster of a service under a rule; `subset` counts the rule's.
    pub(super) fn get(
        &mut self,
        index: usize,
        shell: &Shell<'_>,
        rules: &Rules<'_>,
        rule: Option<usize>,
        subset: Option<usize>,
        options: &Options,
    ) -> Built {
        // A part of a wildcard service shares its clusters.
        let index = shell.part_of.unwrap_or(index);
        let key = (index, rule, subset);
        if let Some(built) = self.known.get(&key) {
            return built.clone();
        }
        let found = rule.and_then(|rule| rules.get(rule));
        let part = subset.and_then(|subset| found?.subsets.get(subset));
        let built = self.build(shell, found, part.map(|(_, subset)| *subset), key, options);
        self.known.insert(key, built.clone());
        built
    }

    fn build(
        &mut self,
        shell: &Shell<'_>,
        rule: Option<&Rule<'_>>,
        subset: Option<&Subset>,
        (_, rule_index, subset_index): (usize, Option<usize>, Option<usize>),
        options: &Options,
    ) -> Built {
        let port = shell.target.port;
        let blocks = rule.map_or_else(Blocks4::default, |rule| blocks(rule, port, subset));
        let facts = Facts {
            rule: rule.map(|rule| rule.policy.map_or(rule.document, |(document, _)| document)),
            entry: shell.document,
            subject_alt_names: shell.subject_alt_names,
            guessed: guess(shell.target.protocol, &shell.port_name),
            options,
        };
        let mode = blocks.tls.map(crate::policy::schema::tls::Tls::mode);
        let make = || {
            let mut policy = build(&blocks, &facts);
            // Names that the ServiceEntry gives count for its own TLS too.
            if mode.is_none() && shell.target.https_port && !shell.subject_alt_names.is_empty() {
                policy.tls = Some(plain(&facts));
            }
            policy
        };
        let independent = shell.subject_alt_names.is_empty()
            && shell.document.annotations.is_empty()
            && facts.guessed.is_none();
        let policy = if independent {
            // Ports without settings of their own share one.
            let own = rule.is_some_and(|rule| has_port(rule, subset, port));
            let key = (rule_index, subset_index, if own { port } else { 0 });
            let shared = &mut self.shared;
            let policy = self.policies.entry(key);
            Arc::clone(policy.or_insert_with(|| shared.share(make())))
        } else {
            self.shared.share(make())
        };
        let http = blocks.pool.and_then(|pool| pool.http.as_deref());
        let hashes = blocks
            .balancer
            .and_then(|balancer| balancer.consistent_hash.as_deref());
        let http_setting = if http.is_some() {
            Some("connectionPool.http")
        } else if policy.retry_budget.is_some() {
            Some("retryBudget")
        } else if hashes.is_some_and(|hash| hash.use_source_ip.is_none()) {
            Some("loadBalancer.consistentHash")
        } else {
            None
        };
        let target = if mode == Some(Mode::Disable) && shell.target.https_port {
            // Written out, it is honoured.
            Arc::new(ClusterTarget {
                https_port: false,
                ..copy(&shell.target)
            })
        } else {
            Arc::clone(&shell.target)
        };
        let cluster = Arc::new(Cluster {
            index: self.slots.take(),
            key: ClusterKey {
                service: shell.key.clone(),
                subset: subset
                    .and_then(|subset| subset.name.as_ref())
                    .map(|name| name.value.clone())
                    .unwrap_or_default(),
                rule: rule.map_or_else(Box::default, |rule| {
                    let id = &rule.document.id;
                    format!("{}/{}", id.namespace, id.name).into()
                }),
            },
            target,
            endpoints: endpoints(shell, subset),
            policy,
        });
        self.list.push(Arc::clone(&cluster));
        Built {
            originates_tls: mode.is_some_and(|mode| mode != Mode::Disable),
            idle_timeout: blocks.idle_timeout.is_some(),
            http_setting,
            cluster,
        }
    }
}

fn copy(target: &ClusterTarget) -> ClusterTarget {
    ClusterTarget {
        service: target.service,
        host: target.host.clone(),
        port: target.port,
        target_port: target.target_port,
        protocol: target.protocol,
        resolution: target.resolution,
        https_port: target.https_port,
    }
}

/// Endpoints whose labels contain those of the subset.
fn endpoints(shell: &Shell<'_>, subset: Option<&Subset>) -> Arc<[EndpointSpec]> {
    let Some(subset) = subset else {
        return Arc::clone(&shell.endpoints);
    };
    let fits = |endpoint: &&EndpointSpec| {
        let mut wanted = subset.labels.iter();
        wanted.all(|(key, value)| endpoint.labels.get(&key.value) == Some(&value.value))
    };
    shell.endpoints.iter().filter(fits).cloned().collect()
}
