//! Panics are bugs of ours: each is logged with its place and counted.

use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Panics since the start, in any thread.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Logs and counts panics from now on, in place of the text on standard error
/// that the standard library writes.
pub fn install() {
    std::panic::set_hook(Box::new(|info| {
        COUNT.fetch_add(1, Ordering::Relaxed);
        log(info);
    }));
}

fn log(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(
        thread = thread.name().unwrap_or("?"),
        place,
        backtrace = %std::backtrace::Backtrace::capture(),
        "panic: {}; this is a bug of the agent, please report it",
        info.payload_as_str().unwrap_or("no message"),
    );
}
