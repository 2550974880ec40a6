//! `cargo xtask setup`: the toolchain of the kernel programs (DESIGN section
//! 8), and the servers and clients that the tests use.

use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{Args, ValueEnum};

use crate::Outcome;
use crate::cargo::{cargo, target_directory, workspace_root};
use crate::failure::Failure;
use crate::host;
use crate::packages;
use crate::step;
use crate::toolchain::{self, Toolchain};

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

/// Debian 12's compiler for the kernel programs: three packages of one
/// version, used with `RUSTC_BOOTSTRAP=1`.
const BPF_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// What bpf-linker links to; `LLVM_PREFIX` says where.
const LLVM_PACKAGES: [&str; 5] = [
    "g++",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
];

/// What a newcomer on another system does instead.
const BPF_ALTERNATIVE: &str = "Debian 12 has it in its security archive \
     (suite bookworm-security in apt's sources); elsewhere use rustup: `rustup toolchain install nightly --component rust-src && cargo install bpf-linker`, \
     then run this again";

const BPF_LINKER_VERSION: &str = "0.13.0";

/// A package of the lab's peers and tools, and how it shows that it is there.
struct Peer {
    package: &'static str,
    shown_by: Sign,
}

/// What shows that a peer is there, from whatever archive it came. Asking
/// Debian's archive for it as well could break what is installed: NodeSource's
/// `nodejs` holds npm and conflicts with Debian's package of that name.
enum Sign {
    /// These programs are on PATH.
    Programs(&'static [&'static str]),
    /// The system's Python imports this module.
    Module(&'static str),
    /// A PostgreSQL server, which Debian keeps off PATH.
    Postgres,
}

impl Peer {
    const fn programs(package: &'static str, programs: &'static [&'static str]) -> Self {
        let shown_by = Sign::Programs(programs);
        Self { package, shown_by }
    }

    const fn module(package: &'static str, module: &'static str) -> Self {
        let shown_by = Sign::Module(module);
        Self { package, shown_by }
    }

    fn is_there(&self) -> bool {
        match self.shown_by {
            Sign::Programs(programs) => programs
                .iter()
                .all(|program| host::find_program(program).is_some()),
            Sign::Module(module) => python_imports(module),
            Sign::Postgres => postgres_server(),
        }
    }
}

/// Peers and tools of the lab. `dnsmasq-base` holds the program alone, with
/// no service; nginx, PostgreSQL and the mail and directory servers come with
/// services, which are kept from starting. Where all of them are there, no
/// package is asked for, so systems without apt can run the tests too.
const PEERS: [Peer; 26] = [
    Peer::programs("bpftool", &["bpftool"]),
    Peer::programs("curl", &["curl"]),
    Peer::programs("dnsmasq-base", &["dnsmasq"]),
    Peer::programs("dovecot-imapd", &["dovecot"]),
    Peer::programs("iperf3", &["iperf3"]),
    Peer::programs("iproute2", &["ip", "ss"]),
    Peer::programs("ldap-utils", &["ldapwhoami"]),
    Peer::programs("mariadb-client-core", &["mariadb"]),
    Peer::programs("mariadb-server-core", &["mariadbd"]),
    Peer::programs("nghttp2-client", &["h2load"]),
    Peer::programs("nginx-light", &["nginx"]),
    Peer::programs("nodejs", &["node"]),
    Peer::programs("npm", &["npm"]),
    Peer::programs("postfix", &["postfix"]),
    Peer {
        package: "postgresql",
        shown_by: Sign::Postgres,
    },
    Peer::programs("postgresql-client", &["psql"]),
    Peer::programs("procps", &["ps"]),
    Peer::programs("python3", &["python3"]),
    Peer::module("python3-cryptography", "cryptography"),
    Peer::module("python3-psycopg", "psycopg"),
    Peer::module("python3-psycopg2", "psycopg2"),
    Peer::module("python3-pymysql", "pymysql"),
    Peer::module("python3-venv", "ensurepip"),
    Peer::programs("slapd", &["slapd"]),
    Peer::programs("systemd", &["systemctl"]),
    Peer::programs(
        "util-linux",
        &["chrt", "nsenter", "setpriv", "taskset", "unshare"],
    ),
];

const TEST_ALTERNATIVE: &str = "install nginx, PostgreSQL (server and psql), MariaDB \
     (server and client), Postfix, Dovecot, OpenLDAP (server and tools), dnsmasq, curl, python3 \
     with psycopg, psycopg2, pymysql and cryptography, Node.js with npm, iperf3, iproute2, bpftool and util-linux by your system's means, then run this again";

/// Clients from PyPI, in a virtual environment of the target directory.
const PYTHON_CLIENTS: [&str; 3] = ["grpcio==1.85.1", "httpx[http2]==0.28.1", "websockets==17.4"];

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
    if toolchain::compiler().is_err() {
        // Also those that are there already: they may be too old.
        packages::install(&BPF_PACKAGES, BPF_ALTERNATIVE)?;
    }
    if toolchain::find_program("bpf-linker").is_none() {
        packages::install(&packages::missing(&LLVM_PACKAGES), BPF_ALTERNATIVE)?;
        step::run(
            &format!("building bpf-linker {BPF_LINKER_VERSION}"),
            cargo(["install", "bpf-linker", "--version", BPF_LINKER_VERSION])
                .args(["--locked", "--no-default-features", "--features", "llvm-22"])
                .env("LLVM_PREFIX", "/usr/lib/llvm-22"),
        )?;
    }
    // What the build script will look for, by the same code.
    Toolchain::find()
        .map(drop)
        .map_err(|missing| Failure::with_remedy(missing.to_string(), BPF_ALTERNATIVE))
}

/// Prepares the servers and clients of the tests and the demo.
pub(crate) fn test() -> Result<(), Failure> {
    let absent: Vec<&str> = PEERS
        .iter()
        .filter(|peer| !peer.is_there())
        .map(|peer| peer.package)
        .collect();
    packages::install(&absent, TEST_ALTERNATIVE)?;
    python_clients()?;
    node_clients()
}

/// Makes the virtual environment, unless it holds what is wanted already.
fn python_clients() -> Result<(), Failure> {
    let folder = target_directory().join("python");
    let mark = folder.join("egress-clients");
    let wanted = PYTHON_CLIENTS.join("\n");
    if std::fs::read_to_string(&mark).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    step::run(
        "making a Python environment for the tests",
        Command::new("/usr/bin/python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )?;
    step::run(
        "installing HTTP clients from PyPI",
        Command::new(folder.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(PYTHON_CLIENTS),
    )?;
    std::fs::write(&mark, wanted)
        .map_err(|error| Failure::io(format!("cannot write {}", mark.display()), &error))
}

/// Installs what `tests/node/package-lock.json` pins into `target/node`, unless
/// that was done already.
fn node_clients() -> Result<(), Failure> {
    let source = workspace_root().join("tests/node");
    let folder = target_directory().join("node");
    let mark = folder.join("egress-clients");
    let lock = source.join("package-lock.json");
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| Failure::io(format!("cannot read {}", path.display()), &error))
    };
    let wanted = read(&lock)?;
    if std::fs::read_to_string(&mark).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text)
            .map_err(|error| Failure::io(format!("cannot write {}", path.display()), &error))
    };
    std::fs::create_dir_all(&folder)
        .map_err(|error| Failure::io(format!("cannot make {}", folder.display()), &error))?;
    write(
        &folder.join("package.json"),
        &read(&source.join("package.json"))?,
    )?;
    write(&folder.join("package-lock.json"), &wanted)?;
    step::run(
        "installing Node.js clients from npm",
        Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&folder),
    )?;
    write(&mark, &wanted)
}

fn python_imports(module: &str) -> bool {
    Command::new("/usr/bin/python3")
        .args(["-I", "-c", &format!("import {module}")])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Debian keeps PostgreSQL's server programs off PATH.
fn postgres_server() -> bool {
    std::fs::read_dir("/usr/lib/postgresql").is_ok_and(|versions| {
        versions
            .flatten()
            .any(|version| version.path().join("bin/initdb").exists())
    }) || host::find_program("initdb").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_from_another_archive_is_not_asked_for() {
        assert!(Peer::programs("no-package", &["sh", "env"]).is_there());
        assert!(!Peer::programs("sed", &["sh", "no-such-program"]).is_there());
        assert!(Peer::module("no-package", "sys").is_there());
        assert!(!Peer::module("python3", "no_such_module").is_there());
    }
}
