//! Gives memory back to the system that a start or a large change needed for a
//! while.
#![allow(
    unsafe_code,
    reason = "the allocator's functions and madvise(2) have no safe face"
)]

use std::ffi::{c_int, c_long};
use std::fs;
use std::ops::Range;
use std::time::Duration;

use rustix::mm::{Advice, madvise};

// Links the allocator, also into what has another one, where its function does
// nothing that counts.
use mimalloc as _;

/// How long after the start nothing of it goes on any more.
const SETTLED: Duration = Duration::from_secs(3);
/// How long after that all threads have settled.
const ALL: Duration = Duration::from_secs(1);

/// `mi_option_purge_delay` of mimalloc 3: milliseconds until free pages go back.
const PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    fn mi_collect(force: bool);
    fn mi_option_get(option: c_int) -> c_long;
    fn mi_option_set(option: c_int, value: c_long);
    /// Of libc; never called, but known to be in its code.
    fn abort() -> !;
}

/// Returns what the calling thread has freed, and what others have handed back
/// to the allocator. Without it a thread that is idle keeps its free pages:
/// mimalloc looks after them only while it allocates.
pub fn give_back() {
    // SAFETY: takes no pointer, and any thread may call it at any time.
    unsafe { mi_collect(true) }
}

/// While it lives, free pages go back at once. For a step of the start that needs
/// much for a while: what it leaves behind then does not stand, a little on each,
/// on pages that were full before and that nobody gets back.
#[derive(Debug)]
pub struct Thrift {
    /// The usual delay; none where it could not be changed.
    usual: Option<c_long>,
}

impl Thrift {
    /// Does nothing in a process that has other threads already.
    pub fn begin() -> Self {
        let usual = is_alone().then(|| {
            // SAFETY: takes no pointer, and there is no other thread, beside
            // which the allocator's options may not be changed.
            unsafe {
                let usual = mi_option_get(PURGE_DELAY);
                mi_option_set(PURGE_DELAY, 0);
                usual
            }
        });
        Self { usual }
    }
}

impl Drop for Thrift {
    fn drop(&mut self) {
        if let Some(usual) = self.usual
            && is_alone()
        {
            // SAFETY: as in `begin`.
            unsafe { mi_option_set(PURGE_DELAY, usual) }
        }
    }
}

/// Whether this is the only thread of the process.
fn is_alone() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

/// Gives back what the calling thread needed for the start, once it is over
/// for the tasks that it left behind too.
pub async fn settle() {
    tokio::time::sleep(SETTLED).await;
    give_back();
}

/// [`settle`] for the process, once all of its threads have: of those that do so
/// at the same moment only one gives back what the others have freed.
///
/// Takes the pages of the program that the start needed out of the resident set,
/// too: most of its code parses settings and policies, loads kernel programs and
/// asks who is there, and is not needed again for long. What is needed comes
/// back from the page cache by a minor fault.
pub async fn settle_all() {
    settle().await;
    tokio::time::sleep(ALL).await;
    give_back();
    let Ok(smaps) = tokio::fs::read_to_string("/proc/self/smaps").await else {
        return;
    };
    // Addresses in the code, in the constants, and in the code of libc.
    let own = [
        give_back as *const () as usize,
        "constant".as_ptr() as usize,
        abort as *const () as usize,
    ];
    for mapping in own.iter().filter_map(|own| clean_mapping(&smaps, *own)) {
        // SAFETY: the mapping is of the program's file, or of a library's that
        // the program was started with: it is there until the process ends. No
        // page of it is its own, so all of them are those of the page cache, and
        // madvise(2), MADV_DONTNEED, only has them looked up there again.
        let advised = unsafe {
            madvise(
                std::ptr::with_exposed_provenance_mut(mapping.start),
                mapping.len(),
                Advice::LinuxDontNeed,
            )
        };
        if let Err(error) = advised {
            tracing::debug!(%error, "the pages of the start stay resident");
        }
    }
}

/// The mapping around `address` in the text of `/proc/PID/smaps`
/// (proc_pid_smaps(5)), if all of it is as it is in its file: not writable,
/// private, and without a page of its own.
fn clean_mapping(smaps: &str, address: usize) -> Option<Range<usize>> {
    let mut found = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        if let Some(range) = range(first) {
            let permissions = words.next()?.as_bytes();
            // Offset, device and inode stand before the file.
            let file = words.nth(3).is_some_and(|path| path.starts_with('/'));
            let clean =
                file && permissions.get(1) == Some(&b'-') && permissions.get(3) == Some(&b'p');
            found = (clean && range.contains(&address)).then_some(range);
        } else if first == "Anonymous:" && found.is_some() {
            return found.filter(|_| words.next() == Some("0"));
        }
    }
    None
}

/// `START-END`, both hexadecimal.
fn range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// It is known by its number alone.
    #[test]
    fn the_option_is_that_of_this_mimalloc() {
        // SAFETY: takes no pointer, and nobody changes it.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, 1_000);
    }

    #[test]
    fn beside_other_threads_nothing_is_changed() {
        let thrift = Thrift::begin();
        assert_eq!(thrift.usual, None);
    }

    const SMAPS: &str = "\
00001000-00003000 r--p 00000000 fd:00 12 /usr/bin/egress-agent
Size:                  8 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
00003000-00005000 r-xp 00002000 fd:00 12 /usr/bin/egress-agent
Anonymous:             4 kB
00005000-00006000 rw-p 00004000 fd:00 12 /usr/bin/egress-agent
Anonymous:             0 kB
00006000-00007000 r--s 00000000 00:0e 13 /usr/share/shared
Anonymous:             0 kB
00007000-00008000 r--p 00000000 00:00 0
Anonymous:             0 kB
00008000-00009000 r-xp 00000000 00:00 0                                  [vdso]
Anonymous:             0 kB
0000a000-0000b000 r-xp 00000000 fd:00 14 /usr/lib/libc.so.6
Anonymous:             0 kB
";

    #[test]
    fn only_what_is_as_in_its_file_is_clean() {
        assert_eq!(clean_mapping(SMAPS, 0x1000), Some(0x1000..0x3000));
        assert_eq!(clean_mapping(SMAPS, 0x2fff), Some(0x1000..0x3000));
        // Pages of its own, writable, shared, nobody's file, no mapping at all.
        for address in [0x3000, 0x5000, 0x6000, 0x7000, 0x8000, 0x9000, 0xb000] {
            assert_eq!(clean_mapping(SMAPS, address), None, "{address:x}");
        }
        assert_eq!(clean_mapping(SMAPS, 0xa000), Some(0xa000..0xb000));
        assert_eq!(clean_mapping("", 0x1000), None);
    }

    /// KB of the program's code that are resident.
    fn resident() -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let code = clean_mapping(&smaps, give_back as *const () as usize).unwrap();
        let mut lines = smaps
            .lines()
            .skip_while(|line| line.split(' ').next().and_then(range) != Some(code.clone()));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_program_goes_on_without_the_pages_of_its_start() {
        // Other tests bring pages back meanwhile, but not each time as many.
        let mut shed = false;
        for _ in 0..100 {
            let before = resident();
            settle_all().await;
            shed |= resident() < before;
        }
        assert!(shed, "no code has left the resident set");
    }

    #[test]
    fn what_is_in_use_stays() {
        let before = vec![7_u8; 1 << 20];
        drop(vec![1_u8; 1 << 20]);
        give_back();
        assert!(before.iter().all(|byte| *byte == 7));
    }
}
