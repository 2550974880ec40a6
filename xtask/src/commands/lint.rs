//! `cargo xtask lint`: format, clippy, and the dependency rules.

use std::process::ExitCode;

use clap::Args;

use crate::Outcome;
use crate::cargo::cargo;
use crate::failure::Failure;
use crate::host;
use crate::setup;
use crate::step;

/// Flags of `cargo xtask lint`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Format the code and apply what clippy can mend by itself.
    #[arg(long)]
    fix: bool,
}

/// `cargo xtask lint`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    setup::bpf()?;
    if arguments.fix {
        step::run("formatting", &mut cargo(["fmt", "--all"]))?;
        step::run(
            "applying clippy's advice",
            cargo(["clippy", "--fix", "--allow-dirty", "--allow-staged"]).args(SCOPE),
        )?;
    }
    check()?;
    Ok(ExitCode::SUCCESS)
}

/// All but the kernel programs, which are of another target; the build of the
/// agent compiles those.
const SCOPE: [&str; 4] = ["--workspace", "--exclude", "egress-ebpf", "--all-targets"];

/// Fails on the first finding.
pub(crate) fn check() -> Result<(), Failure> {
    step::run(
        "checking the format (cargo fmt)",
        &mut cargo(["fmt", "--all", "--check"]),
    )?;
    step::run(
        "checking with clippy",
        cargo(["clippy"])
            .args(SCOPE)
            .args(["--", "--deny", "warnings"]),
    )?;
    if host::find_program("cargo-deny").is_some() {
        step::run(
            "checking dependencies (cargo deny)",
            &mut cargo(["deny", "--offline", "check", "bans", "licenses", "sources"]),
        )?;
    } else {
        eprintln!("not checked: dependency rules of deny.toml (cargo-deny is not installed)");
    }
    Ok(())
}
