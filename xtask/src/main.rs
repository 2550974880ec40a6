//! `cargo xtask`: every developer and newcomer command.
//!
//! Each command prepares what it needs by itself, says what it does, and does
//! nothing twice. This crate depends on nothing of the agent, so that it
//! builds in seconds on a fresh clone.

mod cargo;
mod commands;
mod counts;
mod failure;
mod host;
mod packages;
mod setup;
mod step;
mod vm;

/// The very code by which the build script of egress-agent finds the compiler
/// and linker of the kernel programs.
#[path = "../../egress-agent/build/toolchain.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with that build script")]
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;

/// Builds, shows, runs and tests egress. Each command prepares what it needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the toolchain of the kernel programs and the system packages.
    Setup(setup::Arguments),
    /// Build the agent and egressctl, kernel programs included.
    Build(commands::build::Arguments),
    /// Show the main job in a lab of its own, in under 30 s once built.
    Demo,
    /// Build the agent and run it on this host, with the arguments after `--`.
    Run(commands::run::Arguments),
    /// Format and lint checks, unit tests, kernel and end-to-end tests.
    Test(commands::test::Arguments),
    /// Measure egress beside Envoy, HAProxy, nginx and no proxy at all.
    Bench(commands::bench::Arguments),
    /// The kernel and end-to-end tests on other kernels, in virtual machines.
    VmTest(commands::vm_test::Arguments),
    /// Format and lint checks alone.
    Lint(commands::lint::Arguments),
    /// Make the Debian package.
    Package(commands::package::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Setup(arguments) => setup::run(arguments),
        Command::Build(arguments) => commands::build::run(arguments),
        Command::Demo => commands::demo::run(),
        Command::Run(arguments) => commands::run::run(arguments),
        Command::Test(arguments) => commands::test::run(arguments),
        Command::Bench(arguments) => commands::bench::run(arguments),
        Command::VmTest(arguments) => commands::vm_test::run(arguments),
        Command::Lint(arguments) => commands::lint::run(arguments),
        Command::Package(arguments) => commands::package::run(arguments),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("cargo xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What a command returns: the exit code to end with, or why it could not.
type Outcome = Result<ExitCode, Failure>;
