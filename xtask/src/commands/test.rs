//! `cargo xtask test`: everything that must hold before a change lands.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use clap::Args;

use crate::Outcome;
use crate::cargo::{Build, cargo};
use crate::commands::{build, lint, package};
use crate::counts::Counts;
use crate::failure::Failure;
use crate::host;
use crate::setup;
use crate::step;

/// Flags of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Leave out the tests whose names begin with `slow_`.
    #[arg(long)]
    quick: bool,
    /// Run the soak and load tests at their full length (an hour and more)
    /// instead of the short one.
    #[arg(long, conflicts_with = "quick")]
    long: bool,
    /// Run only the tests whose names contain this, and no lint checks.
    filter: Option<String>,
}

/// End-to-end tests that run at the same time; each has a lab of its own.
const END_TO_END_THREADS: &str = "2";

/// `cargo xtask test`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let started = Instant::now();
    host::require_root("the tests make network namespaces, load kernel programs, and so")?;
    host::require_kernel()?;
    setup::bpf()?;
    setup::test()?;
    if arguments.filter.is_none() {
        lint::check()?;
    }
    build::agent(Build::Debug)?;
    step::run(
        "building the tests",
        cargo(["test", "--no-run", "--workspace"]).args(["--exclude", "egress-ebpf"]),
    )?;

    eprintln!("unit tests");
    let unit = tests(
        cargo(["test", "--no-fail-fast", "--workspace"]).args([
            "--exclude",
            "egress-ebpf",
            "--exclude",
            "tests",
        ]),
        arguments,
        &[],
    )?;
    eprintln!("kernel and end-to-end tests, each in a lab of its own");
    let end_to_end = tests(
        cargo(["test", "--no-fail-fast", "--package", "tests"])
            .env("EGRESS_BIN_DIR", Build::Debug.binaries())
            // A failed test says what it saw; where in the harness tells nothing.
            .env("RUST_LIB_BACKTRACE", "0"),
        arguments,
        &["--test-threads", END_TO_END_THREADS],
    )?;

    println!();
    println!("unit tests:       {unit}");
    println!("end-to-end tests: {end_to_end}");
    println!("time:             {}", step::clock(started.elapsed()));
    let all = unit.and(end_to_end);
    println!("total: {} passed, {} failed", all.passed, all.failed);

    if all.failed > 0 || !all.clean {
        return Ok(ExitCode::FAILURE);
    }
    if arguments.filter.is_none() && end_to_end.passed == 0 {
        return Err(Failure::new("no end-to-end test ran"));
    }
    if all.passed == 0 {
        return Err(Failure::new("no test has such a name"));
    }
    if arguments.long && arguments.filter.is_none() {
        package::check_debug()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one `cargo test`, shows its output as it comes, and counts.
fn tests(
    command: &mut Command,
    arguments: &Arguments,
    harness: &[&str],
) -> Result<Counts, Failure> {
    command.args(arguments.filter.as_deref());
    // Nothing may be left out silently.
    command.env_remove("EGRESS_SKIP_KERNEL_TESTS");
    command.env_remove("EGRESS_SKIP_BPF");
    command.env_remove("EGRESS_LONG");
    if arguments.long {
        command.env("EGRESS_LONG", "1");
    }
    command.arg("--").args(harness);
    if arguments.quick {
        command.args(["--skip", "slow_"]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| Failure::io("cannot start cargo", &e))?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(|e| Failure::io("reading cargo's output", &e))?;
            counts.add(&line);
            println!("{line}");
        }
    }
    let status = child.wait().map_err(|e| Failure::io("cargo", &e))?;
    counts.clean = status.success();
    Ok(counts)
}
