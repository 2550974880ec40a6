//! `cargo xtask package`: the Debian package, and its life in a system of its
//! own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;

use crate::Outcome;
use crate::cargo::{Build, cargo, workspace_root};
use crate::commands::{build, remove};
use crate::failure::Failure;
use crate::host;
use crate::packages;
use crate::step;

/// Flags of `cargo xtask package`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Install, upgrade, remove and purge the package in a fresh Debian system
    /// (made by debootstrap, then kept), and check that each leaves what it
    /// should.
    #[arg(long)]
    check: bool,
    /// Package the programs of the debug build.
    #[arg(long, conflicts_with = "profile_guided")]
    debug: bool,
    /// Package the profile-guided build (see `cargo xtask build --help`).
    #[arg(long)]
    profile_guided: bool,
}

const CARGO_DEB_VERSION: &str = "3.8.0";
const PACKAGES: [&str; 2] = ["debootstrap", "dpkg-dev"];
const ALTERNATIVE: &str = "packages are made on Debian and its like";
/// The release whose libraries the programs are linked to.
const SUITE: &str = "bookworm";

/// What happens in the fresh system.
const LIFE: &str = include_str!("package_life.sh");

/// `cargo xtask package`.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let build = Build::of(!arguments.debug, arguments.profile_guided);
    let package = make(build, "1")?;
    println!("{}", package.display());
    if arguments.check {
        let next = make(build, "2")?;
        check(&package, &next)?;
        println!("installed, upgraded, removed and purged without a trace");
    }
    Ok(ExitCode::SUCCESS)
}

/// The life of a package of the debug build, for `cargo xtask test --long`.
pub(crate) fn check_debug() -> Result<(), Failure> {
    check(&make(Build::Debug, "1")?, &make(Build::Debug, "2")?)
}

fn folder() -> PathBuf {
    workspace_root().join("target/package")
}

/// Builds the programs, their manual pages and completions, and the package.
fn make(build: Build, revision: &str) -> Result<PathBuf, Failure> {
    packages::install(&packages::missing(&PACKAGES), ALTERNATIVE)?;
    if host::find_program("cargo-deb").is_none() {
        step::run(
            &format!("building cargo-deb {CARGO_DEB_VERSION}"),
            &mut cargo([
                "install",
                "cargo-deb",
                "--locked",
                "--version",
                CARGO_DEB_VERSION,
            ]),
        )?;
    }
    build::agent(build)?;
    documentation(&build.binaries().join("egressctl"))?;
    let output = folder().join(format!("egress-agent-{revision}.deb"));
    let mut command = cargo(["deb", "--no-build", "--package", "egress-agent"]);
    command
        .args(["--deb-revision", revision, "--output"])
        .arg(&output)
        .env("CARGO_TARGET_DIR", build.target());
    if build == Build::Debug {
        command.args(["--profile", "dev", "--strip", "--fast"]);
    } else {
        command.arg("--strip");
    }
    step::run("making the package (cargo deb)", &mut command)?;
    Ok(output)
}

/// Manual pages and completions, written by the program itself.
fn documentation(egressctl: &Path) -> Result<(), Failure> {
    let (manual, completion) = (folder().join("man"), folder().join("completion"));
    for directory in [&manual, &completion] {
        fs::create_dir_all(directory).map_err(|e| Failure::io(directory.display(), &e))?;
    }
    step::run(
        "writing manual pages",
        Command::new(egressctl).arg("man").arg(&manual),
    )?;
    for program in ["egressctl", "egress-agent"] {
        for (shell, file) in [
            ("bash", format!("{program}.bash")),
            ("zsh", format!("_{program}")),
            ("fish", format!("{program}.fish")),
        ] {
            let path = completion.join(file);
            let file = File::create(&path).map_err(|e| Failure::io(path.display(), &e))?;
            let status = Command::new(egressctl)
                .args(["completion", shell, program])
                .stdout(file)
                .status()
                .map_err(|e| Failure::io("egressctl completion", &e))?;
            if !status.success() {
                return Err(Failure::new(format!("egressctl completion {shell} failed")));
            }
        }
    }
    Ok(())
}

/// Takes two versions of the package through their life.
fn check(first: &Path, second: &Path) -> Result<(), Failure> {
    host::require_root("making a Debian system")?;
    let base = folder().join(format!("{SUITE}.tar"));
    let root = folder().join("root");
    remove(&root)?;
    if !base.exists() {
        let made = folder().join("base");
        remove(&made)?;
        step::run(
            &format!("making a Debian system (debootstrap {SUITE})"),
            Command::new("debootstrap")
                .args(["--variant=minbase", SUITE])
                .arg(&made),
        )?;
        // Under its name only when it is whole.
        let part = base.with_extension("part");
        step::run(
            "keeping it",
            Command::new("tar")
                .args(["--create", "--one-file-system", "--file"])
                .arg(&part)
                .arg("--directory")
                .arg(&made)
                .arg("."),
        )?;
        fs::rename(&part, &base).map_err(|e| Failure::io(base.display(), &e))?;
        remove(&made)?;
    }
    fs::create_dir_all(&root).map_err(|e| Failure::io(root.display(), &e))?;
    step::run(
        "unpacking the Debian system",
        Command::new("tar")
            .args(["--extract", "--file"])
            .arg(&base)
            .arg("--directory")
            .arg(&root),
    )?;
    for (file, name) in [(first, "first.deb"), (second, "second.deb")] {
        fs::copy(file, root.join(name)).map_err(|e| Failure::io(name, &e))?;
    }
    let life = root.join("life.sh");
    fs::write(&life, LIFE).map_err(|e| Failure::io(life.display(), &e))?;
    let lived = step::run(
        "installing, upgrading, removing and purging the package",
        // No network, and no mount that outlives it.
        Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--mount-proc"])
            .arg("--root")
            .arg(&root)
            .args(["sh", "/life.sh"])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null()),
    );
    remove(&root)?;
    lived
}
