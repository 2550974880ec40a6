//! Reports on direct connections, for the agent's ejection, records and
//! metrics. Waking it for each took 13 of the 16 µs by which `connect` was
//! dearer than without interception (Linux 6.18, two processors, its thread
//! asleep), so only a failure, which may eject an endpoint, does that at once;
//! what is not urgent wakes it once in a while, and it looks again by itself
//! after that while.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use egress_common::direct::{DirectEvent, DirectSocket, EVENT_FAILED, WAKE_AGAIN_NS};
use egress_common::{SocketState, counter};

use crate::lookup::now;
use crate::maps::{EVENTS, EVENTS_SIZE, WOKEN, count};

#[inline(always)]
pub fn report(
    kind: u8,
    state: &SocketState,
    direct: Option<*mut DirectSocket>,
    old: u32,
    sent: u64,
    received: u64,
) {
    let Some(mut place) = EVENTS.reserve(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    let now = now();
    let event: *mut DirectEvent = place.as_mut_ptr();
    // SAFETY: memory of this event's size, reserved for it, of which every
    // field is written; `direct` is the socket's storage.
    unsafe {
        (*event).caller = state.caller;
        (*event).original = state.original;
        (*event).connected_ns = state.connected_ns;
        (*event).now_ns = now;
        (*event).sent = sent;
        (*event).received = received;
        (*event).service = state.service;
        (*event).original_port = state.port;
        (*event).kind = kind;
        (*event).old_state = old as u8;
        (*event).reserved = [0; 5];
        if let Some(direct) = direct {
            (*event).released = (*direct).released as u8;
            (*event).address = (*direct).address;
            (*event).port = (*direct).port;
            (*event).endpoint = (*direct).endpoint;
            (*event).established_ns = (*direct).established_ns;
        } else {
            (*event).released = 0;
            (*event).address = [0; 16];
            (*event).port = 0;
            (*event).endpoint = 0;
            (*event).established_ns = 0;
        }
    }
    place.submit(u64::from(if wakes(kind, now) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    }));
}

/// Whether the agent must be woken for a report of this kind.
#[inline(always)]
fn wakes(kind: u8, now: u64) -> bool {
    if kind == EVENT_FAILED {
        return true;
    }
    if let Some(woken) = WOKEN.get_ptr_mut(0) {
        // Two processors may both find that it is time; one wake-up too many
        // harms nobody.
        // SAFETY: one aligned word of a map value.
        unsafe {
            if now.saturating_sub(woken.read_volatile()) >= WAKE_AGAIN_NS {
                woken.write_volatile(now);
                return true;
            }
        }
    }
    // More than it can be expected to find in time otherwise.
    // SAFETY: takes a map and a flag.
    let waiting = unsafe {
        bpf_ringbuf_query(
            (&raw const EVENTS).cast_mut().cast(),
            u64::from(BPF_RB_AVAIL_DATA),
        )
    };
    waiting > EVENTS_SIZE as u64 / 2
}
