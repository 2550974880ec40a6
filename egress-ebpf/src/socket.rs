//! The contexts that the kernel hands to the programs, wrapped once: every read
//! and write of a raw context field is in this file.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_STATE_CB_FLAG, SO_BINDTODEVICE, SOL_SOCKET, bpf_sock, bpf_sock_addr, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_getsockopt, bpf_set_retval, bpf_setsockopt, bpf_sk_storage_get,
    bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext};
use egress_common::direct::DirectSocket;
use egress_common::{Address, SocketState};

use crate::maps::{DIRECT_SOCKETS, HAS_SET_RETVAL, SOCKETS};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;
const AF_INET: u32 = 2;
const ECONNREFUSED: i32 = 111;

/// Third word of an IPv4-mapped address, as it lies in memory.
const MAPPED_WORD: u32 = 0xffff_u32.to_be();

// A context field must be accessed as the base pointer plus a constant. Left to
// itself the compiler merges the accesses of two branches into one through a
// computed pointer, which the verifier refuses ("dereference of modified ctx
// ptr"), so they are written out.
macro_rules! load {
    ($base:expr, $type:ty, $($field:tt).+ $(+ $more:expr)?) => {{
        let value: u64;
        asm!(
            "{value} = *(u32 *)({base} + {offset})",
            value = out(reg) value,
            base = in(reg) $base,
            offset = const offset_of!($type, $($field).+) $(+ $more)?,
            options(readonly, nostack, preserves_flags),
        );
        value as u32
    }};
}

macro_rules! load64 {
    ($base:expr, $type:ty, $field:tt) => {{
        let value: u64;
        asm!(
            "{value} = *(u64 *)({base} + {offset})",
            value = out(reg) value,
            base = in(reg) $base,
            offset = const offset_of!($type, $field),
            options(readonly, nostack, preserves_flags),
        );
        value
    }};
}

macro_rules! store {
    ($base:expr, $value:expr, $type:ty, $($field:tt).+ $(+ $more:expr)?) => {
        asm!(
            "*(u32 *)({base} + {offset}) = {value}",
            value = in(reg) u64::from($value),
            base = in(reg) $base,
            offset = const offset_of!($type, $($field).+) $(+ $more)?,
            options(nostack, preserves_flags),
        )
    };
}

/// Four consecutive words.
macro_rules! load4 {
    ($base:expr, $type:ty, $field:tt) => {
        Ip {
            words: [
                load!($base, $type, $field),
                load!($base, $type, $field + 4),
                load!($base, $type, $field + 8),
                load!($base, $type, $field + 12),
            ],
        }
    };
}

/// What the programs tell the kernel.
pub const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// An address as four words in network order, IPv4 in mapped form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    pub words: [u32; 4],
}

impl Ip {
    pub const LOOPBACK4: Self = Self::v4(u32::from_ne_bytes([127, 0, 0, 1]));
    pub const LOOPBACK6: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };

    /// From an IPv4 address in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED_WORD, word],
        }
    }

    #[inline(always)]
    pub fn from_bytes(bytes: &Address) -> Self {
        // SAFETY: both are sixteen plain bytes.
        unsafe { core::mem::transmute_copy(bytes) }
    }

    #[inline(always)]
    pub const fn bytes(self) -> Address {
        // SAFETY: both are sixteen plain bytes.
        unsafe { core::mem::transmute(self.words) }
    }

    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED_WORD
    }

    /// Loopback, and the unspecified address, which `connect` takes for it.
    #[inline(always)]
    pub fn is_local(self) -> bool {
        let last = u32::from_be(self.words[3]);
        if self.is_v4() {
            last >> 24 == 127 || last == 0
        } else {
            self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && last <= 1
        }
    }

    /// One of the virtual addresses (see `egress_common::is_virtual`).
    #[inline(always)]
    pub fn is_virtual(self) -> bool {
        use egress_common::{VIRTUAL_NET4 as V4, VIRTUAL_NET6 as V6};
        if self.is_v4() {
            u32::from_be(self.words[3]) >> 16 == u16::from_be_bytes(V4) as u32
        } else {
            self.words[0] == u32::from_ne_bytes([V6[0], V6[1], V6[2], V6[3]])
                && u32::from_be(self.words[1]) >> 16 == u16::from_be_bytes([V6[4], V6[5]]) as u32
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Which fields of the context hold the address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// `struct bpf_sock_addr`.
pub struct SockAddr<'a> {
    context: &'a SockAddrContext,
    family: Family,
}

impl<'a> SockAddr<'a> {
    #[inline(always)]
    pub const fn new(context: &'a SockAddrContext, family: Family) -> Self {
        Self { context, family }
    }

    #[inline(always)]
    pub const fn context(&self) -> &SockAddrContext {
        self.context
    }

    #[inline(always)]
    const fn raw(&self) -> *mut bpf_sock_addr {
        self.context.sock_addr
    }

    /// `None` for what is neither TCP nor UDP.
    #[inline(always)]
    pub fn transport(&self) -> Option<Transport> {
        // SAFETY: the kernel hands over a valid context; the verifier checks
        // each access of it.
        let (kind, protocol) = unsafe {
            (
                load!(self.raw(), bpf_sock_addr, type_),
                load!(self.raw(), bpf_sock_addr, protocol),
            )
        };
        match (kind, protocol) {
            (SOCK_STREAM, IPPROTO_TCP) => Some(Transport::Tcp),
            (SOCK_DGRAM, IPPROTO_UDP | IPPROTO_UDPLITE) => Some(Transport::Udp),
            _ => None,
        }
    }

    #[inline(always)]
    pub fn ip(&self) -> Ip {
        // SAFETY: as in `transport`.
        unsafe {
            match self.family {
                Family::V4 => Ip::v4(load!(self.raw(), bpf_sock_addr, user_ip4)),
                Family::V6 => load4!(self.raw(), bpf_sock_addr, user_ip6),
            }
        }
    }

    /// Host order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        // SAFETY: as in `transport`.
        u16::from_be(unsafe { load!(self.raw(), bpf_sock_addr, user_port) } as u16)
    }

    /// Writes address and port. In a v4 context only a mapped address fits.
    #[inline(always)]
    pub fn set(&self, ip: Ip, port: u16) {
        // SAFETY: as in `transport`; the kernel lets these fields be written.
        unsafe {
            match self.family {
                Family::V4 => store!(self.raw(), ip.words[3], bpf_sock_addr, user_ip4),
                Family::V6 => {
                    store!(self.raw(), ip.words[0], bpf_sock_addr, user_ip6);
                    store!(self.raw(), ip.words[1], bpf_sock_addr, user_ip6 + 4);
                    store!(self.raw(), ip.words[2], bpf_sock_addr, user_ip6 + 8);
                    store!(self.raw(), ip.words[3], bpf_sock_addr, user_ip6 + 12);
                }
            }
            store!(self.raw(), port.to_be(), bpf_sock_addr, user_port);
        }
    }

    #[inline(always)]
    pub fn netns(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_netns_cookie(self.context.as_ptr()) }
    }

    /// The socket's state, if it has any.
    #[inline(always)]
    pub fn state(&self) -> Option<&'a mut SocketState> {
        // SAFETY: the value lives as long as the socket, which lives longer
        // than this run; only programs that hold the socket's lock write it.
        unsafe { SOCKETS.get_ptr_mut(self.context).as_mut() }
    }

    /// The socket's state, made when there is none; `None` without memory.
    #[inline(always)]
    pub fn state_or_new(&self) -> Option<&'a mut SocketState> {
        // SAFETY: as in `state`.
        unsafe { SOCKETS.get_or_insert_ptr_mut(self.context, None).as_mut() }
    }

    /// State of the socket's direct connection, if it ever had one.
    #[inline(always)]
    pub fn direct(&self) -> Option<*mut DirectSocket> {
        // SAFETY: as in `state`; null means none.
        present(unsafe { DIRECT_SOCKETS.get_ptr_mut(self.context) })
    }

    /// The same, made when there is none; `None` without memory.
    #[inline(always)]
    pub fn direct_or_new(&self) -> Option<*mut DirectSocket> {
        // SAFETY: as in `state`.
        present(unsafe { DIRECT_SOCKETS.get_or_insert_ptr_mut(self.context, None) })
    }

    /// `setsockopt` of an integer.
    #[inline(always)]
    pub fn set_option(&self, level: u32, option: u32, value: u32) {
        set_option(self.context.as_ptr(), level, option, value);
    }

    /// `getsockopt` of an integer; 0 where the kernel does not tell.
    #[inline(always)]
    pub fn option(&self, level: u32, option: u32) -> u32 {
        let mut value = 0_u32;
        // SAFETY: the kernel writes four bytes.
        let result = unsafe {
            bpf_getsockopt(
                self.context.as_ptr(),
                level as i32,
                option as i32,
                (&raw mut value).cast(),
                4,
            )
        };
        if result == 0 { value } else { 0 }
    }

    /// Whether the socket is bound to a device.
    #[inline(always)]
    pub fn has_device(&self) -> bool {
        // SAFETY: the pointer is read from a valid context; the verifier asks
        // for the null check.
        unsafe {
            let socket: *mut bpf_sock =
                (&raw const (*self.raw()).__bindgen_anon_1.sk).read_volatile();
            !socket.is_null() && load!(socket, bpf_sock, bound_dev_if) != 0
        }
    }

    /// Takes a bound socket off its device, since what goes to the agent must go
    /// through loopback. False when the kernel does not allow it (before 5.19
    /// the caller needs `CAP_NET_RAW`).
    #[inline(always)]
    pub fn leave_device(&self) -> bool {
        if !self.has_device() {
            return true;
        }
        let mut none = 0_u32;
        // SAFETY: the kernel reads four bytes: an empty name.
        let result = unsafe {
            bpf_setsockopt(
                self.context.as_ptr(),
                SOL_SOCKET as i32,
                SO_BINDTODEVICE as i32,
                (&raw mut none).cast(),
                4,
            )
        };
        result == 0
    }

    /// Fails the system call with ECONNREFUSED. Before 5.18 a program cannot
    /// choose the errno (it is EPERM), so there a TCP connection goes to port 0
    /// of loopback, where nobody can listen.
    #[inline(always)]
    pub fn refuse(&self, transport: Transport) -> i32 {
        self.refuse_with(transport, 0)
    }

    /// The same with another errno; 0 means ECONNREFUSED.
    #[inline(always)]
    pub fn refuse_with(&self, transport: Transport, errno: u8) -> i32 {
        if HAS_SET_RETVAL.load() != 0 {
            let errno = if errno == 0 {
                ECONNREFUSED
            } else {
                errno as i32
            };
            // SAFETY: takes a number.
            unsafe { bpf_set_retval(-errno) };
            return DENY;
        }
        if transport == Transport::Udp {
            return DENY;
        }
        let ip = self.ip();
        self.set(
            if ip.is_v4() {
                Ip::LOOPBACK4
            } else {
                Ip::LOOPBACK6
            },
            0,
        );
        ALLOW
    }
}

/// Protocol of a socket that is being made.
#[inline(always)]
pub fn protocol_of(context: &SockContext) -> u32 {
    // SAFETY: the context is valid.
    unsafe { load!(context.sock, bpf_sock, protocol) }
}

/// Network namespace cookie of a socket that is being made.
#[inline(always)]
pub fn netns_of(context: &SockContext) -> u64 {
    // SAFETY: the context is valid.
    unsafe { bpf_get_netns_cookie(context.as_ptr()) }
}

/// `struct bpf_sock_ops`.
pub struct SockOps<'a> {
    context: &'a SockOpsContext,
}

impl<'a> SockOps<'a> {
    #[inline(always)]
    pub const fn new(context: &'a SockOpsContext) -> Self {
        Self { context }
    }

    #[inline(always)]
    const fn raw(&self) -> *mut bpf_sock_ops {
        self.context.ops
    }

    /// One of `BPF_SOCK_OPS_…`.
    #[inline(always)]
    pub fn op(&self) -> u32 {
        // SAFETY: as in `SockAddr::transport`, and so in all below.
        unsafe { load!(self.raw(), bpf_sock_ops, op) }
    }

    /// Old and new state of `BPF_SOCK_OPS_STATE_CB`.
    #[inline(always)]
    pub fn transition(&self) -> (u32, u32) {
        // SAFETY: as above.
        unsafe {
            (
                load!(self.raw(), bpf_sock_ops, __bindgen_anon_1.args),
                load!(self.raw(), bpf_sock_ops, __bindgen_anon_1.args + 4),
            )
        }
    }

    /// Own address.
    #[inline(always)]
    pub fn local_ip(&self) -> Ip {
        // SAFETY: as above.
        unsafe {
            if load!(self.raw(), bpf_sock_ops, family) == AF_INET {
                Ip::v4(load!(self.raw(), bpf_sock_ops, local_ip4))
            } else {
                load4!(self.raw(), bpf_sock_ops, local_ip6)
            }
        }
    }

    /// Own port, host order.
    #[inline(always)]
    pub fn local_port(&self) -> u16 {
        // SAFETY: as above. The kernel gives host order here.
        unsafe { load!(self.raw(), bpf_sock_ops, local_port) as u16 }
    }

    /// Port of the peer, host order.
    #[inline(always)]
    pub fn remote_port(&self) -> u16 {
        // SAFETY: as above. The kernel gives the network-order port in the
        // upper half on little endian, so that ntohl makes it right.
        u32::from_be(unsafe { load!(self.raw(), bpf_sock_ops, remote_port) }) as u16
    }

    /// The socket's state, if it has any.
    #[inline(always)]
    pub fn state(&self) -> Option<&'a mut SocketState> {
        // SAFETY: as in `SockAddr::state`; the helper accepts a socket only
        // after the null check.
        unsafe {
            let socket: *mut bpf_sock =
                (&raw const (*self.raw()).__bindgen_anon_2.sk).read_volatile();
            if socket.is_null() {
                return None;
            }
            let map = (&raw const SOCKETS).cast_mut().cast();
            bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0)
                .cast::<SocketState>()
                .as_mut()
        }
    }

    /// State of the socket's direct connection, if it ever had one.
    #[inline(always)]
    pub fn direct(&self) -> Option<*mut DirectSocket> {
        // SAFETY: as in `state`.
        unsafe {
            let socket: *mut bpf_sock =
                (&raw const (*self.raw()).__bindgen_anon_2.sk).read_volatile();
            if socket.is_null() {
                return None;
            }
            let map = (&raw const DIRECT_SOCKETS).cast_mut().cast();
            present(bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0).cast())
        }
    }

    /// `setsockopt` of an integer.
    #[inline(always)]
    pub fn set_option(&self, level: u32, option: u32, value: u32) {
        set_option(self.raw().cast(), level, option, value);
    }

    /// Bytes received and bytes acknowledged, SYN and FIN counted as one each.
    #[inline(always)]
    pub fn bytes(&self) -> (u64, u64) {
        // SAFETY: as above.
        unsafe {
            (
                load64!(self.raw(), bpf_sock_ops, bytes_received),
                load64!(self.raw(), bpf_sock_ops, bytes_acked),
            )
        }
    }

    /// Asks for `BPF_SOCK_OPS_STATE_CB` on this connection.
    #[inline(always)]
    pub fn watch_state(&self) {
        // SAFETY: as above.
        unsafe {
            let flags = load!(self.raw(), bpf_sock_ops, bpf_sock_ops_cb_flags);
            bpf_sock_ops_cb_flags_set(self.raw(), (flags | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
        }
    }
}

/// `struct bpf_sock` of the release hook.
pub struct Released<'a> {
    context: &'a SockContext,
}

impl<'a> Released<'a> {
    #[inline(always)]
    pub const fn new(context: &'a SockContext) -> Self {
        Self { context }
    }

    /// TCP state.
    #[inline(always)]
    pub fn tcp_state(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { load!(self.context.sock, bpf_sock, state) }
    }

    /// State of the socket's direct connection, if it ever had one.
    #[inline(always)]
    pub fn direct(&self) -> Option<*mut DirectSocket> {
        present(
            self.storage((&raw const DIRECT_SOCKETS).cast_mut().cast())
                .cast(),
        )
    }

    /// The socket's state, if it has any.
    #[inline(always)]
    pub fn state(&self) -> Option<&'a mut SocketState> {
        let state = self.storage((&raw const SOCKETS).cast_mut().cast());
        // SAFETY: as in `SockAddr::state`; this is the socket's last user.
        unsafe { state.cast::<SocketState>().as_mut() }
    }

    #[inline(always)]
    fn storage(&self, map: *mut core::ffi::c_void) -> *mut core::ffi::c_void {
        // SAFETY: the helper takes the context as the socket here.
        unsafe { bpf_sk_storage_get(map, self.context.as_ptr(), core::ptr::null_mut(), 0) }
    }
}

#[inline(always)]
fn present<T>(pointer: *mut T) -> Option<*mut T> {
    if pointer.is_null() {
        None
    } else {
        Some(pointer)
    }
}

#[inline(always)]
fn set_option(context: *mut core::ffi::c_void, level: u32, option: u32, value: u32) {
    let mut value = value;
    // SAFETY: the kernel reads four bytes.
    unsafe {
        bpf_setsockopt(
            context,
            level as i32,
            option as i32,
            (&raw mut value).cast(),
            4,
        )
    };
}
