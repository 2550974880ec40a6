//! Priority levels and shares by locality (`localityLbSetting`, ISTIO-API
//! section 8; Istio's `loadbalancer` package).

use super::config::Config;
use super::host::Endpoint;
use crate::policy::model::{Labels, Locality, LocalityPattern, TrafficPolicy};

/// The labels that Kubernetes and Istio keep a locality in.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";

/// The value of a label, where locality stands for the labels of its own when
/// they are not written; absent is empty.
pub(super) fn label<'a>(labels: &'a Labels, locality: &'a Locality, key: &str) -> &'a str {
    match (labels.get(key), key) {
        (Some(value), _) => value,
        (None, REGION) => &locality.region,
        (None, ZONE) => &locality.zone,
        (None, SUBZONE) => &locality.subzone,
        (None, _) => "",
    }
}

/// The labels of the client that decide its priorities.
pub(super) fn client_keys(policy: &TrafficPolicy) -> Box<[Box<str>]> {
    if !fails_over(policy) {
        return Box::default();
    }
    policy
        .load_balancer
        .locality
        .failover_priority
        .iter()
        .filter(|(_, value)| value.is_none())
        .map(|(key, _)| key.clone())
        .collect()
}

/// Whether priorities apply: locality balancing is on, nothing is distributed
/// by hand, and something can take an endpoint out. Istio asks for
/// `outlierDetection`; an active health check serves as well.
fn fails_over(policy: &TrafficPolicy) -> bool {
    let locality = &policy.load_balancer.locality;
    locality.enabled
        && locality.distribute.is_empty()
        && (policy.outlier_detection.is_some() || policy.health_check.is_some())
}

/// Rank of an endpoint for a client that has `values` for the client keys: the
/// smaller, the earlier it is used. Ranks may have gaps.
pub(super) fn rank(config: &Config, values: &[Box<str>], endpoint: &Endpoint) -> u32 {
    let policy = config.policy();
    if !fails_over(policy) {
        return 0;
    }
    let setting = &policy.load_balancer.locality;
    if setting.failover_priority.is_empty() {
        return rank_by_locality(config, endpoint);
    }
    let mut values = values.iter();
    let wanted = setting.failover_priority.iter().map(|(key, value)| {
        let value = match value {
            Some(value) => &**value,
            None => values.next().map_or("", |value| &**value),
        };
        (&**key, value)
    });
    let leading = wanted
        .take_while(|(key, value)| label(&endpoint.labels, &endpoint.locality, key) == *value)
        .count();
    let rank = u32::try_from(setting.failover_priority.len() - leading).unwrap_or(u32::MAX);
    if setting.failover.is_empty() {
        rank
    } else {
        // Both written: labels first, then regions within each of them.
        rank.saturating_mul(5)
            .saturating_add(rank_by_locality(config, endpoint))
    }
}

/// 0 for the same subzone, 1 zone, 2 region, else 3, and 4 when `failover`
/// names another region for the client's.
fn rank_by_locality(config: &Config, endpoint: &Endpoint) -> u32 {
    let (own, there) = (config.locality(), &endpoint.locality);
    if own.region != there.region {
        let failover = &config.policy().load_balancer.locality.failover;
        let to = failover.iter().find(|(from, _)| *from == own.region);
        return match to {
            Some((_, to)) if *to != there.region => 4,
            _ => 3,
        };
    }
    match (own.zone == there.zone, own.subzone == there.subzone) {
        (false, _) => 2,
        (true, false) => 1,
        (true, true) => 0,
    }
}

/// The shares that `distribute` gives for this node's locality; `None` when it
/// says nothing about it.
pub(super) fn distribution(config: &Config) -> Option<&[(LocalityPattern, u32)]> {
    let setting = &config.policy().load_balancer.locality;
    if !setting.enabled {
        return None;
    }
    setting
        .distribute
        .iter()
        .find(|(from, _)| covers(from, config.locality()))
        .map(|(_, to)| &**to)
}

/// Whether a pattern covers a locality: every part before its wildcard or end
/// is the same.
pub(super) fn covers(pattern: &LocalityPattern, locality: &Locality) -> bool {
    let parts = [&locality.region, &locality.zone, &locality.subzone];
    pattern
        .parts
        .iter()
        .zip(parts)
        .all(|(wanted, part)| **wanted == *"*" || wanted == part)
}
