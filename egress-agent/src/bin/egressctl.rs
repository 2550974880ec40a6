//! The command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    egress_agent::cli::main()
}
