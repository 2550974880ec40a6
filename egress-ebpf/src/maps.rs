//! The maps. Names and meanings are part of the layout that
//! [`egress_common::LAYOUT_VERSION`] counts.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use egress_common::caller::{Destination, DestinationKey, NamespaceEvent, Refusal};
use egress_common::direct::{DirectEvent, DirectService, DirectSocket, Places, Slot, SlotKey};
use egress_common::{
    Config, ExactKey, Listeners, NetworkKey, Origin, OriginKey, RESOLVER_SLOTS as RESOLVER_COUNT,
    Resolver, Resolvers6, ServiceValue, SocketState, counter,
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Non-zero when the kernel has `bpf_set_retval` for these programs (since
/// 5.18); patched by the loader. Without it a refusal is EPERM, or for TCP a
/// connection to a port where nobody can listen.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(1);

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

/// `CLOCK_MONOTONIC` nanoseconds, written by the agent.
#[btf_map]
pub static HEARTBEAT: Array<u64, 1> = Array::new();

/// Cgroup id to scope.
#[btf_map]
pub static CGROUPS: HashMap<u64, u32, 32768, ON_DEMAND> = HashMap::new();

/// Network namespace cookie to the agent's listeners there.
#[btf_map]
pub static NAMESPACES: HashMap<u64, Listeners, 4096, ON_DEMAND> = HashMap::new();

/// Network namespace cookie to the time when the agent was last asked to open
/// listeners there.
#[btf_map]
pub static NAMESPACES_ASKED: LruHashMap<u64, u64, 4096> = LruHashMap::new();

#[btf_map]
pub static NAMESPACE_EVENTS: RingBuf<NamespaceEvent, { 1 << 16 }> = RingBuf::new();

/// Scope to outbound mode, where it is not that of `CONFIG`.
#[btf_map]
pub static OUTBOUND: HashMap<u32, u32, 16384, ON_DEMAND> = HashMap::new();

/// Networks that are allowed although nothing registers them; port 0 means any.
#[btf_map]
pub static ALLOWED: LpmTrie<NetworkKey, u32, 4096> = LpmTrie::new();

#[btf_map]
pub static DESTINATIONS: LruHashMap<DestinationKey, Destination, 16384> = LruHashMap::new();

#[btf_map]
pub static REFUSALS: RingBuf<Refusal, { 1 << 18 }> = RingBuf::new();

#[btf_map]
pub static SERVICES: HashMap<ExactKey, ServiceValue, 262144, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static NETWORKS: LpmTrie<NetworkKey, ServiceValue, 65536> = LpmTrie::new();

#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

#[btf_map]
pub static ORIGINS: HashMap<OriginKey, Origin, 32768, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static RESOLVERS: Array<Resolver, { RESOLVER_COUNT as usize }> = Array::new();

#[btf_map]
pub static RESOLVER_SLOTS: HashMap<Resolver, u32, { RESOLVER_COUNT as usize }, ON_DEMAND> =
    HashMap::new();

/// The next slot of `RESOLVERS` to give out, modulo its size.
#[btf_map]
pub static RESOLVER_NEXT: Array<u64, 1> = Array::new();

#[btf_map]
pub static RESOLVERS6: Array<Resolvers6, 1> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { counter::COUNT as usize }> = PerCpuArray::new();

/// Service number to how the kernel serves it.
#[btf_map]
pub static DIRECT: HashMap<u32, DirectService, 32768, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static SLOTS: HashMap<SlotKey, Slot, 131072, ON_DEMAND> = HashMap::new();

/// Service number to its connections. Made by the agent, changed here alone.
#[btf_map]
pub static PLACES: HashMap<u32, Places, 32768, ON_DEMAND> = HashMap::new();

/// Endpoint number to its connections. Made by the agent, changed here alone.
#[btf_map]
pub static ENDPOINTS: HashMap<u64, u64, 131072, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static DIRECT_SOCKETS: SkStorage<DirectSocket> = SkStorage::new();

/// Bytes of the ring `EVENTS`.
pub const EVENTS_SIZE: usize = 1 << 20;

#[btf_map]
pub static EVENTS: RingBuf<DirectEvent, EVENTS_SIZE> = RingBuf::new();

/// `CLOCK_MONOTONIC` nanoseconds when the agent was last woken for a report in
/// `EVENTS` that is not urgent. Not pinned: it belongs to the programs that use
/// it.
#[btf_map]
pub static WOKEN: Array<u64, 1> = Array::new();

/// Fingerprints of names to the numbers that stand for them in the other maps.
/// Only the agent uses it.
#[btf_map]
pub static NUMBERS: HashMap<[u8; 16], u64, 32768, ON_DEMAND> = HashMap::new();

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own, and lives as long as the map.
        unsafe { *value += 1 };
    }
}
