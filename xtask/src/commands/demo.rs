//! `cargo xtask demo`: the main job as a short story, in a lab of its own.

use std::process::Command;

use crate::Outcome;
use crate::cargo::{Build, cargo};
use crate::commands::{build, pass_through};
use crate::host;
use crate::setup;
use crate::step;

/// `cargo xtask demo`.
pub(crate) fn run() -> Outcome {
    host::require_root("the demo makes network namespaces and loads kernel programs, and so")?;
    host::require_kernel()?;
    setup::test()?;
    build::agent(Build::Debug)?;
    step::run(
        "building the demo",
        &mut cargo(["build", "--package", "tests", "--bin", "demo"]),
    )?;
    pass_through(
        Command::new(Build::Debug.binaries().join("demo"))
            .env("EGRESS_BIN_DIR", Build::Debug.binaries()),
    )
}
