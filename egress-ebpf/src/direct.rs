//! The direct path: the program picks the endpoint, takes a place under
//! `maxConnections`, and lets the connection go there with no proxy.
//!
//! A place belongs to a socket, whose storage says that it holds one. It is
//! taken in `connect`, and given back by whichever comes first: the state
//! change to CLOSE; the next `connect` of a socket, or its release, when
//! `tcp_connect` never ran. All of these the kernel runs for every socket,
//! whatever happens to its process, so a place cannot leak; the exchange of
//! the stage lets only one of them give it back.

use aya_ebpf::bindings::{
    BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK,
    SO_KEEPALIVE, SOL_SOCKET,
};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use egress_common::direct::{
    BALANCE_LEAST_CONNECTIONS, BALANCE_ROUND_ROBIN, DirectService, DirectSocket, EVENT_CLOSED,
    EVENT_ESTABLISHED, EVENT_FAILED, EVENT_NO_ENDPOINT, EVENT_OVERFLOW, Places, STAGE_CONNECTING,
    STAGE_ESTABLISHED, STAGE_NONE, STAGE_TAKEN, Slot, SlotKey,
};
use egress_common::{SOCKET_DIRECT, ServiceValue, SocketState, counter};

use crate::atomic::{compare_exchange, fetch_add};
use crate::connect::{Record, remember};
use crate::lookup::now;
use crate::maps::{DIRECT, ENDPOINTS, PLACES, SLOTS, count};
use crate::report::report;
use crate::socket::{ALLOW, Ip, Released, SockAddr, SockOps, Transport};

const SOL_TCP: u32 = 6;
const TCP_KEEPIDLE: u32 = 4;
const TCP_KEEPINTVL: u32 = 5;
const TCP_KEEPCNT: u32 = 6;
const TCP_USER_TIMEOUT: u32 = 18;

/// Tries of an exchange under contention before the place is taken by adding.
const TRIES: u32 = 16;

/// Sends the connection to an endpoint. `None`: the agent must take it, since
/// the service has no slots here, or none of the socket's address family.
#[inline(always)]
pub fn connect(address: &SockAddr<'_>, found: ServiceValue, ip: Ip, port: u16) -> Option<i32> {
    // SAFETY: copied at once; a value replaced meanwhile can only name slots
    // that are not there.
    let service = *unsafe { DIRECT.get(found.service) }?;
    let usable = if ip.is_v4() {
        service.slots4
    } else {
        service.slots
    };
    let record = Record {
        service: found.service,
        flags: found.flags,
        kind: SOCKET_DIRECT,
    };
    if usable == 0 && service.slots != 0 {
        return None;
    }
    let places = PLACES.get_ptr_mut(found.service)?;
    if !remember(address, &record, address.netns(), ip, port) {
        return Some(address.refuse(Transport::Tcp));
    }
    let slot = if usable == 0 {
        None
    } else {
        pick(found.service, &service, places, usable)
    };
    let Some(slot) = slot else {
        count(counter::REFUSED_NO_ENDPOINT);
        report_refusal(address, EVENT_NO_ENDPOINT);
        return Some(address.refuse(Transport::Tcp));
    };
    if !take(places, service.max_connections) {
        count(counter::REFUSED_OVERFLOW);
        report_refusal(address, EVENT_OVERFLOW);
        return Some(address.refuse(Transport::Tcp));
    }
    let Some(direct) = address.direct_or_new() else {
        count(counter::LOST);
        give_back(places);
        return Some(address.refuse(Transport::Tcp));
    };
    let user_timeout = address.option(SOL_TCP, TCP_USER_TIMEOUT);
    // SAFETY: the socket is locked by `connect`; no other program writes the
    // fields below while it holds no place.
    unsafe {
        (*direct).endpoint = slot.endpoint;
        (*direct).established_ns = 0;
        (*direct).address = slot.address;
        (*direct).port = slot.port;
        (*direct).released = 0;
        (*direct).user_timeout_ms = user_timeout;
        (&raw mut (*direct).stage).write_volatile(STAGE_TAKEN);
    }
    if let Some(active) = ENDPOINTS.get_ptr_mut(slot.endpoint) {
        // SAFETY: a word of a map value.
        unsafe { fetch_add(active, 1) };
    }
    set_options(address, &service, user_timeout);
    address.set(Ip::from_bytes(&slot.address), slot.port);
    count(counter::DIRECT);
    Some(ALLOW)
}

/// A socket is connected again: give back what the attempt before it took, if
/// that never came to `tcp_connect`.
#[inline(always)]
pub fn abandoned(address: &SockAddr<'_>) {
    if let (Some(direct), Some(state)) = (address.direct(), address.state()) {
        if release(direct, STAGE_TAKEN, state.service) {
            report(EVENT_FAILED, state, Some(direct), 0, 0, 0);
        }
    }
}

/// The last descriptor of a socket is closed.
#[inline(always)]
pub fn released(socket: &Released<'_>) {
    let Some(direct) = socket.direct() else {
        return;
    };
    let Some(state) = socket.state() else {
        return;
    };
    if release(direct, STAGE_TAKEN, state.service) {
        report(EVENT_FAILED, state, Some(direct), 0, 0, 0);
        return;
    }
    // What ends the connection from now on is the application's doing: unread
    // data or SO_LINGER make the coming close a reset.
    // SAFETY: nobody else holds the socket.
    unsafe { (*direct).released = 1 };
    // Closed already, and its state change was kept from us by another
    // program on the same hook that took its flag away.
    if socket.tcp_state() == BPF_TCP_CLOSE
        && (release(direct, STAGE_CONNECTING, state.service)
            || release(direct, STAGE_ESTABLISHED, state.service))
    {
        report(EVENT_CLOSED, state, Some(direct), 0, 0, 0);
    }
}

/// `tcp_connect`: from here on the state change to CLOSE is sure to come.
#[inline(always)]
pub fn connecting(socket: &SockOps<'_>) {
    if let Some(direct) = socket.direct() {
        // SAFETY: a word of the socket's storage.
        unsafe { compare_exchange(&raw mut (*direct).stage, STAGE_TAKEN, STAGE_CONNECTING) };
        socket.watch_state();
    }
}

/// The handshake is over.
#[inline(always)]
pub fn established(socket: &SockOps<'_>, state: &SocketState) {
    let Some(direct) = socket.direct() else {
        return;
    };
    // SAFETY: a word of the socket's storage.
    let before = unsafe {
        compare_exchange(
            &raw mut (*direct).stage,
            STAGE_CONNECTING,
            STAGE_ESTABLISHED,
        )
    };
    if before != STAGE_CONNECTING {
        return;
    }
    // SAFETY: the socket is locked.
    let user_timeout = unsafe {
        (*direct).established_ns = now();
        (*direct).user_timeout_ms
    };
    // It bounded the handshake alone.
    socket.set_option(SOL_TCP, TCP_USER_TIMEOUT, user_timeout);
    // Again, should another program have taken the flag away.
    socket.watch_state();
    report(EVENT_ESTABLISHED, state, Some(direct), 0, 0, 0);
}

/// Our FIN was acknowledged.
#[inline(always)]
pub fn half_closed(socket: &SockOps<'_>) {
    if let Some(direct) = socket.direct() {
        // SAFETY: the socket is locked.
        unsafe { (*direct).half_closed_received = socket.bytes().0 };
    }
}

/// The connection is over, or never was.
#[inline(always)]
pub fn closed(socket: &SockOps<'_>, state: &SocketState, old: u32) {
    let Some(direct) = socket.direct() else {
        return;
    };
    if release(direct, STAGE_CONNECTING, state.service) {
        report(EVENT_FAILED, state, Some(direct), old, 0, 0);
    } else if release(direct, STAGE_ESTABLISHED, state.service) {
        // The kernel counts SYN and FIN as a byte each.
        let (received, acked) = socket.bytes();
        let our_fin = matches!(old, BPF_TCP_FIN_WAIT2 | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK);
        let their_fin = match old {
            BPF_TCP_CLOSE_WAIT | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK => true,
            // Closed by the FIN of the other side, or, when the application
            // has let go of the socket, without waiting for it.
            // SAFETY: the socket is locked.
            BPF_TCP_FIN_WAIT2 => received > unsafe { (*direct).half_closed_received },
            _ => false,
        };
        report(
            EVENT_CLOSED,
            state,
            Some(direct),
            old,
            acked.saturating_sub(1 + u64::from(our_fin)),
            received.saturating_sub(u64::from(their_fin)),
        );
    }
}

/// Picks one of the first `usable` slots.
#[inline(always)]
fn pick(
    number: u32,
    service: &DirectService,
    places: *mut Places,
    usable: u32,
) -> Option<&'static Slot> {
    let at = |index: u64| {
        let key = SlotKey {
            service: number,
            generation: service.generation,
            index: (index % u64::from(usable.max(1))) as u32,
        };
        // SAFETY: a slot is never rewritten, only removed once two generations
        // old.
        unsafe { SLOTS.get(key) }
    };
    if service.balance == BALANCE_ROUND_ROBIN {
        // SAFETY: a word of a map value.
        return at(unsafe { fetch_add(&raw mut (*places).picks, 1) });
    }
    // SAFETY: takes nothing.
    let first = at(u64::from(unsafe { bpf_get_prandom_u32() }))?;
    if service.balance != BALANCE_LEAST_CONNECTIONS {
        return Some(first);
    }
    // SAFETY: takes nothing.
    let Some(second) = at(u64::from(unsafe { bpf_get_prandom_u32() })) else {
        return Some(first);
    };
    if load(second.endpoint) < load(first.endpoint) {
        Some(second)
    } else {
        Some(first)
    }
}

#[inline(always)]
fn load(endpoint: u64) -> u64 {
    // SAFETY: one aligned word.
    unsafe { ENDPOINTS.get(endpoint) }.copied().unwrap_or(0)
}

/// Takes a place unless all are taken.
#[inline(always)]
fn take(places: *mut Places, most: u32) -> bool {
    // SAFETY: a word of a map value, here and below.
    let active = unsafe { &raw mut (*places).active };
    if most == u32::MAX {
        // SAFETY: as above.
        unsafe { fetch_add(active, 1) };
        return true;
    }
    for _ in 0..TRIES {
        // SAFETY: as above.
        let seen = unsafe { active.read_volatile() };
        if seen >= u64::from(most) {
            return false;
        }
        // SAFETY: as above.
        if unsafe { compare_exchange(active, seen, seen + 1) } == seen {
            return true;
        }
    }
    // Never more than allowed, though under such contention one too many may
    // be refused.
    // SAFETY: as above.
    if unsafe { fetch_add(active, 1) } < u64::from(most) {
        return true;
    }
    // SAFETY: as above.
    unsafe { fetch_add(active, u64::MAX) };
    false
}

#[inline(always)]
fn give_back(places: *mut Places) {
    // SAFETY: a word of a map value; adding the maximum takes one away.
    unsafe { fetch_add(&raw mut (*places).active, u64::MAX) };
}

/// Gives the place of a socket in `stage` back; false when it is in another.
#[inline(always)]
fn release(direct: *mut DirectSocket, stage: u64, service: u32) -> bool {
    // SAFETY: a word of the socket's storage.
    if unsafe { compare_exchange(&raw mut (*direct).stage, stage, STAGE_NONE) } != stage {
        return false;
    }
    if let Some(places) = PLACES.get_ptr_mut(service) {
        give_back(places);
    }
    // SAFETY: as above.
    if let Some(active) = ENDPOINTS.get_ptr_mut(unsafe { (*direct).endpoint }) {
        // SAFETY: a word of a map value.
        unsafe { fetch_add(active, u64::MAX) };
    }
    true
}

#[inline(always)]
fn set_options(address: &SockAddr<'_>, service: &DirectService, user_timeout: u32) {
    if service.keepalive != 0 {
        address.set_option(SOL_SOCKET, SO_KEEPALIVE, 1);
        for (option, value) in [
            (TCP_KEEPIDLE, service.keepalive_idle_s),
            (TCP_KEEPINTVL, service.keepalive_interval_s),
            (TCP_KEEPCNT, service.keepalive_probes),
        ] {
            if value != 0 {
                address.set_option(SOL_TCP, option, value);
            }
        }
    }
    let timeout = service.connect_timeout_ms;
    if timeout != 0 && (user_timeout == 0 || timeout < user_timeout) {
        address.set_option(SOL_TCP, TCP_USER_TIMEOUT, timeout);
    }
}

/// Reports a connection that was refused before an endpoint was used.
#[inline(always)]
fn report_refusal(address: &SockAddr<'_>, kind: u8) {
    if let Some(state) = address.state() {
        report(kind, state, None, 0, 0, 0);
    }
}
