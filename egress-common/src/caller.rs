//! Who calls from where: network namespaces that the agent does not know yet,
//! and destinations that nothing registers.

use crate::Address;

/// A socket in a network namespace without listeners, sent through the ring
/// buffer `NAMESPACE_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamespaceEvent {
    /// Cookie of the namespace.
    pub netns: u64,
    /// Process that made the socket, in the initial process namespace.
    pub pid: u32,
    /// Its thread, which may be in another network namespace than the rest.
    pub tid: u32,
}

/// A namespace is reported again only after so long, while sockets are made in
/// it and it stays without listeners.
pub const ASK_AGAIN_NS: u64 = 50_000_000;

/// Key of `DESTINATIONS`: a destination that nothing registers, and who went
/// there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DestinationKey {
    /// Cgroup of the caller.
    pub cgroup: u64,
    /// Destination.
    pub address: Address,
    /// Destination port, host order.
    pub port: u16,
    /// One of the `TRANSPORT_` constants.
    pub transport: u8,
    /// Non-zero: it was refused.
    pub refused: u8,
    /// Always zero.
    pub reserved: u32,
}

/// TCP.
pub const TRANSPORT_TCP: u8 = 6;
/// UDP, and UDP-Lite.
pub const TRANSPORT_UDP: u8 = 17;

/// Value of `DESTINATIONS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// Connections, and datagrams with a destination of their own.
    pub count: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of the first.
    pub first_ns: u64,
    /// Of the last.
    pub last_ns: u64,
    /// Of the last report of a refusal.
    pub told_ns: u64,
    /// Network namespace cookie of the first.
    pub netns: u64,
    /// Process of the first.
    pub pid: u32,
    /// User of the first.
    pub uid: u32,
    /// Task name of the first.
    pub comm: [u8; 16],
}

/// The same refusal is reported again only after so long.
pub const TELL_AGAIN_NS: u64 = 10_000_000_000;

/// A refusal, sent through the ring buffer `REFUSALS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What was refused to whom.
    pub key: DestinationKey,
    /// How often so far, and by whom first.
    pub value: Destination,
}

const _: () = {
    assert!(size_of::<NamespaceEvent>() == 16);
    assert!(size_of::<DestinationKey>() == 32);
    assert!(size_of::<Destination>() == 64);
    assert!(size_of::<Refusal>() == 96);
};

#[cfg(feature = "user")]
mod user {
    #![allow(
        unsafe_code,
        reason = "aya asks for a marker that a type is plain old data"
    )]
    use super::{Destination, DestinationKey, NamespaceEvent, Refusal};

    // SAFETY: `repr(C)`, only integers and arrays of them, and the size checks
    // above prove that there is no padding.
    unsafe impl aya::Pod for NamespaceEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DestinationKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Destination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Refusal {}
}
