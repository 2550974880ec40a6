//! Atomic operations on map values. `core::sync::atomic` offers none that
//! return the old value for the BPF target, though the kernel has them since
//! 5.12, so they are written out.

use core::arch::asm;

/// Adds and returns the value before.
///
/// # Safety
/// `place` must point to an aligned word of a map value.
#[inline(always)]
pub unsafe fn fetch_add(place: *mut u64, number: u64) -> u64 {
    let mut old = number;
    // SAFETY: the caller's promise; the verifier checks it again.
    unsafe {
        asm!(
            "{old} = atomic_fetch_add((u64 *)({place} + 0), {old})",
            old = inout(reg) old,
            place = in(reg) place,
        );
    }
    old
}

/// Stores `new` if the value is `expected`; returns the value before.
///
/// # Safety
/// `place` must point to an aligned word of a map value.
#[inline(always)]
pub unsafe fn compare_exchange(place: *mut u64, expected: u64, new: u64) -> u64 {
    let mut old = expected;
    // SAFETY: as in `fetch_add`.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({place} + 0, r0, {new})",
            inout("r0") old,
            place = in(reg) place,
            new = in(reg) new,
        );
    }
    old
}
