//! What is known about a name, and how that changes with each lookup: values
//! and pure functions, without clock or socket.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::ResolveError;
use super::order::Routes;
use super::upstream::{Families, Found};
use crate::dns::virtual_address::is_virtual;

/// Shorter TTLs count as this.
pub const MIN_TTL: Duration = Duration::from_secs(2);

/// Longer TTLs count as this.
pub const MAX_TTL: Duration = Duration::from_hours(1);

/// How long the last addresses stay after the name's own servers say that it
/// has none.
pub const NEGATIVE_GRACE: Duration = Duration::from_mins(5);

/// Most addresses of a name that are used.
const ADDRESSES_LIMIT: usize = 512;

/// Time to the first try after a failure; twice as long after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Longest time between tries (Istio's).
const LAST_RETRY: Duration = Duration::from_mins(1);

/// What is known about a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Addresses, best family first, sorted within it. Empty until the first
    /// answer, and when there is none.
    pub addresses: Arc<[IpAddr]>,
    /// How good they are.
    pub state: State,
    /// When the last good answer came.
    pub resolved_at: Option<Instant>,
    /// When its TTL ends (a time in the past for what never was resolved).
    pub expires_at: Instant,
    /// Lookups that came to an end.
    pub(super) lookups: u64,
}

/// How good an answer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// No lookup has come to an end yet.
    Pending,
    /// The last lookup succeeded.
    Fresh,
    /// Lookups have failed since, and the last good addresses stand.
    Stale {
        /// The first failure.
        since: Instant,
        /// The latest one.
        error: ResolveError,
    },
    /// There is no address.
    Failed {
        /// Why.
        error: ResolveError,
    },
}

impl State {
    /// One word.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Fresh => "fresh",
            Self::Stale { .. } => "stale",
            Self::Failed { .. } => "failed",
        }
    }

    /// Why the last lookup failed.
    pub const fn error(&self) -> Option<&ResolveError> {
        match self {
            Self::Pending | Self::Fresh => None,
            Self::Stale { error, .. } | Self::Failed { error } => Some(error),
        }
    }
}

impl Answer {
    pub(super) fn pending(now: Instant) -> Self {
        Self {
            addresses: Arc::from([]),
            state: State::Pending,
            resolved_at: None,
            expires_at: now,
            lookups: 0,
        }
    }

    /// Whether a watcher should hear of the change from `before`: other
    /// addresses, or another kind of state.
    pub(super) fn differs(&self, before: &Self) -> bool {
        self.addresses != before.addresses || self.state.word() != before.state.word()
    }
}

/// An answer in the making: the addresses of each family, and what went wrong
/// how often.
#[derive(Debug)]
pub(super) struct Progress {
    name: Arc<str>,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    failures: u32,
    negative_since: Option<Instant>,
    pub(super) answer: Answer,
}

impl Progress {
    pub(super) fn new(name: Arc<str>, now: Instant) -> Self {
        Self {
            name,
            v4: Vec::new(),
            v6: Vec::new(),
            failures: 0,
            negative_since: None,
            answer: Answer::pending(now),
        }
    }

    /// Takes in the outcome of a lookup. Returns how long to wait before the
    /// next; `jitter` (0 to 1) picks within the range.
    pub(super) fn absorb(
        &mut self,
        found: Families,
        now: Instant,
        jitter: f64,
        routes: &dyn Routes,
    ) -> Duration {
        self.answer.lookups += 1;
        let found = [self.check(found.v4), self.check(found.v6)];
        let ttl = found.iter().filter_map(Found::ttl).min();
        let failed = found.iter().find_map(Found::failure);
        match (ttl, failed) {
            (Some(ttl), failed) => {
                self.succeed(found, ttl.clamp(MIN_TTL, MAX_TTL), now, routes);
                match failed {
                    None => {
                        self.failures = 0;
                        let ttl = ttl.clamp(MIN_TTL, MAX_TTL);
                        ttl.mul_f64(0.85 + 0.1 * jitter)
                    }
                    Some(error) => {
                        tracing::debug!("{error}; the last addresses of that family stay");
                        self.retry(jitter)
                    }
                }
            }
            (None, failed) => {
                // That the name does not exist holds for both families.
                let gone = found.iter().any(|found| matches!(found, Found::NoSuchName));
                let error = match failed {
                    Some(error) if !gone => error,
                    _ if gone => ResolveError::NoSuchName(Arc::clone(&self.name)),
                    _ => ResolveError::NoAddress(Arc::clone(&self.name)),
                };
                self.fail(error, now);
                self.retry(jitter)
            }
        }
    }

    /// Leaves out what cannot be dialled.
    fn check(&self, found: Found) -> Found {
        let Found::Records(mut records) = found else {
            return found;
        };
        let virtual_ones = records.addresses.iter().any(|ip| is_virtual(*ip));
        records.addresses.retain(|ip| {
            let limited_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            !is_virtual(*ip) && !ip.is_unspecified() && !ip.is_multicast() && !limited_broadcast
        });
        if !records.addresses.is_empty() {
            Found::Records(records)
        } else if virtual_ones {
            Found::Failed(ResolveError::Virtual(Arc::clone(&self.name)))
        } else {
            Found::NoRecords
        }
    }

    fn succeed(&mut self, found: [Found; 2], ttl: Duration, now: Instant, routes: &dyn Routes) {
        for (mine, found) in [&mut self.v4, &mut self.v6].into_iter().zip(found) {
            match found {
                Found::Records(records) => {
                    *mine = records.addresses;
                    mine.sort_unstable();
                    mine.dedup();
                    mine.truncate(ADDRESSES_LIMIT);
                }
                Found::NoRecords | Found::NoSuchName => mine.clear(),
                // Its last addresses stay.
                Found::Failed(_) => {}
            }
        }
        self.negative_since = None;
        let first_v6 = routes.prefer_v6(self.v4.first().copied(), self.v6.first().copied());
        let (first, second) = if first_v6 {
            (&self.v6, &self.v4)
        } else {
            (&self.v4, &self.v6)
        };
        self.answer.addresses = first.iter().chain(second).copied().collect();
        self.answer.state = State::Fresh;
        self.answer.resolved_at = Some(now);
        self.answer.expires_at = now + ttl;
    }

    fn fail(&mut self, error: ResolveError, now: Instant) {
        if error.is_negative() {
            let since = *self.negative_since.get_or_insert(now);
            if now.duration_since(since) >= NEGATIVE_GRACE {
                self.v4.clear();
                self.v6.clear();
                self.answer.addresses = Arc::from([]);
            }
        }
        self.answer.state = if self.answer.addresses.is_empty() {
            State::Failed { error }
        } else {
            let since = match &self.answer.state {
                State::Stale { since, .. } => *since,
                _ => now,
            };
            State::Stale { since, error }
        };
    }

    fn retry(&mut self, jitter: f64) -> Duration {
        let delay = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(10))
            .min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        delay.mul_f64(0.8 + 0.4 * jitter)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::super::upstream::Records;
    use super::*;

    struct Fixed(bool);

    impl Routes for Fixed {
        fn prefer_v6(&self, _: Option<IpAddr>, _: Option<IpAddr>) -> bool {
            self.0
        }
    }

    fn records(list: &[&str], ttl: u64) -> Found {
        Found::Records(Records {
            addresses: list.iter().map(|ip| ip.parse().unwrap()).collect(),
            ttl: Duration::from_secs(ttl),
        })
    }

    fn families(v4: Found, v6: Found) -> Families {
        Families { v4, v6 }
    }

    fn timeout() -> Found {
        Found::Failed(ResolveError::Timeout {
            name: "x".into(),
            limit: Duration::from_secs(10),
        })
    }

    struct Name(Progress, Instant);

    impl Name {
        fn new() -> Self {
            let now = Instant::now();
            Self(Progress::new("x".into(), now), now)
        }

        fn absorb(&mut self, v4: Found, v6: Found) -> Duration {
            self.0.absorb(families(v4, v6), self.1, 0.5, &Fixed(false))
        }

        fn pass(&mut self, seconds: u64) {
            self.1 += Duration::from_secs(seconds);
        }

        fn addresses(&self) -> Vec<String> {
            self.0
                .answer
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect()
        }

        fn state(&self) -> &'static str {
            self.0.answer.state.word()
        }
    }

    #[test]
    fn refreshes_before_the_shorter_ttl_ends() {
        let mut name = Name::new();
        let next = name.absorb(
            records(&["10.0.0.2", "10.0.0.1"], 300),
            records(&["::1"], 100),
        );
        assert_eq!(next, Duration::from_secs(90));
        assert_eq!(name.addresses(), ["10.0.0.1", "10.0.0.2", "::1"]);
        assert_eq!(name.0.answer.expires_at, name.1 + Duration::from_secs(100));
        let found = families(records(&["10.0.0.1"], 1000), Found::NoRecords);
        let soon = name.0.absorb(found, name.1, 0.0, &Fixed(false));
        assert_eq!(soon, Duration::from_secs(850));
        let found = families(records(&["10.0.0.1"], 1000), Found::NoRecords);
        let late = name.0.absorb(found, name.1, 1.0, &Fixed(false));
        assert_eq!(late, Duration::from_secs(950));
    }

    #[test]
    fn bounds_the_ttl() {
        let mut name = Name::new();
        let next = name.absorb(records(&["10.0.0.1"], 0), Found::NoRecords);
        assert_eq!(next, MIN_TTL.mul_f64(0.9));
        let next = name.absorb(records(&["10.0.0.1"], 1_000_000), Found::NoRecords);
        assert_eq!(next, MAX_TTL.mul_f64(0.9));
    }

    #[test]
    fn a_failure_keeps_the_last_answer_for_ever_and_backs_off() {
        let mut name = Name::new();
        assert_eq!(name.absorb(timeout(), timeout()), Duration::from_secs(1));
        assert_eq!(name.state(), "failed");
        name.absorb(records(&["10.0.0.1"], 300), Found::NoRecords);
        let mut waits = Vec::new();
        let first = name.1;
        for _ in 0..9 {
            waits.push(name.absorb(timeout(), Found::NoRecords).as_secs());
            name.pass(1000);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(name.addresses(), ["10.0.0.1"]);
        let State::Stale { since, error } = &name.0.answer.state else {
            unreachable!()
        };
        assert_eq!(*since, first);
        assert!(matches!(error, ResolveError::Timeout { .. }));
        // Once it is well again, the next failure starts from the beginning.
        name.absorb(records(&["10.0.0.2"], 300), Found::NoRecords);
        assert_eq!(name.state(), "fresh");
        assert_eq!(name.absorb(timeout(), timeout()).as_secs(), 1);
    }

    #[test]
    fn a_name_that_is_gone_keeps_its_addresses_for_a_grace_time() {
        let mut name = Name::new();
        name.absorb(records(&["10.0.0.1"], 300), Found::NoRecords);
        name.absorb(Found::NoSuchName, Found::NoSuchName);
        assert_eq!((name.state(), name.addresses().len()), ("stale", 1));
        name.pass(NEGATIVE_GRACE.as_secs() - 1);
        // A timeout in between proves nothing either way.
        name.absorb(timeout(), timeout());
        name.absorb(Found::NoRecords, Found::NoRecords);
        assert_eq!(name.state(), "stale");
        name.pass(1);
        name.absorb(timeout(), timeout());
        assert_eq!(name.state(), "stale");
        name.absorb(Found::NoSuchName, timeout());
        assert_eq!((name.state(), name.addresses().len()), ("failed", 0));
        let error = name.0.answer.state.error().unwrap();
        assert_eq!(error.to_string(), "x does not exist in DNS (NXDOMAIN)");
        // And it may come back.
        name.absorb(records(&["10.0.0.2"], 300), Found::NoRecords);
        assert_eq!((name.state(), name.addresses().len()), ("fresh", 1));
    }

    #[test]
    fn a_family_that_fails_keeps_its_addresses() {
        let mut name = Name::new();
        name.absorb(records(&["10.0.0.1"], 300), records(&["::1"], 300));
        let next = name.absorb(records(&["10.0.0.2"], 300), timeout());
        assert_eq!(name.addresses(), ["10.0.0.2", "::1"]);
        assert_eq!((name.state(), next.as_secs()), ("fresh", 1));
        name.absorb(records(&["10.0.0.2"], 300), Found::NoRecords);
        assert_eq!(name.addresses(), ["10.0.0.2"]);
    }

    #[test]
    fn never_takes_its_own_virtual_addresses_for_real_ones() {
        let mut name = Name::new();
        let captured = || records(&["240.240.3.4"], 30);
        name.absorb(captured(), records(&["2001:2::f0f0:304"], 30));
        let error = name.0.answer.state.error().unwrap();
        assert!(error.to_string().contains("--dns-upstream"), "{error}");
        name.absorb(
            records(&["10.0.0.1", "0.0.0.0", "240.240.3.4"], 30),
            records(&["::", "ff02::1"], 30),
        );
        assert_eq!(name.addresses(), ["10.0.0.1"]);
        name.absorb(captured(), Found::NoRecords);
        assert_eq!((name.state(), name.addresses().len()), ("stale", 1));
    }

    #[test]
    fn puts_the_family_that_has_a_route_first() {
        let mut name = Name::new();
        let found = families(records(&["10.0.0.1"], 300), records(&["::1"], 300));
        name.0.absorb(found, name.1, 0.5, &Fixed(true));
        assert_eq!(name.addresses(), ["::1", "10.0.0.1"]);
    }

    #[test]
    fn watchers_hear_of_addresses_and_kinds_of_state_only() {
        let mut name = Name::new();
        name.absorb(records(&["10.0.0.1"], 300), Found::NoRecords);
        let before = name.0.answer.clone();
        name.pass(270);
        name.absorb(records(&["10.0.0.1"], 300), Found::NoRecords);
        assert!(!name.0.answer.differs(&before));
        name.absorb(timeout(), timeout());
        assert!(name.0.answer.differs(&before));
        let before = name.0.answer.clone();
        name.absorb(Found::NoSuchName, Found::NoSuchName);
        assert!(!name.0.answer.differs(&before));
    }
}
