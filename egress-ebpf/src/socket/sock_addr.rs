//! `struct bpf_sock_addr`, of `connect`, `sendmsg`, `recvmsg` and `getpeername`.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{SO_BINDTODEVICE, SOL_SOCKET, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_getsockopt, bpf_set_retval, bpf_setsockopt, bpf_sk_lookup_tcp,
    bpf_sk_lookup_udp, bpf_sk_release,
};
use aya_ebpf::programs::SockAddrContext;
use egress_common::SocketState;
use egress_common::direct::DirectSocket;

use super::field::{load, load4, store};
use super::ip::Ip;
use super::{ALLOW, present, set_option};
use crate::maps::{DIRECT_SOCKETS, HAS_SET_RETVAL, SOCKETS};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;
const ECONNREFUSED: i32 = 111;
/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = -1_i64 as u64;
const DENY: i32 = 0;
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

    /// Whether somebody listens on an address of loopback in the socket's network
    /// namespace.
    #[inline(always)]
    pub fn listens(&self, transport: Transport, ip: Ip, port: u16) -> bool {
        // `bpf_sock_tuple`: addresses of source and destination, then ports. No
        // connection has the source 0.
        let mut tuple = [0_u32; 9];
        let size = if ip.is_v4() {
            tuple[1] = ip.words[3];
            tuple[2] = u32::from_ne_bytes(halves(0, port));
            12
        } else {
            tuple[4] = ip.words[0];
            tuple[5] = ip.words[1];
            tuple[6] = ip.words[2];
            tuple[7] = ip.words[3];
            tuple[8] = u32::from_ne_bytes(halves(0, port));
            36
        };
        let context = self.context.as_ptr();
        let tuple = tuple.as_mut_ptr().cast();
        // SAFETY: the kernel reads `size` bytes; what it finds is let go of at
        // once.
        unsafe {
            let found = match transport {
                Transport::Tcp => bpf_sk_lookup_tcp(context, tuple, size, CURRENT_NETNS, 0),
                Transport::Udp => bpf_sk_lookup_udp(context, tuple, size, CURRENT_NETNS, 0),
            };
            if found.is_null() {
                return false;
            }
            bpf_sk_release(found.cast());
        }
        true
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

/// Two ports in network order, as they lie in memory.
#[inline(always)]
const fn halves(first: u16, second: u16) -> [u8; 4] {
    let (first, second) = (first.to_be_bytes(), second.to_be_bytes());
    [first[0], first[1], second[0], second[1]]
}
