//! DNS over UDP: which resolver was meant, told by where the query arrives.

use egress_common::{
    DNS6_PORTS, Listeners, RESOLVER_NET, RESOLVER_SLOTS as SLOTS, RESOLVER6_IDLE_NS, Resolver,
    counter, resolver_address,
};

use crate::atomic::{compare_exchange, fetch_add};
use crate::lookup::now;
use crate::maps::{NAMESPACES, RESOLVER_NEXT, RESOLVER_SLOTS, RESOLVERS, RESOLVERS6, count};
use crate::socket::Ip;

/// Destination port of DNS.
pub const PORT: u16 = 53;

/// Where a query of a caller in `scope` to `ip:port` goes instead; `None`: nowhere, let it pass.
#[inline(always)]
pub fn listener(listeners: &Listeners, scope: u32, ip: Ip, port: u16) -> Option<(Ip, u16)> {
    let resolver = Resolver {
        address: ip.bytes(),
        port,
        reserved: 0,
        scope,
    };
    if ip.is_v4() {
        if listeners.dns4 == 0 {
            return None;
        }
        let address = resolver_address(slot4(&resolver)?);
        return Some((Ip::v4(u32::from_ne_bytes(address)), listeners.dns4));
    }
    let slot = slot6(&resolver)?;
    let port = *listeners.dns6.get(slot as usize)?;
    (port != 0).then_some((Ip::LOOPBACK6, port))
}

/// The resolver behind the address that an answer came from.
#[inline(always)]
pub fn resolver(ip: Ip, port: u16, netns: impl FnOnce() -> u64) -> Option<Resolver> {
    if ip.is_v4() {
        let low = u32::from_be(ip.words[3]);
        if low >> 16 != u16::from_be_bytes(RESOLVER_NET) as u32 {
            return None;
        }
        // SAFETY: single aligned loads of a value that is only replaced whole.
        let listeners = unsafe { NAMESPACES.get(netns()) }?;
        if port != listeners.dns4 {
            return None;
        }
        return RESOLVERS
            .get((low & 0xffff).wrapping_sub(1))
            .copied()
            .filter(|found| found.port != 0);
    }
    if ip != Ip::LOOPBACK6 {
        return None;
    }
    // SAFETY: as above.
    let listeners = unsafe { NAMESPACES.get(netns()) }?;
    for slot in 0..DNS6_PORTS {
        if listeners.dns6[slot] == port && port != 0 {
            let table = RESOLVERS6.get(0)?;
            return Some(table.resolvers[slot]).filter(|found| found.port != 0);
        }
    }
    None
}

#[inline(always)]
fn slot4(resolver: &Resolver) -> Option<u32> {
    // SAFETY: one aligned word.
    if let Some(slot) = unsafe { RESOLVER_SLOTS.get(resolver) } {
        return Some(*slot);
    }
    let next = RESOLVER_NEXT.get_ptr_mut(0)?;
    // SAFETY: a map value lives as long as the map; all access is atomic.
    let slot = unsafe { fetch_add(next, 1) } as u32 % SLOTS;
    let entry = RESOLVERS.get_ptr_mut(slot)?;
    // SAFETY: the slot was just given to this run; another run gets it only
    // after all other slots went round.
    let old = unsafe { *entry };
    if old.port != 0 {
        // SAFETY: one aligned word.
        if unsafe { RESOLVER_SLOTS.get(old) }.is_some_and(|held| *held == slot) {
            let _ = RESOLVER_SLOTS.remove(old);
        }
    }
    // SAFETY: as above. Written before the slot can be found by its resolver.
    unsafe { *entry = *resolver };
    if RESOLVER_SLOTS.insert(resolver, slot, 0).is_err() {
        count(counter::LOST);
        return None;
    }
    Some(slot)
}

/// A slot is taken by moving its time of use from what was seen to now, so two
/// resolvers never take the same one.
#[inline(always)]
fn slot6(resolver: &Resolver) -> Option<u32> {
    let table = RESOLVERS6.get_ptr_mut(0)?;
    let now = now();
    for slot in 0..DNS6_PORTS {
        // SAFETY: in bounds of a map value that lives as long as the map.
        let (entry, used) = unsafe {
            (
                &raw mut (*table).resolvers[slot],
                &raw mut (*table).used_ns[slot],
            )
        };
        // SAFETY: as above; torn content does not compare equal.
        if unsafe { *entry } == *resolver {
            // SAFETY: as above.
            unsafe { used.write_volatile(now) };
            return Some(slot as u32);
        }
    }
    for slot in 0..DNS6_PORTS {
        // SAFETY: as above.
        let (entry, used) = unsafe {
            (
                &raw mut (*table).resolvers[slot],
                &raw mut (*table).used_ns[slot],
            )
        };
        // SAFETY: as above.
        let seen = unsafe { used.read_volatile() };
        // SAFETY: as above.
        if (seen == 0 || now.saturating_sub(seen) > RESOLVER6_IDLE_NS)
            && unsafe { compare_exchange(used, seen, now) } == seen
        {
            // SAFETY: the exchange made the slot ours.
            unsafe { *entry = *resolver };
            return Some(slot as u32);
        }
    }
    count(counter::LOST);
    None
}
