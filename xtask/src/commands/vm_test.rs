//! `cargo xtask vm-test`: the kernel tests, and the end-to-end tests that need
//! no other server than a small one, on kernels that are not this machine's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::Outcome;
use crate::cargo::{Build, cargo};
use crate::commands::build;
use crate::counts::Counts;
use crate::failure::Failure;
use crate::host;
use crate::packages;
use crate::setup;
use crate::step;
use crate::vm::image::{self, Suite};
use crate::vm::kernel::{Kernel, Line};
use crate::vm::machine;

/// Flags of `cargo xtask vm-test`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only this kernel; may be given more than once.
    #[arg(long, value_enum)]
    kernel: Vec<Line>,
    /// Leave most end-to-end tests out: some minutes instead of an hour.
    #[arg(long)]
    quick: bool,
    /// Run only the tests whose names contain this.
    filter: Option<String>,
}

/// A machine that has not ended by then has hung. Emulated, and beside others,
/// all tests take most of an hour.
const DEADLINE: Duration = Duration::from_mins(90);
/// The same with `--quick`.
const QUICK_DEADLINE: Duration = Duration::from_mins(25);

const PACKAGES: [&str; 3] = ["busybox-static", "qemu-system-x86", "xz-utils"];
const ALTERNATIVE: &str = "run this on Debian 12 or 13 (amd64)";

/// The end-to-end tests that need no other server than those of the image: one
/// at a time, since emulated processors are slow, and the lab's patience has an
/// end. `agent_failure` is not among them: it is about a second's time, which an
/// emulated agent needs for more than that.
const END_TO_END: [&str; 23] = [
    "callers",
    "changing_names",
    "command_line",
    "destinations",
    "dns",
    "errors",
    "hand_over",
    "health_checks",
    "http_retries",
    "http_routes",
    "leaks",
    "lifecycle",
    "limits",
    "localities",
    "namespaces",
    "outbound",
    "policy_live",
    "resolution",
    "rolling",
    "soak",
    "sockets",
    "tls_origination",
    "untouched",
];

/// Those of them that run with `--quick`: what depends on the kernel most.
const QUICK: [&str; 2] = ["sockets", "tls_origination"];

/// Programs of the tests that they call where cargo has built them.
const HELPERS: [&str; 2] = ["churn", "load"];

/// `cargo xtask vm-test`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let started = Instant::now();
    if std::env::consts::ARCH != "x86_64" {
        return Err(Failure::new("vm-test has kernels for x86_64 alone"));
    }
    host::require_root("fetching kernel packages")?;
    setup::bpf()?;
    setup::test()?;
    packages::install(&packages::missing(&PACKAGES), ALTERNATIVE)?;
    build::agent(Build::Debug)?;
    let (suites, helpers) = suites(arguments.quick)?;
    let lines = if arguments.kernel.is_empty() {
        Line::ALL.to_vec()
    } else {
        arguments.kernel.clone()
    };
    let mut machines = Vec::new();
    for line in lines {
        let kernel = match Kernel::prepare(line) {
            Ok(kernel) => kernel,
            // Debian 11 will leave the mirrors one day.
            Err(failure) if line.is_too_old() => {
                println!("NOT RUN on Linux {}: {failure}", line.number());
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let (suites, helpers) = if line.is_too_old() {
            (&[][..], &[][..])
        } else {
            (&suites[..], &helpers[..])
        };
        let image = image::build(
            &kernel,
            suites,
            helpers,
            &Build::Debug.binaries(),
            arguments.filter.as_deref(),
        )?;
        machines.push((line, kernel, image));
    }

    eprintln!(
        "booting {} machines; each takes some minutes",
        machines.len()
    );
    let deadline = if arguments.quick {
        QUICK_DEADLINE
    } else {
        DEADLINE
    };
    let reports: Vec<Result<Report, Failure>> = thread::scope(|scope| {
        let runs: Vec<_> = machines
            .iter()
            .map(|(line, kernel, image)| scope.spawn(move || boot(*line, kernel, image, deadline)))
            .collect();
        runs.into_iter()
            .map(|run| {
                run.join()
                    .unwrap_or_else(|_| Err(Failure::new("the thread of a machine ended early")))
            })
            .collect()
    });

    let mut all = Counts {
        clean: true,
        ..Counts::default()
    };
    for report in reports {
        let report = report?;
        println!();
        print!("{report}");
        all = all.and(report.counts);
    }
    println!("\ntime:  {}", step::clock(started.elapsed()));
    println!("total: {} passed, {} failed", all.passed, all.failed);
    if all.passed == 0 {
        return Err(Failure::new("no test ran"));
    }
    Ok(if all.failed == 0 && all.clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What one machine told.
struct Report {
    release: String,
    /// Seconds from power on to user space, by the machine's own clock.
    up: Option<String>,
    /// Instructions that the verifier walked through, by program.
    verified: BTreeMap<String, String>,
    /// The tests; clean when every program ended with success and the machine
    /// came to the end of its work.
    counts: Counts,
    log: PathBuf,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let up = self.up.as_deref().unwrap_or("never");
        writeln!(f, "Linux {}: up after {up} s", self.release)?;
        writeln!(f, "  tests: {}", self.counts)?;
        for (program, count) in &self.verified {
            writeln!(f, "  {program}: {count} instructions verified")?;
        }
        writeln!(f, "  console: {}", self.log.display())
    }
}

fn boot(line: Line, kernel: &Kernel, image: &Path, deadline: Duration) -> Result<Report, Failure> {
    let mut report = Report {
        release: kernel.release.clone(),
        up: None,
        verified: BTreeMap::new(),
        counts: Counts {
            clean: true,
            ..Counts::default()
        },
        log: image.with_file_name("console.log"),
    };
    let log = report.log.clone();
    let (mut done, mut counting) = (false, true);
    machine::run(kernel, image, &log, deadline, |text| {
        if let Some(seconds) = text.strip_prefix(image::UP) {
            report.up = Some(seconds.to_owned());
        } else if let Some(end) = text.strip_prefix(image::END) {
            report.counts.clean &= end.ends_with(" 0");
            // What follows the kernel tests shows their counts again.
            counting = false;
        } else if let Some(said) = text.strip_prefix(image::SAID) {
            // Counted as a test: it must say what is missing.
            if said.contains("is too old") {
                report.counts.passed += 1;
            } else {
                report.counts.failed += 1;
            }
        } else if text.starts_with("VM suite ") {
            counting = true;
        } else if text == image::DONE {
            done = true;
        } else if let Some((program, count)) = verified(text) {
            report.verified.insert(program, count);
        } else if counting {
            report.counts.add(text);
        }
        if !text.is_empty() && (counting || text.starts_with("VM ")) {
            println!("{:>5} | {text}", line.number());
        }
    })?;
    report.counts.clean &= done;
    Ok(report)
}

/// Reads `connect4: Some(1234) instructions verified`.
fn verified(text: &str) -> Option<(String, String)> {
    let (program, count) = text
        .strip_suffix(" instructions verified")?
        .split_once(": ")?;
    // Kernels before 5.16 do not tell.
    let count = count
        .strip_prefix("Some(")
        .and_then(|count| count.strip_suffix(')'))
        .unwrap_or("?");
    // The first stands behind the harness's own `test NAME ... `.
    let program = program.split_whitespace().last()?;
    Some((program.to_owned(), count.to_owned()))
}

/// Builds the tests, and finds their programs and those that they call.
fn suites(quick: bool) -> Result<(Vec<Suite>, Vec<PathBuf>), Failure> {
    let end_to_end: &[&str] = if quick { &QUICK } else { &END_TO_END };
    let suite = |(name, program): (&&str, PathBuf)| Suite {
        name: (*name).to_owned(),
        program,
        threads: if *name == "kernel" { 4 } else { 1 },
    };
    let kernel = ["kernel"];
    let mut suites: Vec<Suite> = kernel
        .iter()
        .zip(executables("egress-agent", &kernel, &[])?)
        .map(suite)
        .collect();
    let mut programs = executables("tests", end_to_end, &HELPERS)?;
    let helpers = programs.split_off(end_to_end.len());
    suites.extend(end_to_end.iter().zip(programs).map(suite));
    Ok((suites, helpers))
}

/// Where the tests `names` and the programs `helpers` of a package are, once
/// they are built.
fn executables(package: &str, names: &[&str], helpers: &[&str]) -> Result<Vec<PathBuf>, Failure> {
    let command = || {
        let mut command = cargo(["test", "--no-run", "--package", package]);
        for name in names {
            command.args(["--test", name]);
        }
        for helper in helpers {
            command.args(["--bin", helper]);
        }
        command
    };
    step::run(&format!("building the tests of {package}"), &mut command())?;
    let output = command()
        .arg("--message-format=json")
        .output()
        .map_err(|e| Failure::io("cannot start cargo", &e))?;
    let mut programs: BTreeMap<String, PathBuf> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        if let (Some(name), Some(path)) = (
            message["target"]["name"].as_str(),
            message["executable"].as_str(),
        ) {
            programs.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    names
        .iter()
        .chain(helpers)
        .map(|name| {
            programs
                .remove(*name)
                .ok_or_else(|| Failure::new(format!("cargo does not tell where {name} is")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifier_lines_are_read() {
        assert_eq!(
            verified("test the_limit ... connect4: Some(1234) instructions verified"),
            Some(("connect4".to_owned(), "1234".to_owned()))
        );
        assert_eq!(verified("test names ... ok"), None);
    }
}
