//! The immutable table that picks read: endpoints by priority level and
//! locality, with the share of each, prepared when something changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::config::Config;
use super::error::PickError;
use super::group::Group;
use super::hash::{HashTable, remix};
use super::host::{Endpoint, EndpointId};
use super::load::{self, Health, Load};
use super::locality;
use super::picked::PickContext;
use super::warmup;
use super::weighted::{Cursor, Step, Weights, scale};
use crate::policy::model::{Algorithm, Locality};

/// Re-picks to avoid endpoints that were tried (Envoy's
/// `host_selection_retry_max_attempts` as Istio sets it).
const REPICKS: usize = 5;
/// An endpoint and when its warm-up began.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) since: Instant,
}

#[derive(Debug)]
pub(super) struct Table {
    algorithm: Algorithm,
    pub(super) levels: Box<[Level]>,
}

/// Endpoints of one priority.
#[derive(Debug)]
pub(super) struct Level {
    /// All of them, healthy or not; what `hash` points to.
    pub(super) all: Box<[Arc<Endpoint>]>,
    pub(super) health: Health,
    pub(super) load: Load,
    /// Those in use, by locality under `distribute`, else in one group.
    groups: Box<[Group]>,
    shares: Weights,
    hash: Option<Arc<HashTable>>,
}

impl Table {
    pub(super) fn build(
        config: &Config,
        client_values: &[Box<str>],
        candidates: &[Candidate],
        now: Instant,
        previous: Option<&Self>,
    ) -> Self {
        let mut ranked: BTreeMap<u32, Vec<&Candidate>> = BTreeMap::new();
        let distribution = locality::distribution(config);
        let mut shares: BTreeMap<&Locality, u64> = BTreeMap::new();
        for candidate in candidates {
            let endpoint = &candidate.endpoint;
            let rank = match distribution {
                Some(_) => 0,
                None => locality::rank(config, client_values, endpoint),
            };
            ranked.entry(rank).or_default().push(candidate);
        }
        if let Some(distribution) = distribution {
            shares = shares_of(distribution, candidates);
            for list in ranked.values_mut() {
                list.retain(|c| shares.contains_key(&c.endpoint.locality));
            }
            ranked.retain(|_, list| !list.is_empty());
        }
        let health: Vec<Health> = ranked.values().map(|list| health_of(list)).collect();
        let loads = load::spread(&health, config.panic_percent());
        let levels = ranked
            .into_values()
            .zip(health.into_iter().zip(loads))
            .enumerate()
            .map(|(index, (list, (health, load)))| {
                let previous = previous.and_then(|table| table.levels.get(index));
                let distributed = distribution.is_some().then_some(&shares);
                Level::build(config, &list, health, load, distributed, now, previous)
            })
            .collect();
        Self {
            algorithm: config.policy().load_balancer.algorithm.clone(),
            levels,
        }
    }

    pub(super) fn pick(
        &self,
        context: &PickContext<'_>,
        cursor: &Cursor,
    ) -> Result<&Arc<Endpoint>, PickError> {
        if self.levels.is_empty() {
            return Err(PickError::Empty);
        }
        let hashes = matches!(self.algorithm, Algorithm::Hash { .. });
        let hash = context.hash.filter(|_| hashes);
        // A key belongs to one endpoint, tried or not.
        let tried = if hashes { &[] } else { context.tried };
        for _ in 0..=REPICKS {
            let step = self.step(cursor);
            let level = self.level(context, hash, step)?;
            let Some(endpoint) = self.choose(level, hash, step) else {
                continue;
            };
            let usable = level.load.panic || endpoint.is_available();
            if usable && !tried.contains(&endpoint.id) {
                return Ok(endpoint);
            }
        }
        // All were tried, or hardly any is left since the table was built.
        let level = self.level(context, hash, self.step(cursor))?;
        level.any(tried).ok_or(PickError::NoHealthy)
    }

    /// The next step where turns are taken; LEAST_REQUEST and RANDOM among
    /// equals of one level draw lots instead, which touches no shared line.
    fn step(&self, cursor: &Cursor) -> Step {
        let one = self.levels.len() == 1 && self.levels[0].groups.len() <= 1;
        match self.algorithm {
            Algorithm::LeastRequest if one && self.levels[0].is_equal() => Step::random(),
            Algorithm::Random | Algorithm::Hash { .. } if one => Step::random(),
            _ => cursor.step(),
        }
    }

    fn level(
        &self,
        context: &PickContext<'_>,
        hash: Option<u64>,
        step: Step,
    ) -> Result<&Level, PickError> {
        if let [only] = &*self.levels {
            return if only.load.percent > 0 {
                Ok(only)
            } else {
                Err(PickError::NoHealthy)
            };
        }
        let point = scale(
            hash.map_or_else(|| step.level(), |hash| remix(hash, 0)),
            100,
        );
        let point = u32::try_from(point).unwrap_or(0);
        if context.remote_localities && !context.tried.is_empty() {
            let tried = |index: usize| self.levels[index].holds(context.tried);
            let capacities = self.levels.iter().map(|level| level.load.capacity);
            if let Some(other) = load::choose_other(&capacities, tried, point) {
                return Ok(&self.levels[other]);
            }
        }
        load::choose(self.levels.iter().map(|level| level.load.percent), point)
            .map(|index| &self.levels[index])
            .ok_or(PickError::NoHealthy)
    }

    fn choose<'a>(
        &self,
        level: &'a Level,
        hash: Option<u64>,
        step: Step,
    ) -> Option<&'a Arc<Endpoint>> {
        if let (Some(hash), Some(table)) = (hash, &level.hash) {
            let usable = |index: usize| level.load.panic || level.all[index].is_available();
            return table.get(hash, usable).map(|index| &level.all[index]);
        }
        let group = match &*level.groups {
            [only] => only,
            groups => &groups[level.shares.at(step.locality())?],
        };
        match self.algorithm {
            Algorithm::LeastRequest => group.least_request(step),
            Algorithm::Random | Algorithm::Hash { .. } => group.random(),
            Algorithm::RoundRobin | Algorithm::Passthrough => {
                group.weights.turn(step).map(|index| &group.hosts[index])
            }
        }
    }

    /// Share of the load of each endpoint in use, summing to one.
    pub(super) fn shares(&self) -> Vec<(Arc<Endpoint>, f64)> {
        let mut shares = Vec::new();
        for level in &self.levels {
            let places = 0..level.groups.len();
            let total: u64 = places.map(|index| level.shares.weight(index)).sum();
            for (index, group) in level.groups.iter().enumerate() {
                let part = ratio(level.shares.weight(index), total) * f64::from(level.load.percent)
                    / 100.0;
                let weight = |index| group.weights.weight(index);
                let sum: u64 = (0..group.hosts.len()).map(weight).sum();
                for (index, host) in group.hosts.iter().enumerate() {
                    shares.push((Arc::clone(host), part * ratio(weight(index), sum)));
                }
            }
        }
        shares
    }
}

impl Level {
    fn build(
        config: &Config,
        list: &[&Candidate],
        health: Health,
        load: Load,
        shares: Option<&BTreeMap<&Locality, u64>>,
        now: Instant,
        previous: Option<&Self>,
    ) -> Self {
        let all: Box<[Arc<Endpoint>]> = list.iter().map(|c| Arc::clone(&c.endpoint)).collect();
        let hash = match config.policy().load_balancer.algorithm {
            Algorithm::Hash { table, .. } => {
                let weights = hash_weights(&all, shares);
                let previous = previous.and_then(|level| level.hash.as_ref());
                Some(HashTable::build(table, &all, &weights, previous))
            }
            _ => None,
        };
        let used = |c: &&Candidate| load.panic || c.endpoint.is_available();
        let group = |members: &[&Candidate]| {
            let used: Vec<&Candidate> = members.iter().copied().filter(used).collect();
            let weights: Vec<u64> = used
                .iter()
                .map(|c| {
                    let age = now.saturating_duration_since(c.since);
                    warmup::weight(c.endpoint.weight, config.warmup(), age)
                })
                .collect();
            Group {
                hosts: used.iter().map(|c| Arc::clone(&c.endpoint)).collect(),
                weights: Weights::new(&weights),
            }
        };
        let mut groups = Vec::new();
        let mut weights = Vec::new();
        match shares {
            // In panic, localities play no part, as in Envoy.
            Some(shares) if !load.panic => {
                for (locality, share) in shares {
                    let members: Vec<&Candidate> = list
                        .iter()
                        .copied()
                        .filter(|c| c.endpoint.locality == **locality)
                        .collect();
                    let here = health_of(&members);
                    if here.healthy == 0 {
                        continue;
                    }
                    let (healthy, total) = (u64::from(here.healthy), u64::from(here.total));
                    let well = (load::OVERPROVISIONING * healthy / total).min(100);
                    weights.push(share * well);
                    groups.push(group(&members));
                }
            }
            _ => {
                weights.push(1);
                groups.push(group(list));
            }
        }
        Self {
            all,
            health,
            load,
            groups: groups.into_boxed_slice(),
            shares: Weights::new(&weights),
            hash,
        }
    }

    fn is_equal(&self) -> bool {
        self.groups.iter().all(|group| group.weights.is_equal())
    }

    fn holds(&self, ids: &[EndpointId]) -> bool {
        self.all.iter().any(|endpoint| ids.contains(&endpoint.id))
    }

    /// Any endpoint that may be used, rather one that was not tried.
    fn any(&self, tried: &[EndpointId]) -> Option<&Arc<Endpoint>> {
        if self.all.is_empty() {
            return None;
        }
        let start = fastrand::usize(..self.all.len());
        let order = || self.all[start..].iter().chain(&self.all[..start]);
        let usable = |e: &&Arc<Endpoint>| self.load.panic || e.is_available();
        order()
            .find(|e| usable(e) && !tried.contains(&e.id))
            .or_else(|| order().find(usable))
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a share needs no more than 52 bits"
)]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn health_of(list: &[&Candidate]) -> Health {
    let healthy = list.iter().filter(|c| c.endpoint.is_available()).count();
    Health {
        healthy: u32::try_from(healthy).unwrap_or(u32::MAX),
        total: u32::try_from(list.len()).unwrap_or(u32::MAX),
    }
}

/// Share of each locality under `distribute`, in millionths of a per cent. The
/// share of a pattern that covers several localities is divided among them by
/// the weight of their endpoints (Istio's `applyLocalityWeights`).
fn shares_of<'a>(
    distribution: &[(crate::policy::model::LocalityPattern, u32)],
    candidates: &'a [Candidate],
) -> BTreeMap<&'a Locality, u64> {
    let mut weights: BTreeMap<&Locality, u64> = BTreeMap::new();
    for candidate in candidates {
        let endpoint = &candidate.endpoint;
        *weights.entry(&endpoint.locality).or_default() += u64::from(endpoint.weight);
    }
    let mut shares = BTreeMap::new();
    for (pattern, percent) in distribution {
        let covered: Vec<(&Locality, u64)> = weights
            .iter()
            .filter(|(locality, _)| {
                !shares.contains_key(*locality) && locality::covers(pattern, locality)
            })
            .map(|(locality, weight)| (*locality, *weight))
            .collect();
        let total: u64 = covered.iter().map(|(_, weight)| weight).sum();
        for (locality, weight) in covered {
            let share = u128::from(*percent) * 1_000_000 * u128::from(weight) / u128::from(total);
            shares.insert(locality, u64::try_from(share).unwrap_or(u64::MAX));
        }
    }
    shares
}

/// Weights for the hash table: under `distribute`, the share of the locality
/// divided among its endpoints.
fn hash_weights(all: &[Arc<Endpoint>], shares: Option<&BTreeMap<&Locality, u64>>) -> Vec<u64> {
    let Some(shares) = shares else {
        return all.iter().map(|e| u64::from(e.weight)).collect();
    };
    let mut totals: BTreeMap<&Locality, u64> = BTreeMap::new();
    for endpoint in all {
        *totals.entry(&endpoint.locality).or_default() += u64::from(endpoint.weight);
    }
    all.iter()
        .map(|endpoint| {
            let share = shares.get(&endpoint.locality).copied().unwrap_or(0);
            let total = totals.get(&endpoint.locality).copied().unwrap_or(1).max(1);
            share * u64::from(endpoint.weight) / total
        })
        .collect()
}
