//! `cargo xtask run`: the agent on this host.

use std::ffi::OsString;
use std::process::Command;

use clap::Args;

use crate::Outcome;
use crate::cargo::Build;
use crate::commands::{build, pass_through};
use crate::host;

/// Flags of `cargo xtask run`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Optimise.
    #[arg(long)]
    release: bool,
    /// Arguments of egress-agent, after `--`; `-- --help` lists them.
    #[arg(last = true)]
    agent: Vec<OsString>,
}

/// `cargo xtask run`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    host::require_root("the agent loads kernel programs, and so")?;
    host::require_kernel()?;
    let build = Build::of(arguments.release, false);
    build::agent(build)?;
    let agent = build.binaries().join("egress-agent");
    pass_through(Command::new(agent).args(&arguments.agent))
}
