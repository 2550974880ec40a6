//! The contexts that the kernel hands to the programs, wrapped once: every read
//! and write of a raw context field is below this folder.

use aya_ebpf::helpers::generated::bpf_setsockopt;

mod field;
mod ip;
mod sock;
mod sock_addr;
mod sock_ops;

pub use ip::Ip;
pub use sock::{Released, netns_of, protocol_of};
pub use sock_addr::{Family, SockAddr, Transport};
pub use sock_ops::SockOps;

/// What the programs tell the kernel.
pub const ALLOW: i32 = 1;

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
