//! The fixed-layout types that the kernel programs and the agent share.
//!
//! Every type is `repr(C)` with no implicit padding and a compile-time size
//! check. Any change of a layout or of a map's meaning must raise
//! [`LAYOUT_VERSION`]: pins of another version are replaced, not reused.
//!
//! Addresses are always sixteen bytes in network order. An IPv4 address is
//! stored in its IPv4-mapped form (`::ffff:a.b.c.d`, RFC 4291 section
//! 2.5.5.2), so that an IPv6 socket which dials a mapped address meets the
//! same entries as an IPv4 socket.
#![no_std]

pub mod caller;
pub mod direct;

/// Version of the layouts below and of the maps that hold them.
pub const LAYOUT_VERSION: u32 = 5;

/// Scope of entries that are exported to every namespace.
pub const SCOPE_ALL: u32 = 0;

/// Sixteen bytes in network order; IPv4 in mapped form.
pub type Address = [u8; 16];

/// Key of the exact-address map `SERVICES`: one virtual or real address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ExactKey {
    /// [`SCOPE_ALL`] or the number of the caller's namespace.
    pub scope: u32,
    /// Destination port, host order. [`ANY_PORT`] with a virtual address: every
    /// port of it that has no entry of its own.
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
    /// Destination address.
    pub address: Address,
}

/// Port of an [`ExactKey`] that stands for all other ports of its virtual
/// address. Without such an entry they are refused: a virtual address leads
/// nowhere, so a packet to it would only time out.
pub const ANY_PORT: u16 = 0;

/// Virtual IPv4 addresses: 240.240.0.0/16 (class E, RFC 1112 section 4).
pub const VIRTUAL_NET4: [u8; 2] = [240, 240];

/// Virtual IPv6 addresses: 2001:2::/48 (benchmarking, RFC 5180 section 8).
pub const VIRTUAL_NET6: [u8; 6] = [0x20, 0x01, 0x00, 0x02, 0, 0];

/// Bytes before the IPv4 address in an IPv4-mapped IPv6 address.
pub const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IPv4 address in its IPv4-mapped form.
pub const fn mapped(v4: [u8; 4]) -> Address {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// Whether an address is one of the virtual ones, which lead nowhere.
pub fn is_virtual(address: &Address) -> bool {
    if address[..12] == MAPPED_PREFIX {
        address[12..14] == VIRTUAL_NET4
    } else {
        address[..6] == VIRTUAL_NET6
    }
}

/// Data of a key of the longest-prefix map `NETWORKS`, after the prefix length.
///
/// Scope and port are always matched whole, so a prefix length is
/// [`NetworkKey::FIXED_BITS`] plus the bits of the network; a whole-port entry
/// (resolution NONE with no address) has no address bits at all.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NetworkKey {
    /// [`SCOPE_ALL`] or the number of the caller's namespace, network order.
    pub scope: [u8; 4],
    /// Destination port, network order.
    pub port: [u8; 2],
    /// Always zero.
    pub reserved: [u8; 2],
    /// Network address.
    pub address: Address,
}

impl NetworkKey {
    /// Bits before the address: scope, port, reserved.
    pub const FIXED_BITS: u32 = 64;
    /// Prefix length of a single address.
    pub const FULL_BITS: u32 = Self::FIXED_BITS + 128;
}

/// Whole key of `NETWORKS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NetworkPrefix {
    /// Bits of `data` that count.
    pub bits: u32,
    /// The rest.
    pub data: NetworkKey,
}

/// Value of both service maps.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceValue {
    /// Number of the service, chosen by the agent; stable while it lives.
    pub service: u32,
    /// One of the `VERDICT_` constants.
    pub verdict: u8,
    /// One of the `FAILURE_` constants: what a proxied service does while the
    /// agent cannot take the connection.
    pub on_failure: u8,
    /// Bits of the address that this entry fixes (128 for a single address),
    /// to compare an own entry with one exported to all.
    pub specificity: u8,
    /// Bit set of `ENTRY_` flags.
    pub flags: u8,
}

/// Let the connection go on untouched.
pub const VERDICT_PASS: u8 = 0;
/// Fail `connect` with ECONNREFUSED.
pub const VERDICT_REFUSE: u8 = 1;
/// The kernel program picks the endpoint; no proxy in the path.
pub const VERDICT_DIRECT: u8 = 2;
/// Hand the connection to the agent.
pub const VERDICT_PROXY: u8 = 3;

/// While the agent is down, `connect` fails with ECONNREFUSED.
pub const FAILURE_CLOSED: u8 = 0;
/// While the agent is down, the connection goes on to the address that the
/// application dialled. Where that is a virtual one, it is refused.
pub const FAILURE_OPEN: u8 = 1;

/// The address is a real one that the host resolved to, not a virtual one.
pub const ENTRY_REAL_ADDRESS: u8 = 1;
/// The address does not belong to this service alone: the connection is the
/// service's only if Host or SNI says so.
pub const ENTRY_NAME_DECIDES: u8 = 2;

/// Service number of captured DNS over TCP.
pub const SERVICE_DNS: u32 = u32::MAX;

/// Settings that the kernel programs read; the only entry of the map `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// [`LAYOUT_VERSION`] of the agent that wrote this.
    pub layout: u32,
    /// Scope of callers whose cgroup is not in `CGROUPS`.
    pub default_scope: u32,
    /// Age in nanoseconds of the heartbeat (the only entry of the map
    /// `HEARTBEAT`, `CLOCK_MONOTONIC` nanoseconds) past which the agent counts
    /// as down.
    pub heartbeat_limit_ns: u64,
    /// One of the `OUTBOUND_` constants.
    pub outbound: u8,
    /// Non-zero: capture DNS.
    pub dns: u8,
    /// Non-zero: emit aya-log lines.
    pub log: u8,
    /// Non-zero: `CGROUPS` has entries, so callers are looked up in it.
    pub scopes: u8,
    /// Non-zero: `NETWORKS` has entries.
    pub networks: u8,
    /// What `connect` and `sendmsg` fail with where `OUTBOUND_REGISTRY_ONLY`
    /// refuses; 0 means ECONNREFUSED.
    pub outbound_errno: u8,
    /// Non-zero: `OUTBOUND` has entries, scopes with a mode of their own.
    pub outbound_scopes: u8,
    /// Non-zero: unregistered destinations are kept in `DESTINATIONS`.
    pub observe: u8,
}

/// Unregistered destinations pass.
pub const OUTBOUND_ALLOW_ANY: u8 = 0;
/// Unregistered destinations are refused.
pub const OUTBOUND_REGISTRY_ONLY: u8 = 1;

/// The agent's listeners in one network namespace; value of `NAMESPACES`,
/// keyed by namespace cookie (`bpf_get_netns_cookie`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listeners {
    /// TCP on 127.0.0.1, host order; 0 when there is none.
    pub tcp4: u16,
    /// TCP on `[::1]`.
    pub tcp6: u16,
    /// DNS over UDP on 127.83.0.0/16 (see [`resolver_address`]).
    pub dns4: u16,
    /// DNS over TCP on 127.0.0.1.
    pub dns_tcp4: u16,
    /// DNS over TCP on `[::1]`.
    pub dns_tcp6: u16,
    /// Always zero.
    pub reserved: u16,
    /// DNS over UDP on `[::1]`: an IPv6 resolver in slot `n` is reached
    /// through port `dns6[n % DNS6_PORTS]`.
    pub dns6: [u16; DNS6_PORTS],
}

/// UDP listeners on `[::1]` in each namespace.
pub const DNS6_PORTS: usize = 16;

/// A resolver that some application asked; value of the array `RESOLVERS`
/// (by slot) and, with the slot as value, key of `RESOLVER_SLOTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Resolver {
    /// Address as dialled.
    pub address: Address,
    /// Port as dialled, host order.
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
    /// Scope of those who asked: callers of two namespaces never share a slot,
    /// so the slot tells whose policy answers the query.
    pub scope: u32,
}

/// The IPv6 resolvers in use; the only entry of the array `RESOLVERS6`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resolvers6 {
    /// `CLOCK_MONOTONIC` nanoseconds of each slot's last query; 0: never used.
    pub used_ns: [u64; DNS6_PORTS],
    /// What each slot stands for.
    pub resolvers: [Resolver; DNS6_PORTS],
}

/// A slot of [`Resolvers6`] may be given to another resolver when nobody asked
/// through it for so long.
pub const RESOLVER6_IDLE_NS: u64 = 30_000_000_000;

/// Number of slots for IPv4 resolvers. They are given out in turn, so that one
/// is used again only after so many other resolvers were met.
pub const RESOLVER_SLOTS: u32 = 16384;

/// First two bytes of the loopback network that stands for IPv4 resolvers.
pub const RESOLVER_NET: [u8; 2] = [127, 83];

/// The loopback address that stands for the IPv4 resolver in `slot`:
/// 127.83.0.0 plus the slot plus one.
pub const fn resolver_address(slot: u32) -> [u8; 4] {
    let n = slot + 1;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two low bytes of a number below 65536"
    )]
    let low = [(n >> 8) as u8, n as u8];
    [RESOLVER_NET[0], RESOLVER_NET[1], low[0], low[1]]
}

/// Who made a connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// `bpf_get_current_cgroup_id`.
    pub cgroup: u64,
    /// `bpf_get_netns_cookie`.
    pub netns: u64,
    /// Process (thread group) id in the initial namespace.
    pub pid: u32,
    /// Real user id in the initial namespace.
    pub uid: u32,
    /// Task name, zero padded.
    pub comm: [u8; 16],
}

/// State that the kernel keeps on a socket (`BPF_MAP_TYPE_SK_STORAGE`): freed
/// with the socket, so it cannot leak. Value of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketState {
    /// Who called `connect`.
    pub caller: Caller,
    /// The destination that the application dialled.
    pub original: Address,
    /// `CLOCK_MONOTONIC` nanoseconds of `connect`.
    pub connected_ns: u64,
    /// Service number.
    pub service: u32,
    /// Port that the application dialled, host order.
    pub port: u16,
    /// One of the `SOCKET_` constants.
    pub kind: u8,
    /// Bit set of `ENTRY_` flags of the entry that matched.
    pub flags: u8,
}

/// Nothing was done to this socket.
pub const SOCKET_NONE: u8 = 0;
/// A socket of the agent: never captured. Set through the map's descriptor,
/// which a workload does not have.
pub const SOCKET_BYPASS: u8 = 1;
/// Redirected to the agent; not yet seen by `sock_ops`.
pub const SOCKET_REDIRECTED: u8 = 2;
/// Redirected, and its record stands in `ORIGINS`.
pub const SOCKET_PUBLISHED: u8 = 3;
/// A UDP socket connected to a resolver.
pub const SOCKET_DNS: u8 = 4;
/// The kernel picked its endpoint.
pub const SOCKET_DIRECT: u8 = 5;
/// Only in a record of `ORIGINS`: the client has closed its side of the
/// connection, which may still wait to be accepted, with what was sent on it.
pub const SOCKET_GONE: u8 = 6;

/// Key of `ORIGINS`: what `accept` can see of a redirected connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OriginKey {
    /// Network namespace cookie.
    pub netns: u64,
    /// Source address of the connection.
    pub address: Address,
    /// Source port, host order.
    pub port: u16,
    /// Port of the listener, host order: the kernel may use one source port
    /// for connections to several listeners.
    pub listener: u16,
    /// Always zero.
    pub reserved: [u8; 4],
}

/// Value of `ORIGINS`: what the application dialled, and who it was. Looked up
/// and deleted by the agent when it accepts.
pub type Origin = SocketState;

/// Kind of an entry of `NUMBERS`, the upper half of its value; the lower half
/// is the number. The programs do not look at this map: it keeps numbers and
/// what they count together for the next agent.
pub const NUMBER_OF_SERVICE: u32 = 1;
/// A namespace; see [`NUMBER_OF_SERVICE`].
pub const NUMBER_OF_SCOPE: u32 = 2;

/// Counters of the map `COUNTERS` (per CPU), by index.
pub mod counter {
    /// Connections handed to the agent.
    pub const PROXIED: u32 = 0;
    /// Connections whose endpoint the kernel picked.
    pub const DIRECT: u32 = 1;
    /// Unregistered connections that passed.
    pub const PASSED: u32 = 2;
    /// Connections refused: registered, but the agent cannot take them.
    pub const REFUSED_AGENT_DOWN: u32 = 3;
    /// Connections refused by policy.
    pub const REFUSED_POLICY: u32 = 4;
    /// UDP to a registered address, refused.
    pub const REFUSED_UDP: u32 = 5;
    /// DNS datagrams and connections captured.
    pub const DNS: u32 = 6;
    /// Connections of the agent itself, passed.
    pub const BYPASSED: u32 = 7;
    /// A record could not be stored (map full).
    pub const LOST: u32 = 8;
    /// Connections let through because the agent is down and policy says open.
    pub const OPENED_AGENT_DOWN: u32 = 9;
    /// Direct connections refused: no place under `maxConnections`.
    pub const REFUSED_OVERFLOW: u32 = 10;
    /// Direct connections refused: no endpoint may be used.
    pub const REFUSED_NO_ENDPOINT: u32 = 11;
    /// Reports on direct connections that found the ring buffer full.
    pub const EVENTS_LOST: u32 = 12;
    /// Connections and datagrams refused: not registered.
    pub const REFUSED_UNREGISTERED: u32 = 13;
    /// Reports of refusals, or of new network namespaces, that found their
    /// ring buffer full.
    pub const REPORTS_LOST: u32 = 14;
    /// Number of counters.
    pub const COUNT: u32 = 16;
}

const _: () = {
    assert!(size_of::<ExactKey>() == 24);
    assert!(size_of::<NetworkKey>() == 24);
    assert!(size_of::<ServiceValue>() == 8);
    assert!(size_of::<NetworkPrefix>() == 28);
    assert!(size_of::<Config>() == 24);
    assert!(size_of::<Listeners>() == 12 + 2 * DNS6_PORTS);
    assert!(size_of::<Resolver>() == 24);
    assert!(size_of::<Resolvers6>() == 32 * DNS6_PORTS);
    assert!(RESOLVER_SLOTS < 65535);
    assert!(size_of::<Caller>() == 40);
    assert!(size_of::<SocketState>() == 72);
    assert!(size_of::<OriginKey>() == 32);
};

#[cfg(feature = "user")]
mod user {
    #![allow(
        unsafe_code,
        reason = "aya asks for a marker that a type is plain old data"
    )]
    use super::{
        Config, ExactKey, Listeners, NetworkKey, NetworkPrefix, OriginKey, Resolver, Resolvers6,
        ServiceValue, SocketState,
    };

    macro_rules! plain_old_data {
        ($($kind:ty),* $(,)?) => {$(
            // SAFETY: `repr(C)`, only integers and arrays of them, and the size
            // checks above prove that there is no padding.
            unsafe impl aya::Pod for $kind {}
        )*};
    }

    plain_old_data!(
        Config,
        ExactKey,
        Listeners,
        NetworkKey,
        NetworkPrefix,
        OriginKey,
        Resolver,
        Resolvers6,
        ServiceValue,
        SocketState,
    );
}
