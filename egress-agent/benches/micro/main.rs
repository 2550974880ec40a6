//! Small pieces of the hot path and of a change of policy, on their own.
//!
//! `cargo bench -p egress-agent --bench micro` tells times. `cargo xtask bench
//! --instructions` tells instructions: it runs this program under callgrind
//! with `--count NAME`, which stays the same on a busy machine.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

mod bodies;
mod dns;
mod kernel;
mod registry;

use bodies::BODIES;
use divan::Bencher;

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

#[divan::bench(args = BODIES.map(|(name, ..)| name))]
fn step(bencher: Bencher<'_, '_>, name: &str) {
    let make = BODIES.iter().find(|(known, ..)| *known == name).unwrap().2;
    bencher.bench_local(make());
}

/// What callgrind counts within, by this name.
#[inline(never)]
fn egress_counted_steps(step: &mut dyn FnMut(), times: u32) {
    for _ in 0..times {
        step();
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--list-bodies") => {
            for (name, times, _) in BODIES {
                println!("{name} {times}");
            }
        }
        Some("--count") => {
            let name = arguments.next().unwrap_or_default();
            let body = BODIES.iter().find(|(known, ..)| *known == name);
            let (_, times, make) = *body.unwrap();
            // The same draws each time.
            fastrand::seed(7);
            let mut step = make();
            // What is made once, on first use, is not counted.
            step();
            egress_counted_steps(&mut *step, times);
        }
        _ => divan::main(),
    }
}
