//! `egressctl`.

use std::process::ExitCode;

use clap::Parser;
use egress_agent::cli::validate::{ValidateArgs, run};

#[derive(Parser)]
#[command(name = "egressctl", version)]
enum Command {
    /// Check documents offline
    Validate(ValidateArgs),
}

/// The command line.
fn main() -> ExitCode {
    match Command::parse() {
        Command::Validate(args) => run(&args),
    }
}
