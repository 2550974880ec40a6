//! Gives memory back to the system that a start or a large change needed for a
//! while.
#![allow(unsafe_code, reason = "the allocator's function has no safe face")]

use std::time::Duration;

// Links the allocator, also into what has another one, where its function does
// nothing that counts.
use mimalloc as _;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays() {
        let before = vec![7_u8; 1 << 20];
        drop(vec![1_u8; 1 << 20]);
        give_back();
        assert!(before.iter().all(|byte| *byte == 7));
    }
}
