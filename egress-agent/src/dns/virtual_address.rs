//! Which virtual address stands for which name.
//!
//! A name has one number of sixteen bits, chosen from a hash of the name, and
//! with it one IPv4 and one IPv6 address. It keeps the number for as long as
//! a policy names it, across restarts of the agent, and afterwards until no
//! client can still remember it ([`QUARANTINE`]).
//!
//! Workers read without a lock ([`VirtualAddresses::get`] and
//! [`VirtualAddresses::reverse`]); numbers are given out under a lock that
//! only a name's first query takes.

mod holding;
mod kept;
mod number;
mod numbers;

pub use holding::Holding;
pub use number::{NETWORK_V4, SELF_TEST_V4, VirtualAddress, is_virtual};

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::mem;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use holding::Clock;
use number::hash;
use numbers::Numbers;

use super::DnsError;
use crate::shared_map::SharedMap;

/// TTL in seconds of answers that name a virtual address. Short, so that a
/// host which leaves the policy is soon looked up in truth.
pub const TTL: u32 = 30;

/// How long after its release, and after the last answer that named it, an
/// address is not given to another name. Applications keep addresses for far
/// longer than a TTL (connection pools, `networkaddress.cache.ttl` of Java).
pub const QUARANTINE: Duration = Duration::from_hours(24);

/// The same, when no other number is free.
pub const QUARANTINE_UNDER_PRESSURE: Duration = Duration::from_mins(10);

/// Most names under wildcard hosts that hold an address at a time. Past that
/// the least recently used ones are released.
pub const DERIVED_LIMIT: usize = 16_384;

/// What [`VirtualAddresses::assign`] found.
#[derive(Debug)]
pub struct Assignment {
    /// Every name that the policy gives an address: all exact ones, and those
    /// under wildcard hosts that hold one already.
    pub holdings: Vec<Arc<Holding>>,
    /// Names that got no address, because none is left.
    pub refused: Vec<Arc<str>>,
    /// The only names that may have got another address or none; `None`: any.
    changed: Option<Vec<Arc<str>>>,
    /// Numbers given out up to here are in `holdings`.
    watermark: u64,
    /// Some name got its address with this assignment.
    new: bool,
}

impl Assignment {
    /// Whether some name got its address with it, which is to be
    /// [saved](VirtualAddresses::save) before any answer names it.
    pub const fn is_new(&self) -> bool {
        self.new
    }

    /// The only names that may have got another address or none; `None`: any.
    pub fn changed(&self) -> Option<&[Arc<str>]> {
        self.changed.as_deref()
    }
}

/// All virtual addresses of this node.
pub struct VirtualAddresses {
    /// Names that hold an address.
    held: SharedMap<Arc<Holding>>,
    /// By number, released ones included.
    numbers: Numbers,
    register: Mutex<Register>,
    changed: Notify,
    clock: Clock,
    directory: Option<PathBuf>,
    derived_limit: usize,
}

/// What only the giver of numbers looks at.
#[derive(Debug, Default)]
struct Register {
    /// Every name with a number, released ones included.
    names: HashMap<Arc<str>, Arc<Holding>>,
    /// Derived names that hold an address.
    derived: usize,
    /// Derived names that held one when the state file was written, until the
    /// first policy says whether their wildcard host still exists.
    restored: HashSet<Arc<str>>,
    sequence: u64,
}

impl VirtualAddresses {
    /// Addresses that a restart forgets, for tests and `--state-dir` unset.
    pub fn in_memory() -> Self {
        Self::restored(None, Vec::new())
    }

    /// Sets another limit than [`DERIVED_LIMIT`].
    #[must_use]
    pub fn with_derived_limit(mut self, limit: usize) -> Self {
        self.derived_limit = limit.max(1);
        self
    }

    fn lock(&self) -> MutexGuard<'_, Register> {
        // Every change below leaves the register whole at each step.
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of a name that holds one. Lock-free.
    pub fn get(&self, name: &str) -> Option<Arc<Holding>> {
        self.held.get(name)
    }

    /// The name behind a virtual address, released ones included, so that a
    /// late connection can still be named. Lock-free.
    pub fn reverse(&self, ip: IpAddr) -> Option<Arc<Holding>> {
        let address = VirtualAddress::of(ip)?;
        self.numbers.get(address).clone()
    }

    /// Notes a use: an answer that named it, or a connection to it. Keeps a
    /// name under a wildcard host from being released.
    pub fn touch(&self, holding: &Holding) {
        let now = self.clock.now();
        // One write a second, so that a busy name costs no cache traffic.
        if holding.used.load(Ordering::Relaxed) != now {
            holding.used.store(now, Ordering::Relaxed);
        }
    }

    /// Gives every name of a new policy its address, and takes none away yet
    /// ([`retire`](Self::retire) does, once the policy is in force). `exact`
    /// are the policy's full names; `covers` says whether a name falls under
    /// one of its wildcard hosts.
    pub fn assign<'a>(
        &self,
        exact: impl IntoIterator<Item = &'a Arc<str>>,
        covers: impl Fn(&str) -> bool,
    ) -> Assignment {
        let mut register = self.lock();
        let mut names: Vec<&Arc<str>> = exact.into_iter().collect();
        // So that the same policy gives the same addresses, whatever its order.
        names.sort_unstable();
        names.dedup();
        let mut assignment = Assignment {
            holdings: Vec::with_capacity(names.len()),
            refused: Vec::new(),
            changed: None,
            watermark: 0,
            new: false,
        };
        let before = register.sequence;
        for &name in &names {
            match self.allocate_in(&mut register, name, false) {
                Ok(holding) => assignment.holdings.push(holding),
                Err(_) => assignment.refused.push(Arc::clone(name)),
            }
        }
        let restored = mem::take(&mut register.restored);
        let others: Vec<Arc<Holding>> = register
            .names
            .values()
            .filter(|holding| holding.held() || restored.contains(&holding.name))
            .filter(|holding| names.binary_search(&&holding.name).is_err())
            .filter(|holding| covers(&holding.name))
            .cloned()
            .collect();
        for holding in others {
            let holding = self.hold(&mut register, &holding, true);
            assignment.holdings.push(holding);
        }
        assignment.watermark = register.sequence;
        assignment.new = register.sequence != before;
        drop(register);
        self.changed.notify_one();
        assignment
    }

    /// As [`assign`](Self::assign) when only these names `changed`, and no
    /// wildcard host: `claims` says whether one is a full name of the policy.
    pub fn assign_some(
        &self,
        mut changed: Vec<Arc<str>>,
        claims: impl Fn(&str) -> bool,
        covers: impl Fn(&str) -> bool,
    ) -> Assignment {
        let mut register = self.lock();
        changed.sort_unstable();
        let before = register.sequence;
        let mut holdings = Vec::with_capacity(changed.len());
        let mut refused = Vec::new();
        for name in &changed {
            if claims(name) {
                match self.allocate_in(&mut register, name, false) {
                    Ok(holding) => holdings.push(holding),
                    Err(_) => refused.push(Arc::clone(name)),
                }
            } else if let Some(holding) = register.names.get(name).cloned()
                && holding.held()
                && covers(name)
            {
                holdings.push(self.hold(&mut register, &holding, true));
            }
        }
        let watermark = register.sequence;
        drop(register);
        let new = watermark != before;
        if new {
            self.changed.notify_one();
        }
        Assignment {
            holdings,
            refused,
            changed: Some(changed),
            watermark,
            new,
        }
    }

    /// Of these names, releases those that the policy in force does not give an
    /// address.
    pub fn retire_some(
        &self,
        names: &[Arc<str>],
        keeps: impl Fn(&str) -> bool,
    ) -> Vec<Arc<Holding>> {
        let leaving = names.iter().filter(|name| !keeps(name));
        let leaving: Vec<_> = leaving.filter_map(|name| self.held.get(name)).collect();
        self.release_all(&leaving);
        leaving
    }

    fn release_all(&self, leaving: &[Arc<Holding>]) {
        if leaving.is_empty() {
            return;
        }
        let mut register = self.lock();
        for holding in leaving {
            self.release(&mut register, holding);
        }
        drop(register);
        self.changed.notify_one();
    }

    /// Releases every name that the policy in force does not give an address.
    pub fn retire(&self, keeps: impl Fn(&str) -> bool) -> Vec<Arc<Holding>> {
        let mut leaving = self.held.values();
        leaving.retain(|holding| !keeps(&holding.name));
        self.release_all(&leaving);
        leaving
    }

    /// The address of a name under a wildcard host, given out now if the name
    /// has none. Also returns the names that were released to make room.
    ///
    /// # Errors
    /// [`DnsError::Exhausted`].
    pub fn allocate(&self, name: &Arc<str>) -> Result<(Arc<Holding>, Vec<Arc<Holding>>), DnsError> {
        if let Some(holding) = self.get(name) {
            return Ok((holding, Vec::new()));
        }
        let mut register = self.lock();
        let released = if register.derived >= self.derived_limit {
            self.make_room(&mut register)
        } else {
            Vec::new()
        };
        let holding = self.allocate_in(&mut register, name, true);
        drop(register);
        self.changed.notify_one();
        Ok((holding?, released))
    }

    /// Every name that holds an address, in order, for
    /// `egressctl proxy-config dns`.
    pub fn all(&self) -> Vec<Arc<Holding>> {
        let mut all = self.held.values();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The names under wildcard hosts that hold an address.
    pub fn derived(&self) -> Vec<Arc<Holding>> {
        if self.lock().derived == 0 {
            return Vec::new();
        }
        let mut derived = self.held.values();
        derived.retain(|holding| holding.derived);
        derived
    }

    /// Names under wildcard hosts that got their address after `assignment`.
    pub(super) fn derived_since(&self, assignment: &Assignment) -> Vec<Arc<Holding>> {
        let mut late = self.derived();
        late.retain(|holding| holding.sequence > assignment.watermark);
        late
    }

    /// Releases the least recently used sixty-fourth of the derived names.
    fn make_room(&self, register: &mut Register) -> Vec<Arc<Holding>> {
        let mut derived: Vec<Arc<Holding>> = register
            .names
            .values()
            .filter(|holding| holding.derived && holding.held())
            .cloned()
            .collect();
        let count = (derived.len() / 64).max(1).min(derived.len());
        if count == 0 {
            return Vec::new();
        }
        let age = |holding: &Arc<Holding>| holding.used.load(Ordering::Relaxed);
        derived.select_nth_unstable_by_key(count - 1, age);
        derived.truncate(count);
        for holding in &derived {
            self.release(register, holding);
        }
        derived
    }

    fn release(&self, register: &mut Register, holding: &Arc<Holding>) {
        self.held.remove(&holding.name);
        holding.ready.store(false, Ordering::Release);
        // Never 0, which means held.
        let now = self.clock.now().max(1);
        holding.released.store(now, Ordering::Release);
        if holding.derived {
            register.derived = register.derived.saturating_sub(1);
        }
    }

    /// Makes a known name hold its number (again).
    fn hold(&self, register: &mut Register, old: &Arc<Holding>, derived: bool) -> Arc<Holding> {
        let was_held = old.held();
        if was_held && old.derived == derived {
            return Arc::clone(old);
        }
        if was_held && old.derived {
            register.derived = register.derived.saturating_sub(1);
        }
        register.sequence += 1;
        let holding = Arc::new(Holding {
            name: Arc::clone(&old.name),
            address: old.address,
            derived,
            sequence: register.sequence,
            ready: AtomicBool::new(was_held && old.ready()),
            used: AtomicU64::new(old.used.load(Ordering::Relaxed)),
            released: AtomicU64::new(0),
        });
        self.enter(register, &holding);
        holding
    }

    fn enter(&self, register: &mut Register, holding: &Arc<Holding>) {
        register.derived += usize::from(holding.derived);
        register
            .names
            .insert(Arc::clone(&holding.name), Arc::clone(holding));
        self.numbers.set(holding.address, Arc::clone(holding));
        self.held.insert(&holding.name, Arc::clone(holding));
    }

    fn allocate_in(
        &self,
        register: &mut Register,
        name: &Arc<str>,
        derived: bool,
    ) -> Result<Arc<Holding>, DnsError> {
        if let Some(known) = register.names.get(name).cloned() {
            // A full name of the policy stays one while a late query under a
            // wildcard comes in.
            let derived = derived && (known.derived || !known.held());
            return Ok(self.hold(register, &known, derived));
        }
        let address = self
            .find(name, QUARANTINE)
            .or_else(|| self.find(name, QUARANTINE_UNDER_PRESSURE))
            .ok_or_else(|| DnsError::Exhausted {
                name: Arc::clone(name),
            })?;
        if let Some(previous) = &*self.numbers.get(address) {
            register.names.remove(&previous.name);
        }
        register.sequence += 1;
        let holding = Arc::new(Holding {
            name: Arc::clone(name),
            address,
            derived,
            sequence: register.sequence,
            ready: AtomicBool::new(false),
            used: AtomicU64::new(self.clock.now()),
            released: AtomicU64::new(0),
        });
        self.enter(register, &holding);
        Ok(holding)
    }

    /// The first number from the name's hash on that is free, or whose last
    /// name is `quarantine` past.
    fn find(&self, name: &str, quarantine: Duration) -> Option<VirtualAddress> {
        let first = hash(name);
        (0..=u16::MAX)
            .map(|step| VirtualAddress(first.wrapping_add(step)))
            .filter(|address| address.usable())
            .find(|address| match &*self.numbers.get(*address) {
                None => true,
                Some(holding) => self.expired(holding, quarantine),
            })
    }

    fn expired(&self, holding: &Holding, quarantine: Duration) -> bool {
        let released = holding.released.load(Ordering::Acquire);
        let last = released.max(holding.used.load(Ordering::Relaxed));
        released != 0 && self.clock.now().saturating_sub(last) >= quarantine.as_secs()
    }
}

impl fmt::Debug for VirtualAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualAddresses")
            .field("held", &self.held.len())
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
