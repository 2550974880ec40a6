//! Builds the kernel programs and hands their path to the crate.
//!
//! `egress-ebpf` is compiled for the BPF target by a nested cargo, with `core`
//! from source and bpf-linker. Its target directory is shared by every profile
//! of the outer build, since the object is the same for all.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[path = "build/toolchain.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with xtask, which uses the rest"
)]
mod toolchain;

use toolchain::{TOOLCHAIN_VARIABLE, Toolchain};

/// Set to 1: build the agent without the kernel programs.
const SKIP_VARIABLE: &str = "EGRESS_SKIP_BPF";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("egress-agent has no parent directory")?
        .to_owned();
    for watched in [
        "egress-ebpf/Cargo.toml",
        "egress-ebpf/src",
        "egress-common/Cargo.toml",
        "egress-common/src",
        "egress-agent/build.rs",
        "egress-agent/build",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    for variable in [SKIP_VARIABLE, TOOLCHAIN_VARIABLE] {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    let object = out.join("egress.bpf.o");
    if env::var_os(SKIP_VARIABLE).is_some_and(|value| value == "1") {
        // An empty object: loading it says that the programs were left out.
        return Ok(std::fs::write(object, [])?);
    }
    let built = build(&root, &out)?;
    std::fs::copy(&built, &object)
        .map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    Ok(())
}

/// Runs the nested build and returns the path of its object.
fn build(root: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let toolchain = Toolchain::find()?;
    let variable = |name: &str| env::var(name).map_err(|_| format!("{name} is not set"));
    let architecture = variable("CARGO_CFG_TARGET_ARCH")?;
    let target = if variable("CARGO_CFG_TARGET_ENDIAN")? == "big" {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    };
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let directory = out
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR has no target directory above it")?
        .join("bpf");

    let mut cargo = Command::new(&toolchain.cargo);
    cargo
        .current_dir(root)
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--package", "egress-ebpf", "--bins"])
        .args(["--target", target, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&directory);
    // What the outer build set must not reach the inner one.
    for (name, _) in env::vars_os() {
        let outer = name.to_str().is_some_and(|name| {
            (name.starts_with("CARGO")
                && name != "CARGO_HOME"
                && !name.starts_with("CARGO_HTTP")
                && !name.starts_with("CARGO_NET")
                && !name.starts_with("CARGO_REGISTR")
                && !name.starts_with("CARGO_SOURCE"))
                || name.starts_with("RUSTC")
                || name == "RUSTFLAGS"
                || name == "RUSTUP_TOOLCHAIN"
        });
        if outer {
            cargo.env_remove(name);
        }
    }
    cargo
        .envs(toolchain.environment())
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                &format!("--cfg=bpf_target_arch=\"{architecture}\""),
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
            ]
            .join("\x1f"),
        )
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");

    let output = cargo
        .output()
        .map_err(|error| format!("cannot run {}: {error}", toolchain.cargo.display()))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!(
            "the kernel programs did not build with {} ({}):\n{messages}",
            toolchain.rustc.display(),
            output.status
        )
        .into());
    }
    for line in messages.lines() {
        println!("cargo::warning={line}");
    }
    Ok(directory.join(target).join("release/egress"))
}
