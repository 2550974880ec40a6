//! Who calls, and which entry the destination belongs to.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_ktime_get_ns,
};
use egress_common::{
    ANY_PORT, Config, ExactKey, FAILURE_CLOSED, Listeners, NetworkKey, SCOPE_ALL, ServiceValue,
    VERDICT_REFUSE,
};

use crate::maps::{CGROUPS, CONFIG, HEARTBEAT, NAMESPACES, NETWORKS, SERVICES};
use crate::sock_create;
use crate::socket::Ip;

/// Deepest cgroup level that is looked at; Kubernetes uses about six.
const CGROUP_LEVELS: i32 = 16;

/// What a virtual address without an entry for the port gets.
const UNREGISTERED_VIRTUAL: ServiceValue = ServiceValue {
    service: 0,
    verdict: VERDICT_REFUSE,
    on_failure: FAILURE_CLOSED,
    specificity: 128,
    flags: 0,
};

/// The settings; `None` until the agent wrote them.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.layout != 0)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// The agent's listeners in a namespace, while the agent is alive.
#[inline(always)]
pub fn listeners(config: &Config, netns: u64) -> Option<&'static Listeners> {
    let beat = *HEARTBEAT.get(0)?;
    // Zero is "stopped", also on a machine that is younger than the limit.
    if beat == 0 || now().saturating_sub(beat) > config.heartbeat_limit_ns {
        return None;
    }
    // SAFETY: a value may be replaced while it is read; each port is read once
    // and stands alone.
    let found = unsafe { NAMESPACES.get(netns) };
    if found.is_none() {
        sock_create::ask(netns);
    }
    found
}

/// Scope of the calling process: that of its cgroup, else of the nearest
/// ancestor that has one.
#[inline(always)]
pub fn scope(config: &Config) -> u32 {
    if config.scopes == 0 {
        return config.default_scope;
    }
    // SAFETY: takes nothing.
    let own = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: one aligned word.
    if let Some(scope) = unsafe { CGROUPS.get(own) } {
        return *scope;
    }
    for depth in 0..CGROUP_LEVELS {
        // SAFETY: takes a number; answers 0 for a level below the caller's.
        let ancestor = unsafe { bpf_get_current_ancestor_cgroup_id(CGROUP_LEVELS - 1 - depth) };
        if ancestor != 0 && ancestor != own {
            // SAFETY: one aligned word.
            if let Some(scope) = unsafe { CGROUPS.get(ancestor) } {
                return *scope;
            }
        }
    }
    config.default_scope
}

/// The entry of a destination: a single address before a network, a longer
/// network before a shorter one, and with equal length the caller's own scope
/// before what is exported to all.
#[inline(always)]
pub fn service(config: &Config, scope: u32, ip: Ip, port: u16) -> Option<ServiceValue> {
    let mut key = ExactKey {
        scope,
        port,
        reserved: 0,
        address: ip.bytes(),
    };
    if let Some(found) = exact(&mut key, scope) {
        return Some(found);
    }
    if ip.is_virtual() {
        key.port = ANY_PORT;
        return Some(exact(&mut key, scope).unwrap_or(UNREGISTERED_VIRTUAL));
    }
    if config.networks == 0 {
        return None;
    }
    let found = network(scope, ip, port)?;
    // A whole-port entry speaks of the outside, not of loopback.
    (found.specificity > 0 || !ip.is_local()).then_some(found)
}

#[inline(always)]
fn exact(key: &mut ExactKey, scope: u32) -> Option<ServiceValue> {
    // SAFETY: eight bytes at an address of alignment 8, copied in one load.
    unsafe {
        if scope != SCOPE_ALL {
            key.scope = scope;
            if let Some(found) = SERVICES.get(&*key) {
                return Some(*found);
            }
        }
        key.scope = SCOPE_ALL;
        SERVICES.get(&*key).copied()
    }
}

#[inline(always)]
fn network(scope: u32, ip: Ip, port: u16) -> Option<ServiceValue> {
    let mut key = Key::new(
        NetworkKey::FULL_BITS,
        NetworkKey {
            scope: SCOPE_ALL.to_be_bytes(),
            port: port.to_be_bytes(),
            reserved: [0; 2],
            address: ip.bytes(),
        },
    );
    let all = NETWORKS.get(&key).copied();
    if scope == SCOPE_ALL {
        return all;
    }
    key.data.scope = scope.to_be_bytes();
    match (NETWORKS.get(&key).copied(), all) {
        (Some(own), Some(all)) if all.specificity > own.specificity => Some(all),
        (own, all) => own.or(all),
    }
}
