//! `cgroup/sock_create`: a socket in a network namespace that has no listeners
//! of the agent, which is asked to open some before the socket connects.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use egress_common::caller::{ASK_AGAIN_NS, NamespaceEvent};
use egress_common::counter;

use crate::lookup;
use crate::maps::{NAMESPACE_EVENTS, NAMESPACES, NAMESPACES_ASKED, count};

/// A socket was made in this namespace.
#[inline(always)]
pub fn created(netns: u64) {
    // SAFETY: the value is not read.
    if lookup::config().is_some() && unsafe { NAMESPACES.get(netns) }.is_none() {
        ask(netns);
    }
}

/// Asks the agent for listeners in a namespace, unless it was asked just now.
#[inline(always)]
pub fn ask(netns: u64) {
    let now = lookup::now();
    // SAFETY: one aligned word.
    if let Some(asked) = unsafe { NAMESPACES_ASKED.get(netns) } {
        if now.saturating_sub(*asked) < ASK_AGAIN_NS {
            return;
        }
    }
    let _ = NAMESPACES_ASKED.insert(netns, now, 0);
    let Some(mut place) = NAMESPACE_EVENTS.reserve(0) else {
        count(counter::REPORTS_LOST);
        return;
    };
    let event: *mut NamespaceEvent = place.as_mut_ptr();
    // SAFETY: memory of this event's size, reserved for it, of which every
    // field is written.
    unsafe {
        let task = bpf_get_current_pid_tgid();
        (*event).netns = netns;
        (*event).pid = (task >> 32) as u32;
        (*event).tid = task as u32;
    }
    place.submit(0);
}
