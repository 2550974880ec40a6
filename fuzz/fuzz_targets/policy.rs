//! No bytes may panic what reads, checks, compiles and prints documents.
//!
//! On the stable compiler, without cargo-fuzz:
//!
//! ```text
//! RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
//!   -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table" \
//!   cargo run --release --target x86_64-unknown-linux-gnu --bin policy -- \
//!   corpus/policy -runs=10000000 -max_len=4096
//! ```
//!
//! Ten million runs take about half an hour on one core and were clean last
//! when matches took pseudo-headers.
//! What a run finds new goes into another folder, given first, so that the
//! corpus here stays small.
#![no_main]

use egress_agent::policy::Options;
use egress_agent::policy::compile::{Ids, compile};
use egress_agent::policy::load::load_text;
use egress_agent::policy::render::render;
use egress_agent::policy::yaml::{Limits, text_of, to_yaml};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = text_of("fuzz", bytes.to_vec(), &Limits::default()) else {
        return;
    };
    let options = Options::default();
    let loaded = load_text("fuzz", &text, &options);
    for diagnostic in &loaded.diagnostics {
        let _ = render(diagnostic, false);
    }
    for document in &loaded.documents.list {
        let printed = to_yaml(&document.to_json());
        let again = load_text("printed", &printed, &options);
        // What is valid stays so when it is printed; Secrets are hidden.
        assert!(again.is_valid() || document.id.kind.name() == "Secret", "{printed}");
    }
    let (_, warnings) = compile(&mut Ids::default(), &loaded.documents, &options);
    for warning in &warnings {
        let _ = render(warning, false);
    }
});
