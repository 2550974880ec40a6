//! The compiler and linker of the kernel programs (DESIGN section 8): found by
//! the same code as egress-agent's build script uses, and installed if missing.

use crate::cargo::cargo;
use crate::failure::Failure;
use crate::packages;
use crate::step;

#[path = "../../egress-agent/build/toolchain.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the build script, which uses the rest"
)]
mod find;

use find::Missing;
pub(crate) use find::Toolchain;

/// Debian 12's compiler with the source of its library: three packages of one
/// version, used with `RUSTC_BOOTSTRAP=1`.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// What bpf-linker is built with.
const LINKER_PACKAGES: [&str; 5] = [
    "g++",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
];

const LINKER_VERSION: &str = "0.13.0";

/// What a newcomer on another system does instead.
const ALTERNATIVE: &str = "elsewhere than on Debian 12 use rustup: \
     `rustup toolchain install nightly --component rust-src && cargo install bpf-linker`, \
     then run this again";

/// Finds the toolchain of the kernel programs, installing what is missing.
/// The build script finds it again by itself, so nothing needs to be passed
/// on; EGRESS_BPF_TOOLCHAIN names another one for both.
pub(crate) fn prepare() -> Result<Toolchain, Failure> {
    if let Err(Missing::Compiler(_)) = find::compiler() {
        packages::install(&packages::missing(&COMPILER_PACKAGES), ALTERNATIVE)?;
    }
    if find::find_program("bpf-linker").is_none() {
        packages::install(&packages::missing(&LINKER_PACKAGES), ALTERNATIVE)?;
        step::run(
            &format!("building bpf-linker {LINKER_VERSION}"),
            cargo(["install", "bpf-linker", "--version", LINKER_VERSION])
                .args(["--locked", "--no-default-features", "--features", "llvm-22"])
                .env("LLVM_PREFIX", "/usr/lib/llvm-22"),
        )?;
    }
    Toolchain::find().map_err(|missing| Failure::with_remedy(missing.to_string(), ALTERNATIVE))
}
