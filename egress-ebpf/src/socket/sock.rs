//! `struct bpf_sock`: a socket that is made, or let go of.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get};
use aya_ebpf::programs::SockContext;
use egress_common::SocketState;
use egress_common::direct::DirectSocket;

use super::field::load;
use super::present;
use crate::maps::{DIRECT_SOCKETS, SOCKETS};

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
