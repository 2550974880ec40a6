//! `cargo xtask build`.

use std::process::ExitCode;

use clap::Args;

use crate::Outcome;
use crate::cargo::{Build, cargo};
use crate::commands::profile_guided;
use crate::failure::Failure;
use crate::setup;
use crate::step;

/// Flags of `cargo xtask build`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Optimise.
    #[arg(long)]
    release: bool,
    /// Optimise for what the bench's load does most: builds twice, and runs
    /// that load in between (needs root).
    #[arg(long)]
    profile_guided: bool,
}

/// `cargo xtask build`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let build = Build::of(arguments.release, arguments.profile_guided);
    agent(build)?;
    let folder = build.binaries();
    println!("{}", folder.join("egress-agent").display());
    println!("{}", folder.join("egressctl").display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent and `egressctl`, with the kernel programs in them.
pub(crate) fn agent(build: Build) -> Result<(), Failure> {
    setup::bpf()?;
    if build == Build::ProfileGuided {
        return profile_guided::agent();
    }
    let mut command = cargo(PROGRAMS);
    if build == Build::Release {
        command.arg("--release");
    }
    step::run(&title(build.name()), &mut command)
}

/// What cargo is told to build.
pub(super) const PROGRAMS: [&str; 4] = ["build", "--package", "egress-agent", "--bins"];

pub(super) fn title(how: &str) -> String {
    format!("building egress-agent and egressctl ({how})")
}
