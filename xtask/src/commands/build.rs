//! `cargo xtask build`.

use std::process::ExitCode;

use clap::Args;

use crate::Outcome;
use crate::cargo::{binaries, cargo};
use crate::failure::Failure;
use crate::setup;
use crate::step;

/// Flags of `cargo xtask build`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Optimise.
    #[arg(long)]
    release: bool,
}

/// `cargo xtask build`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    agent(arguments.release)?;
    let folder = binaries(arguments.release);
    println!("{}", folder.join("egress-agent").display());
    println!("{}", folder.join("egressctl").display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent and `egressctl`, with the kernel programs in them.
pub(crate) fn agent(release: bool) -> Result<(), Failure> {
    setup::bpf()?;
    let mut command = cargo(["build", "--package", "egress-agent", "--bins"]);
    if release {
        command.arg("--release");
    }
    let profile = if release { "release" } else { "debug" };
    step::run(
        &format!("building egress-agent and egressctl ({profile})"),
        &mut command,
    )
}
