//! Kernel programs of egress: what happens to each outbound connection and
//! datagram of the processes in one cgroup.
//!
//! Each program is a thin shell; the decision of a connection is in
//! [`connect`], and the first file to read. Kernel floor: 5.15.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext};

use crate::socket::{Family, Released, SockAddr, SockOps};

mod atomic;
mod connect;
mod direct;
mod dns;
mod established;
mod lookup;
mod maps;
mod message;
mod outbound;
mod report;
mod sock_create;
mod socket;

// A function must not carry the name of its section, or bpf-linker stops.
#[cgroup_sock_addr(connect4)]
pub fn egress_connect4(context: SockAddrContext) -> i32 {
    connect::connect(&SockAddr::new(&context, Family::V4))
}

#[cgroup_sock_addr(connect6)]
pub fn egress_connect6(context: SockAddrContext) -> i32 {
    connect::connect(&SockAddr::new(&context, Family::V6))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn egress_sendmsg4(context: SockAddrContext) -> i32 {
    message::send(&SockAddr::new(&context, Family::V4))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn egress_sendmsg6(context: SockAddrContext) -> i32 {
    message::send(&SockAddr::new(&context, Family::V6))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn egress_recvmsg4(context: SockAddrContext) -> i32 {
    message::receive(&SockAddr::new(&context, Family::V4))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn egress_recvmsg6(context: SockAddrContext) -> i32 {
    message::receive(&SockAddr::new(&context, Family::V6))
}

#[cgroup_sock_addr(getpeername4)]
pub fn egress_peername4(context: SockAddrContext) -> i32 {
    message::peer_name(&SockAddr::new(&context, Family::V4))
}

#[cgroup_sock_addr(getpeername6)]
pub fn egress_peername6(context: SockAddrContext) -> i32 {
    message::peer_name(&SockAddr::new(&context, Family::V6))
}

#[sock_ops]
pub fn egress_sock_ops(context: SockOpsContext) -> u32 {
    established::socket_event(&SockOps::new(&context));
    1
}

#[cgroup_sock(sock_create)]
pub fn egress_create(context: SockContext) -> i32 {
    sock_create::created(socket::netns_of(&context));
    outbound::may_be_made(socket::protocol_of(&context)) as i32
}

#[cgroup_sock(sock_release)]
pub fn egress_release(context: SockContext) -> i32 {
    direct::released(&Released::new(&context));
    1
}

/// Helpers such as `bpf_set_retval` and the socket helpers ask for a licence
/// compatible with the GPL.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
