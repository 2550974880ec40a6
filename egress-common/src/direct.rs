//! The direct path: connections whose endpoint the kernel program picks.

use crate::{Address, Caller};

/// How the kernel program serves one service; value of `DIRECT`, keyed by
/// service number.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectService {
    /// The slots in force are those with this generation in their key.
    pub generation: u32,
    /// Slots, the IPv4 ones first. 0: no endpoint may be used.
    pub slots: u32,
    /// IPv4 slots.
    pub slots4: u32,
    /// Most connections at a time; [`u32::MAX`]: any number.
    pub max_connections: u32,
    /// Milliseconds for the handshake (`TCP_USER_TIMEOUT` until it is over);
    /// 0: the kernel's own patience.
    pub connect_timeout_ms: u32,
    /// Seconds before the first keepalive probe; 0: the kernel's default.
    pub keepalive_idle_s: u32,
    /// Seconds between probes; 0: the kernel's default.
    pub keepalive_interval_s: u32,
    /// Probes; 0: the kernel's default.
    pub keepalive_probes: u32,
    /// Non-zero: `SO_KEEPALIVE` is set.
    pub keepalive: u8,
    /// One of the `BALANCE_` constants.
    pub balance: u8,
    /// Always zero.
    pub reserved: [u8; 6],
}

/// Each slot in turn.
pub const BALANCE_ROUND_ROBIN: u8 = 0;
/// Any slot.
pub const BALANCE_RANDOM: u8 = 1;
/// The one of two random slots whose endpoint has fewer connections.
pub const BALANCE_LEAST_CONNECTIONS: u8 = 2;

/// Key of `SLOTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotKey {
    /// Service number.
    pub service: u32,
    /// [`DirectService::generation`].
    pub generation: u32,
    /// From 0.
    pub index: u32,
}

/// One share of an endpoint's weight; value of `SLOTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Number of the endpoint.
    pub endpoint: u64,
    /// Address to connect to.
    pub address: Address,
    /// Port to connect to, host order.
    pub port: u16,
    /// Always zero.
    pub reserved: [u8; 6],
}

/// What the kernel alone counts for a service; value of `PLACES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places {
    /// Connections at present.
    pub active: u64,
    /// Picks so far, for round robin.
    pub picks: u64,
}

/// State of a direct connection, kept on its socket; value of
/// `DIRECT_SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectSocket {
    /// One of the `STAGE_` constants.
    pub stage: u64,
    /// Endpoint.
    pub endpoint: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of the established connection; 0: not yet.
    pub established_ns: u64,
    /// What the kernel had counted as received when its FIN was acknowledged
    /// (FIN_WAIT2).
    pub half_closed_received: u64,
    /// Address that was picked.
    pub address: Address,
    /// Port that was picked, host order.
    pub port: u16,
    /// 1 once the last descriptor of the socket is closed.
    pub released: u16,
    /// The application's own `TCP_USER_TIMEOUT`, to be put back.
    pub user_timeout_ms: u32,
}

/// The socket holds no place.
pub const STAGE_NONE: u64 = 0;
/// It holds a place, and `tcp_connect` has not run yet.
pub const STAGE_TAKEN: u64 = 1;
/// It holds a place, and its SYN is out.
pub const STAGE_CONNECTING: u64 = 2;
/// It holds a place, and is established.
pub const STAGE_ESTABLISHED: u64 = 3;

/// A report on a direct connection, sent through the ring buffer `EVENTS`. No
/// place depends on its arrival.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectEvent {
    /// Who called.
    pub caller: Caller,
    /// What the application dialled.
    pub original: Address,
    /// Where it went.
    pub address: Address,
    /// Number of the endpoint; 0: none was picked.
    pub endpoint: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of `connect`.
    pub connected_ns: u64,
    /// Of the end of the handshake; 0: never.
    pub established_ns: u64,
    /// Of this report.
    pub now_ns: u64,
    /// Bytes that the endpoint acknowledged.
    pub sent: u64,
    /// Bytes received from the endpoint.
    pub received: u64,
    /// Service number.
    pub service: u32,
    /// Port that the application dialled, host order.
    pub original_port: u16,
    /// Port where it went, host order.
    pub port: u16,
    /// One of the `EVENT_` constants.
    pub kind: u8,
    /// TCP state (`enum` in `net/tcp_states.h`) that the connection was closed
    /// from: `TCP_ESTABLISHED` (1) and `TCP_CLOSE_WAIT` (8) mean a reset.
    pub old_state: u8,
    /// 1 when the application had closed the socket before.
    pub released: u8,
    /// Always zero.
    pub reserved: [u8; 5],
}

/// The agent is woken at most once in this time, unless an event is urgent: a
/// failed connection, or the ring half full. It looks again when this time has
/// passed since it was woken.
pub const WAKE_AGAIN_NS: u64 = 100_000_000;

/// The handshake succeeded.
pub const EVENT_ESTABLISHED: u8 = 1;
/// The handshake failed: refused, timed out, given up.
pub const EVENT_FAILED: u8 = 2;
/// The connection is over.
pub const EVENT_CLOSED: u8 = 3;
/// Refused: no place under `maxConnections`.
pub const EVENT_OVERFLOW: u8 = 4;
/// Refused: no endpoint may be used.
pub const EVENT_NO_ENDPOINT: u8 = 5;

const _: () = {
    assert!(size_of::<DirectService>() == 40);
    assert!(size_of::<SlotKey>() == 12);
    assert!(size_of::<Slot>() == 32);
    assert!(size_of::<Places>() == 16);
    assert!(size_of::<DirectSocket>() == 56);
    assert!(size_of::<DirectEvent>() == 136);
};

#[cfg(feature = "user")]
mod user {
    #![allow(
        unsafe_code,
        reason = "aya asks for a marker that a type is plain old data"
    )]
    use super::{DirectEvent, DirectService, DirectSocket, Places, Slot, SlotKey};

    // SAFETY: `repr(C)`, only integers and arrays of them, and the size checks
    // above prove that there is no padding.
    unsafe impl aya::Pod for DirectService {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SlotKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Slot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Places {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectSocket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DirectEvent {}
}
