//! Gives memory back to the system that a start or a large change needed for a
//! while.
#![allow(
    unsafe_code,
    reason = "the allocator's functions and madvise(2) have no safe face"
)]

use std::ffi::{c_int, c_long, c_void};
use std::fs;
use std::path::Path;

// Links the allocator, also into what has another one, where its functions do
// nothing that counts.
use mimalloc as _;

unsafe extern "C" {
    fn mi_collect(force: bool);
    fn mi_option_set(option: c_int, value: c_long);
    fn mi_option_get(option: c_int) -> c_long;
}

/// `mi_option_purge_delay` of mimalloc 3: milliseconds that freed pages are kept.
const PURGE_DELAY: c_int = 15;

/// Freed pages go back at once until this is dropped: a start frees most of
/// what it takes (the kernel's type information, the documents' texts), and an
/// idle thread would keep it.
#[derive(Debug)]
pub struct Start {
    usual: c_long,
}

impl Start {
    /// To be called before there is much to free.
    #[expect(clippy::new_without_default, reason = "it changes the process")]
    pub fn new() -> Self {
        // SAFETY: reads and writes one number of the allocator's own.
        let usual = unsafe { mi_option_get(PURGE_DELAY) };
        // SAFETY: as above.
        unsafe { mi_option_set(PURGE_DELAY, 0) };
        Self { usual }
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { mi_option_set(PURGE_DELAY, self.usual) };
        give_back();
        forget_program();
    }
}

/// Returns what the calling thread has freed, and what others have handed back
/// to the allocator. Without it a thread that is idle keeps its free pages:
/// mimalloc looks after them only while it allocates.
pub fn give_back() {
    // SAFETY: takes no pointer, and any thread may call it at any time.
    unsafe { mi_collect(true) }
}

/// Unmaps the pages of the program that only the start needed, some ten
/// megabytes. Those that are needed again come back from the page cache.
fn forget_program() {
    let Ok(own) = fs::read_link("/proc/self/exe") else {
        return;
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(|line| unwritten(line, &own)) {
        let start = std::ptr::with_exposed_provenance_mut::<c_void>(start);
        // SAFETY: a private mapping of a file that nothing ever writes to
        // (code, and constants in front of it, which are not relocated): the
        // same bytes come back when they are looked at.
        let _ = unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of a line of `/proc/PID/maps` that is code of `program`, or
/// the constants at the beginning of its file.
fn unwritten(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, access, offset) = (words.next()?, words.next()?, words.next()?);
    let path = words.nth(2)?;
    let offset = u64::from_str_radix(offset, 16).ok()?;
    let constant = access == "r-xp" || (access == "r--p" && offset == 0);
    if !constant || Path::new(path) != program {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_never_written_is_forgotten() {
        let own = Path::new("/usr/bin/egress-agent");
        let of = |line| unwritten(line, own);
        let code = "7f0000001000-7f0000003000 r-xp 005f9000 fe:00 17 /usr/bin/egress-agent";
        assert_eq!(of(code), Some((0x7f00_0000_1000, 0x2000)));
        let constants = "1000-2000 r--p 00000000 fe:00 17 /usr/bin/egress-agent";
        assert_eq!(of(constants), Some((0x1000, 0x1000)));
        for other in [
            // Relocated at the start, and written to.
            "1000-2000 r--p 016e9000 fe:00 17 /usr/bin/egress-agent",
            "1000-2000 rw-p 016e9000 fe:00 17 /usr/bin/egress-agent",
            "1000-2000 r-xp 00026000 fe:00 18 /usr/lib/libc.so.6",
            "1000-2000 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let start = Start::new();
        let before = vec![7_u8; 1 << 20];
        drop(start);
        assert_eq!(
            before.iter().map(|n| usize::from(*n)).sum::<usize>(),
            7 << 20
        );
    }
}
