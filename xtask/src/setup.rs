//! `cargo xtask setup`: the toolchain of the kernel programs (DESIGN section
//! 8), and the servers and clients that the tests use.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::Outcome;
use crate::failure::Failure;
use crate::host;
use crate::packages;
use crate::toolchain;

/// Flags of `cargo xtask setup`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What to prepare.
    #[arg(long, value_enum, default_value_t = Part::All)]
    only: Part,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The compiler and linker of the kernel programs.
    Bpf,
    /// The servers and clients of the tests and the demo.
    Test,
    /// Both.
    All,
}

/// Peers and tools of the lab. `dnsmasq-base` holds the program alone, with
/// no service; `nginx-light` and `postgresql` come with services, which are
/// kept from starting.
const TEST_PACKAGES: [&str; 10] = [
    "bpftool",
    "curl",
    "dnsmasq-base",
    "iproute2",
    "nginx-light",
    "postgresql",
    "postgresql-client",
    "procps",
    "python3",
    "util-linux",
];

const TEST_ALTERNATIVE: &str = "install nginx, PostgreSQL (server and psql), dnsmasq, curl, \
     python3, iproute2, bpftool and util-linux by your system's means, then run this again";

/// Programs that the lab calls; where all of them are there, no package is
/// asked for, so systems without apt can run the tests too.
const TEST_PROGRAMS: [&str; 10] = [
    "bpftool", "curl", "dnsmasq", "ip", "nginx", "nsenter", "psql", "python3", "setpriv", "unshare",
];

/// `cargo xtask setup`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    if arguments.only != Part::Test {
        bpf()?;
        eprintln!("ready: compiler and linker of the kernel programs");
    }
    if arguments.only != Part::Bpf {
        test()?;
        eprintln!("ready: servers and clients of the tests");
    }
    Ok(ExitCode::SUCCESS)
}

/// Prepares the toolchain of the kernel programs.
pub(crate) fn bpf() -> Result<(), Failure> {
    toolchain::prepare().map(drop)
}

/// Prepares the servers and clients of the tests and the demo.
pub(crate) fn test() -> Result<(), Failure> {
    let all_there = TEST_PROGRAMS
        .iter()
        .all(|program| host::find_program(program).is_some())
        && postgres_server();
    if all_there {
        return Ok(());
    }
    packages::install(&packages::missing(&TEST_PACKAGES), TEST_ALTERNATIVE)
}

/// Debian keeps PostgreSQL's server programs off PATH.
fn postgres_server() -> bool {
    std::fs::read_dir("/usr/lib/postgresql").is_ok_and(|versions| {
        versions
            .flatten()
            .any(|version| version.path().join("bin/initdb").exists())
    }) || host::find_program("initdb").is_some()
}
