//! The real addresses of names under wildcard hosts, as far as DNS told them.
//!
//! Clients that bypass the capture of DNS (an address known from before,
//! `/etc/hosts`, DNS over HTTPS) dial these. They become keys of the kernel
//! beside the virtual ones, for services whose connections say whose they are
//! (HTTP, TLS), so that any other name at the same address passes untouched.
//!
//! A name is here for as long as a cluster follows it ([`Guard`]), and for
//! [`KEPT`] after an answer told it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::policy::model::HostPattern;

/// How long an answer that nobody follows stands, at least; else its TTL.
pub const KEPT: Duration = Duration::from_mins(10);
/// Longest time that a TTL stands.
const LONGEST: Duration = Duration::from_hours(1);
/// Names that are kept; past this, those that were told are forgotten first
/// whose time ends first.
pub const NAMES: usize = 4096;
/// Addresses of one name.
const ADDRESSES: usize = 64;
/// Changes within this time are told together: a client may ask for new names
/// as fast as it likes.
const SETTLE: Duration = Duration::from_millis(100);

/// Real addresses by name; shared by all threads.
#[derive(Debug, Default)]
pub struct RealAddresses {
    names: Mutex<HashMap<Arc<str>, Known>>,
    changed: Notify,
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Known {
    /// As those say who follow it, each with a number.
    followed: Vec<(u64, Arc<[IpAddr]>)>,
    /// As an answer said, and until when that stands.
    told: Option<(Vec<IpAddr>, Instant)>,
}

impl Known {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let followed = self.followed.iter().flat_map(|(_, list)| list.iter());
        let told = self.told.iter().flat_map(|(list, _)| list);
        followed.chain(told).copied()
    }
}

impl RealAddresses {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Known>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an answer for a name (lower case) under a wildcard host.
    pub fn told(&self, name: &Arc<str>, addresses: &[IpAddr], ttl: Duration) {
        let now = Instant::now();
        let until = now + ttl.clamp(KEPT, LONGEST);
        let mut names = self.lock();
        if !names.contains_key(name) && names.len() >= NAMES {
            let told = names
                .iter()
                .filter_map(|(name, known)| Some((known.told.as_ref()?.1, name)));
            let first = told.min().map(|(_, name)| Arc::clone(name));
            if let Some(first) = first {
                forget(&mut names, &first);
            }
            if names.len() >= NAMES {
                return;
            }
        }
        let known = names.entry(Arc::clone(name)).or_default();
        let (list, end) = known.told.get_or_insert_with(|| (Vec::new(), until));
        *end = until;
        let before = list.len();
        // Of a name that answers with others each time, all stand.
        for address in addresses {
            if !list.contains(address) && list.len() < ADDRESSES {
                list.push(*address);
            }
        }
        if list.len() != before {
            self.changed.notify_one();
        }
    }

    /// Follows a name until the guard is dropped.
    pub fn follow(self: &Arc<Self>, name: &Arc<str>) -> Guard {
        Guard {
            real: Arc::clone(self),
            name: Arc::clone(name),
            number: fastrand::u64(..),
        }
    }

    /// The addresses of all names under a wildcard host, in order.
    pub fn under(&self, host: &HostPattern) -> Vec<IpAddr> {
        let names = self.lock();
        let matching = names.iter().filter(|(name, _)| host.matches(name));
        let mut all: Vec<IpAddr> = matching.flat_map(|(_, known)| known.addresses()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Forgets what ran out, and calls `tell` after every change, for ever.
    pub async fn keep(&self, tell: impl Fn()) {
        loop {
            let next = self
                .lock()
                .values()
                .filter_map(|k| Some(k.told.as_ref()?.1))
                .min();
            tokio::select! {
                () = self.changed.notified() => {}
                () = wait(next) => {
                    let now = Instant::now();
                    let mut names = self.lock();
                    let over = names.iter().filter(|(_, known)| {
                        known.told.as_ref().is_some_and(|(_, until)| *until <= now)
                    });
                    for name in over.map(|(name, _)| Arc::clone(name)).collect::<Vec<_>>() {
                        forget(&mut names, &name);
                    }
                }
            }
            tell();
            sleep(SETTLE).await;
        }
    }
}

/// Forgets what an answer told.
fn forget(names: &mut HashMap<Arc<str>, Known>, name: &str) {
    if let Some(known) = names.get_mut(name) {
        known.told = None;
        if known.followed.is_empty() {
            names.remove(name);
        }
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// One who follows a name.
#[derive(Debug)]
pub struct Guard {
    real: Arc<RealAddresses>,
    name: Arc<str>,
    number: u64,
}

impl Guard {
    /// What the name resolves to now.
    pub fn set(&self, addresses: &Arc<[IpAddr]>) {
        let mut names = self.real.lock();
        let known = names.entry(Arc::clone(&self.name)).or_default();
        let own = known.followed.iter_mut().find(|(n, _)| *n == self.number);
        match own {
            Some((_, own)) if own == addresses => return,
            Some((_, own)) => own.clone_from(addresses),
            None => known.followed.push((self.number, Arc::clone(addresses))),
        }
        drop(names);
        self.real.changed.notify_one();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut names = self.real.lock();
        let Some(known) = names.get_mut(&self.name) else {
            return;
        };
        known.followed.retain(|(number, _)| *number != self.number);
        if known.followed.is_empty() && known.told.is_none() {
            names.remove(&self.name);
        }
        drop(names);
        self.real.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{advance, timeout};

    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn under(real: &RealAddresses) -> Vec<IpAddr> {
        real.under(&HostPattern::Suffix(".w.example".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_stands_for_its_time_and_gathers_addresses() {
        let real = RealAddresses::default();
        let name: Arc<str> = "a.w.example".into();
        real.told(&name, &[ip(2)], Duration::from_secs(5));
        real.told(&name, &[ip(1), ip(2)], Duration::from_secs(5));
        real.told(&"a.other.example".into(), &[ip(9)], KEPT);
        assert_eq!(under(&real), [ip(1), ip(2)]);
        let told = AtomicUsize::new(0);
        let count = || {
            told.fetch_add(1, Ordering::Relaxed);
        };
        let _ = timeout(KEPT / 2, real.keep(count)).await;
        assert_eq!((under(&real).len(), told.load(Ordering::Relaxed)), (2, 1));
        let _ = timeout(KEPT, real.keep(count)).await;
        assert!(under(&real).is_empty() && real.lock().is_empty());
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_followed_stays() {
        let real = Arc::new(RealAddresses::default());
        let name: Arc<str> = "a.w.example".into();
        let (one, other) = (real.follow(&name), real.follow(&name));
        one.set(&Arc::from([ip(1)]));
        other.set(&Arc::from([ip(1), ip(2)]));
        real.told(&name, &[ip(3)], KEPT);
        assert_eq!(under(&real), [ip(1), ip(2), ip(3)]);
        advance(2 * KEPT).await;
        let _ = timeout(Duration::from_secs(1), real.keep(|| {})).await;
        assert_eq!(under(&real), [ip(1), ip(2)]);
        drop(other);
        assert_eq!(under(&real), [ip(1)]);
        one.set(&Arc::from([ip(4)]));
        assert_eq!(under(&real), [ip(4)]);
        drop(one);
        assert!(real.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_bounded() {
        let real = RealAddresses::default();
        for number in 0..=NAMES {
            advance(Duration::from_millis(1)).await;
            let name = format!("n{number}.w.example");
            real.told(&name.into(), &[ip(1)], KEPT);
        }
        assert_eq!(real.lock().len(), NAMES);
        assert!(!real.lock().contains_key("n0.w.example"));
    }
}
