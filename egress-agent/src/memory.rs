//! Gives memory back to the system that a start or a large change needed for a
//! while.
#![allow(
    unsafe_code,
    reason = "the allocator's function and the kernel's have no safe face"
)]

use std::fs;
use std::time::Duration;

// Links the allocator, also into what has another one, where its function does
// nothing that counts.
use mimalloc as _;
use rustix::mm::{Advice, madvise};

/// How long after the start nothing of it goes on any more.
const SETTLED: Duration = Duration::from_secs(3);

unsafe extern "C" {
    fn mi_collect(force: bool);
}

/// Returns what the calling thread has freed, and what others have handed back
/// to the allocator. Without it a thread that is idle keeps its free pages:
/// mimalloc looks after them only while it allocates.
pub fn give_back() {
    // SAFETY: takes no pointer, and any thread may call it at any time.
    unsafe { mi_collect(true) }
}

/// Gives back what the calling thread needed for the start, once it is over
/// for the tasks that it left behind too.
pub async fn settle() {
    tokio::time::sleep(SETTLED).await;
    give_back();
}

/// Unmaps the pages of the program's code and constants. Those that are still
/// in use come back at the next touch, from the page cache, which keeps them;
/// those that only the start needed stay away.
pub fn unmap_code() {
    let Ok(maps) = fs::read_to_string("/proc/self/smaps") else {
        return;
    };
    for mapping in untouched(&maps) {
        let start = std::ptr::without_provenance_mut(mapping.start);
        // SAFETY: a private mapping of a file that cannot be written to and
        // has no page of its own: what the kernel maps again is the same.
        let result = unsafe { madvise(start, mapping.len(), Advice::LinuxDontNeed) };
        if let Err(error) = result {
            tracing::debug!("pages of the program stay mapped: {error}");
            return;
        }
    }
}

/// Mappings of files of which no page differs from the file: a debugger's
/// breakpoints and the loader's relocations make pages of their own, and so
/// does what was swapped out.
fn untouched(smaps: &str) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let mut open = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let value = words.next().unwrap_or_default();
        match first.strip_suffix(':') {
            Some("Anonymous" | "Swap") if value != "0" => open = None,
            // Comes last.
            Some("VmFlags") => out.extend(open.take()),
            Some(_) => {}
            None => {
                let range = first.split_once('-').and_then(|(start, end)| {
                    let number = |text| usize::from_str_radix(text, 16).ok();
                    Some(number(start)?..number(end)?)
                });
                // What is no file has the inode 0.
                let file = words.nth(2).is_some_and(|inode| inode != "0");
                open = range.filter(|_| file && matches!(value, "r-xp" | "r--p"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::single_range_in_vec_init,
        reason = "tests"
    )]

    use super::*;

    #[test]
    fn what_is_in_use_stays() {
        let before = vec![7_u8; 1 << 20];
        drop(vec![1_u8; 1 << 20]);
        give_back();
        assert!(before.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn only_pages_that_are_those_of_a_file_are_unmapped() {
        let mapping = |head: &str, anonymous: &str, swap: &str| {
            format!("{head}\nRss: 8 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nVmFlags: rd\n")
        };
        let code = "1000-3000 r-xp 00001000 fe:00 7    /usr/bin/a b";
        let one = untouched(&mapping(code, "0", "0"));
        assert_eq!(one, vec![0x1000..0x3000]);
        assert!(untouched(&mapping(code, "4", "0")).is_empty());
        assert!(untouched(&mapping(code, "0", "4")).is_empty());
        for other in [
            "1000-3000 rw-p 00001000 fe:00 7    /usr/bin/a",
            "1000-3000 r--s 00001000 fe:00 7    /usr/bin/a",
            "1000-3000 r-xp 00000000 00:00 0    [vdso]",
            "1000-3000 r--p 00000000 00:00 0",
        ] {
            assert!(untouched(&mapping(other, "0", "0")).is_empty(), "{other}");
        }
        let two = mapping(code, "4", "0") + &mapping("4000-5000 r--p 0 fe:00 7 x", "0", "0");
        assert_eq!(untouched(&two), vec![0x4000..0x5000]);
    }

    #[test]
    fn code_runs_on_when_its_pages_were_unmapped() {
        let resident = || {
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
            let code = smaps.split(" r-xp ").nth(1).unwrap();
            let line = code.lines().find(|line| line.starts_with("Rss:")).unwrap();
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            words[1].parse::<u64>().unwrap()
        };
        let text = format!("{:?}", "abc".to_owned());
        assert!(resident() > 0);
        unmap_code();
        assert_eq!(text, format!("{:?}", "abc".to_owned()));
    }
}
