//! Outlier detection applied to a pool: ejection, readmission, the sweep.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::config::Config;
use super::host::{Endpoint, OUT_EJECTED};
use super::outcome::Outcome;
use super::outlier::{self, EjectReason, Generation, Late, Signal};
use super::pool::{Ejection, Inner, Kind, Pool};
use super::shared::bump;
use super::warmup;
use crate::policy::model::{Locality, OutlierDetection};

/// Dialled addresses are looked through this often for those no longer used.
const TIDY: Duration = Duration::from_mins(1);

impl Pool {
    /// Takes an outcome into account; `period` is when it began.
    pub(super) fn judge(&self, endpoint: &Arc<Endpoint>, period: Generation, outcome: Outcome) {
        let state = &endpoint.state;
        match outcome.success() {
            Some(true) => bump(&state.counters.successes),
            Some(false) => {
                bump(&state.counters.failures);
                if outcome.connect_failed() {
                    bump(&state.counters.connect_failures);
                }
                let age = self.shared.age(Instant::now());
                state.last_failure.set(outcome, age);
            }
            None => return,
        }
        let config = self.shared.config.load();
        let Some(policy) = config.outlier() else {
            return;
        };
        let Some(signal) = Signal::of(outcome, policy) else {
            return;
        };
        match state.tally.count(period, signal, policy) {
            Ok(Some(reason)) => self.eject(endpoint, period, reason, Instant::now()),
            Ok(None) => {}
            Err(Late) => bump(&self.shared.counters.late_reports),
        }
    }

    fn eject(&self, endpoint: &Endpoint, period: Generation, reason: EjectReason, now: Instant) {
        let config = self.shared.config.load();
        let mut inner = self.lock();
        // Removed by a reload since.
        let Some(policy) = config.outlier() else {
            return;
        };
        let place = inner.members.iter().position(|m| m.id() == endpoint.id);
        let Some(place) = place else {
            return;
        };
        let member = &inner.members[place];
        if member.ejection.is_some() || endpoint.state.tally.generation() != period {
            return;
        }
        let all = inner.members.len();
        let mut ejected = by_locality(&inner);
        *ejected.entry(&member.endpoint.locality).or_default() += 1;
        if !outlier::may_be_ejected(policy, all, ejected.values().copied()) {
            bump(&self.shared.counters.ejections_refused);
            tracing::info!(
                cluster = %self.shared.name(),
                endpoint = %endpoint.destination,
                %reason,
                ejected = inner.ejected(),
                all,
                "endpoint not ejected: maxEjectionPercent"
            );
            return;
        }
        let member = &mut inner.members[place];
        if policy.base_ejection_time.saturating_mul(member.times) < outlier::longest(policy) {
            member.times += 1;
        }
        let times = member.times;
        member.ejection = Some(Ejection { at: now, reason });
        member.set_out(OUT_EJECTED, true);
        endpoint.state.tally.next_period();
        bump(&endpoint.state.counters.ejections);
        let counters = &self.shared.counters;
        bump(match reason {
            EjectReason::Consecutive5xx => &counters.ejections_5xx,
            EjectReason::ConsecutiveGateway => &counters.ejections_gateway,
            EjectReason::ConsecutiveLocalOrigin => &counters.ejections_local,
        });
        inner.swept = self.interval_number(&config, now);
        self.publish(&inner, &config, now);
        tracing::warn!(
            cluster = %self.shared.name(),
            endpoint = %endpoint.destination,
            %reason,
            times,
            for_ms = millis(outlier::ejection_time(policy, times)),
            ejected = inner.ejected(),
            all,
            "endpoint ejected"
        );
    }

    fn readmit(&self, inner: &mut Inner, place: usize, now: Instant, why: &'static str) {
        let member = &mut inner.members[place];
        let Some(ejection) = member.ejection.take() else {
            return;
        };
        // The period ends before the endpoint may be picked again, so that
        // every pick of the new one carries the new number.
        member.endpoint.state.tally.next_period();
        member.set_out(OUT_EJECTED, false);
        bump(&self.shared.counters.readmissions);
        tracing::info!(
            cluster = %self.shared.name(),
            endpoint = %member.endpoint.destination,
            after_ms = millis(now.saturating_duration_since(ejection.at)),
            why,
            "endpoint readmitted"
        );
    }

    /// Readmits those ejected first while more are out than policy allows:
    /// endpoints vanished, or the policy changed.
    pub(super) fn readmit_beyond_cap(&self, inner: &mut Inner, config: &Config, now: Instant) {
        loop {
            let Some(policy) = config.outlier() else {
                for place in 0..inner.members.len() {
                    inner.members[place].times = 0;
                    self.readmit(inner, place, now, "outlierDetection was removed");
                }
                return;
            };
            let ejected = by_locality(inner);
            if outlier::may_be_ejected(policy, inner.members.len(), ejected.values().copied()) {
                return;
            }
            // Without a written maximum, a locality that lost only one is not
            // what breaks the rule, unless there is nothing else.
            let crowded = |locality: &Locality| ejected.get(locality).is_some_and(|n| *n > 1);
            let first = |only_crowded: bool| {
                let members = inner.members.iter().enumerate();
                members
                    .filter(|(_, m)| !only_crowded || crowded(&m.endpoint.locality))
                    .filter_map(|(place, m)| m.ejection.map(|ejection| (ejection.at, place)))
                    .min()
            };
            let unwritten = policy.max_ejection_percent.is_none();
            let Some((_, place)) = first(unwritten).or_else(|| first(false)) else {
                return;
            };
            self.readmit(inner, place, now, "maxEjectionPercent");
        }
    }

    /// Does what is due at `now` and says when to come again.
    pub(super) fn sweep(&self, now: Instant) -> Option<Instant> {
        let config = self.shared.config.load();
        let mut inner = self.lock();
        let mut changed = self.sweep_interval(&mut inner, &config, now);
        inner.departed.retain(|departed| {
            now < departed.until || departed.member.endpoint.active_connections() > 0
        });
        if let Kind::Dialled(_) = self.kind {
            self.tidy(&mut inner, now);
            self.count(&inner);
        }
        changed |= warming(&inner, &config, now).is_some();
        if changed {
            self.publish(&inner, &config, now);
        }
        self.next_sweep(&inner, &config, now)
    }

    /// Readmission and the fall of the count, once in an `interval`.
    fn sweep_interval(&self, inner: &mut Inner, config: &Config, now: Instant) -> bool {
        let number = self.interval_number(config, now);
        let Some(policy) = config.outlier().filter(|_| number != inner.swept) else {
            return false;
        };
        inner.swept = number;
        let mut changed = false;
        for place in 0..inner.members.len() {
            let member = &mut inner.members[place];
            match member.ejection {
                Some(ejection) if now >= ejection_end(policy, ejection, member.times) => {
                    self.readmit(inner, place, now, "ejection time is over");
                    changed = true;
                }
                Some(_) => {}
                None => member.times = member.times.saturating_sub(1),
            }
        }
        changed
    }

    /// Number of the `interval` that `now` falls into, counted from the birth
    /// of the set.
    pub(super) fn interval_number(&self, config: &Config, now: Instant) -> u64 {
        let Some(policy) = config.outlier() else {
            return 0;
        };
        let interval = policy.interval.as_nanos().max(1);
        u64::try_from(self.shared.age(now).as_nanos() / interval).unwrap_or(u64::MAX)
    }

    pub(super) fn next_sweep(
        &self,
        inner: &Inner,
        config: &Config,
        now: Instant,
    ) -> Option<Instant> {
        let busy = |policy: &&OutlierDetection| {
            let pending = |m: &super::pool::Member| m.ejection.is_some() || m.times > 0;
            policy.interval > Duration::ZERO && inner.members.iter().any(pending)
        };
        let interval = config.outlier().filter(busy).map(|policy| {
            let passed = u32::try_from(self.interval_number(config, now)).unwrap_or(u32::MAX - 1);
            self.shared.created + policy.interval * (passed + 1)
        });
        let departed = inner.departed.iter().map(|departed| departed.until).min();
        let departed = departed.map(|until| until.max(now + Duration::from_secs(1)));
        let warming = warming(inner, config, now);
        let tidy = matches!(self.kind, Kind::Dialled(_)) && !inner.members.is_empty();
        let tidy = tidy.then(|| now + TIDY);
        [interval, departed, warming, tidy]
            .into_iter()
            .flatten()
            .min()
    }
}

/// When the weights of endpoints that warm up are to be taken anew; once more
/// after the end, for the full weight.
fn warming(inner: &Inner, config: &Config, now: Instant) -> Option<Instant> {
    let warmup = config.warmup()?;
    let step = warmup::step(warmup);
    let end = warmup.duration + step * 2;
    let warms = |since: Instant| now.saturating_duration_since(since) < end;
    let any = inner.members.iter().any(|member| warms(member.since));
    any.then(|| now + step)
}

/// When an ejection may end: the first sweep after this.
pub(super) fn ejection_end(policy: &OutlierDetection, ejection: Ejection, times: u32) -> Instant {
    ejection.at + outlier::ejection_time(policy, times)
}

fn by_locality(inner: &Inner) -> BTreeMap<&Locality, usize> {
    let mut counts = BTreeMap::new();
    for member in inner.members.iter().filter(|m| m.ejection.is_some()) {
        *counts.entry(&member.endpoint.locality).or_default() += 1;
    }
    counts
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
