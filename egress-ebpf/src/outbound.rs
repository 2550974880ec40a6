//! Destinations that nothing registers: whether they pass, and who goes there.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid,
};
use aya_log_ebpf::debug;
use egress_common::caller::{
    Destination, DestinationKey, Refusal, TELL_AGAIN_NS, TRANSPORT_TCP, TRANSPORT_UDP,
};
use egress_common::{ANY_PORT, Config, NetworkKey, OUTBOUND_REGISTRY_ONLY, SCOPE_ALL, counter};

use crate::atomic::fetch_add;
use crate::lookup::{self, now};
use crate::maps::{ALLOWED, DESTINATIONS, OUTBOUND, REFUSALS, count};
use crate::socket::{ALLOW, Ip, SockAddr, Transport};

const IPPROTO_DCCP: u32 = 33;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_UDPLITE: u32 = 136;

/// Neither registered nor, while the agent lives, DNS.
#[inline(always)]
pub fn unregistered(
    address: &SockAddr<'_>,
    config: &Config,
    scope: u32,
    transport: Transport,
    ip: Ip,
    port: u16,
) -> i32 {
    if ip.is_local() {
        count(counter::PASSED);
        return ALLOW;
    }
    let refused = mode(config, scope) == u32::from(OUTBOUND_REGISTRY_ONLY) && !allowed(ip, port);
    if refused || config.observe != 0 {
        note(address, transport, ip, port, refused);
    }
    if !refused {
        count(counter::PASSED);
        return ALLOW;
    }
    count(counter::REFUSED_UNREGISTERED);
    if config.log != 0 {
        debug!(address.context(), "refused: not registered, port {}", port);
    }
    address.refuse_with(transport, config.outbound_errno)
}

/// Whether a socket of this protocol may be made: not under registry-only when
/// the kernel has no hook for where it connects.
#[inline(always)]
pub fn may_be_made(protocol: u32) -> bool {
    if !matches!(protocol, IPPROTO_DCCP | IPPROTO_SCTP | IPPROTO_UDPLITE) {
        return true;
    }
    let Some(config) = lookup::config() else {
        return true;
    };
    let may = mode(config, lookup::scope(config)) != u32::from(OUTBOUND_REGISTRY_ONLY);
    if !may {
        count(counter::REFUSED_UNREGISTERED);
    }
    may
}

#[inline(always)]
fn mode(config: &Config, scope: u32) -> u32 {
    if config.outbound_scopes != 0 {
        // SAFETY: one aligned word.
        if let Some(mode) = unsafe { OUTBOUND.get(scope) } {
            return *mode;
        }
    }
    u32::from(config.outbound)
}

/// Whether the settings allow the destination.
#[inline(always)]
fn allowed(ip: Ip, port: u16) -> bool {
    let mut key = Key::new(
        NetworkKey::FULL_BITS,
        NetworkKey {
            scope: SCOPE_ALL.to_be_bytes(),
            port: port.to_be_bytes(),
            reserved: [0; 2],
            address: ip.bytes(),
        },
    );
    if ALLOWED.get(&key).is_some() {
        return true;
    }
    key.data.port = ANY_PORT.to_be_bytes();
    ALLOWED.get(&key).is_some()
}

/// Counts the destination for this caller; a refusal is reported now and then.
#[inline(always)]
fn note(address: &SockAddr<'_>, transport: Transport, ip: Ip, port: u16, refused: bool) {
    let key = DestinationKey {
        // SAFETY: takes nothing.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        address: ip.bytes(),
        port,
        transport: match transport {
            Transport::Tcp => TRANSPORT_TCP,
            Transport::Udp => TRANSPORT_UDP,
        },
        refused: u8::from(refused),
        reserved: 0,
    };
    let now = now();
    if let Some(known) = DESTINATIONS.get_ptr_mut(&key) {
        // SAFETY: a map value lives as long as the map; what races here are
        // words that each stand alone.
        unsafe {
            fetch_add(&raw mut (*known).count, 1);
            (*known).last_ns = now;
            if refused && now.saturating_sub((*known).told_ns) > TELL_AGAIN_NS {
                (*known).told_ns = now;
                tell(&key, &*known);
            }
        }
        return;
    }
    let mut first = Destination {
        count: 1,
        first_ns: now,
        last_ns: now,
        told_ns: now,
        netns: address.netns(),
        pid: 0,
        uid: 0,
        comm: [0; 16],
    };
    // SAFETY: the helpers take nothing, or memory of the size given.
    unsafe {
        first.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        first.uid = bpf_get_current_uid_gid() as u32;
        bpf_get_current_comm((&raw mut first.comm).cast(), 16);
    }
    // Where another CPU was faster, its count is one short.
    let _ = DESTINATIONS.insert(&key, &first, 0);
    if refused {
        tell(&key, &first);
    }
}

#[inline(always)]
fn tell(key: &DestinationKey, value: &Destination) {
    let Some(mut place) = REFUSALS.reserve(0) else {
        count(counter::REPORTS_LOST);
        return;
    };
    let refusal: *mut Refusal = place.as_mut_ptr();
    // SAFETY: memory of this report's size, reserved for it, of which every
    // field is written.
    unsafe {
        (*refusal).key = *key;
        (*refusal).value = *value;
    }
    place.submit(0);
}
