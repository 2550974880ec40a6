//! `struct bpf_sock_ops`.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated::{bpf_sk_storage_get, bpf_sock_ops_cb_flags_set};
use aya_ebpf::programs::SockOpsContext;
use egress_common::SocketState;
use egress_common::direct::DirectSocket;

use super::field::{load, load4, load64};
use super::ip::Ip;
use super::{present, set_option};
use crate::maps::{DIRECT_SOCKETS, SOCKETS};

const AF_INET: u32 = 2;

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
