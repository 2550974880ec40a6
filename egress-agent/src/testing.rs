//! What tests of several rooms need.
#![allow(clippy::unwrap_used, reason = "tests")]

/// Runs a test as a worker would, on a clock that jumps to the next timer when
/// nothing else is left to do.
pub(crate) fn paused(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap()
        .block_on(test);
}
