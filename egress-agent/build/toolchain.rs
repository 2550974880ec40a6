// Finds a compiler and a linker for the kernel programs. Shared as source by
// the build script of egress-agent and by xtask, which installs what is
// missing and then asks again.
//
// A compiler is fit when it is not older than the one that the workspace asks
// for, and the source of its own standard library lies beside it (`-Z build-std`
// compiles `core` from there). A nightly one is used as it is;
// any other with RUSTC_BOOTSTRAP=1, which unlocks `-Z`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names a toolchain by hand: a rustup toolchain, or a directory that holds
/// `bin/cargo` and `bin/rustc`.
pub const TOOLCHAIN_VARIABLE: &str = "EGRESS_BPF_TOOLCHAIN";

/// The oldest compiler that builds the workspace.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// A compiler that can build for the BPF target, and the linker to go with it.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// `cargo` of the toolchain.
    pub cargo: PathBuf,
    /// `rustc` of the toolchain.
    pub rustc: PathBuf,
    /// Set RUSTC_BOOTSTRAP=1: the compiler is not a nightly.
    pub bootstrap: bool,
    /// `bpf-linker`.
    pub linker: PathBuf,
}

/// What is missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Missing {
    /// No compiler with the source of its standard library.
    Compiler(String),
    /// No `bpf-linker`.
    Linker,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Compiler(tried) => write!(
                f,
                "no Rust compiler of {OLDEST} or newer with its own rust-src was found for the \
                 kernel programs (looked at: {tried}): run `cargo xtask setup`"
            ),
            Self::Linker => f.write_str(
                "bpf-linker was not found in PATH or in cargo's bin directory: \
                 run `cargo xtask setup`",
            ),
        }
    }
}

impl std::error::Error for Missing {}

impl Toolchain {
    /// The first fit one of: what EGRESS_BPF_TOOLCHAIN names, rustup's nightly
    /// toolchains, the distribution's compiler in /usr/bin, and rustup's other
    /// toolchains.
    pub fn find() -> Result<Self, Missing> {
        let (cargo, rustc, nightly) = compiler()?;
        Ok(Self {
            cargo,
            rustc,
            bootstrap: !nightly,
            linker: find_program("bpf-linker").ok_or(Missing::Linker)?,
        })
    }

    /// The environment that cargo needs to build with this toolchain.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut set = vec![
            ("RUSTC", self.rustc.clone().into_os_string()),
            (
                "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
                self.linker.clone().into_os_string(),
            ),
            (
                "CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER",
                self.linker.clone().into_os_string(),
            ),
        ];
        if self.bootstrap {
            set.push(("RUSTC_BOOTSTRAP", "1".into()));
        }
        set
    }
}

/// A fit compiler as (cargo, rustc, nightly).
pub fn compiler() -> Result<(PathBuf, PathBuf, bool), Missing> {
    let mut tried = Vec::new();
    for root in candidates() {
        let (cargo, rustc) = (root.join("bin/cargo"), root.join("bin/rustc"));
        if cargo.is_file()
            && rustc.is_file()
            && let Some(nightly) = fit(&rustc)
        {
            return Ok((cargo, rustc, nightly));
        }
        tried.push(root.display().to_string());
    }
    Err(Missing::Compiler(tried.join(", ")))
}

/// Directories that may hold a toolchain, best first.
fn candidates() -> Vec<PathBuf> {
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")))
        .map(|home| home.join("toolchains"));
    if let Some(named) = env::var_os(TOOLCHAIN_VARIABLE).filter(|value| !value.is_empty()) {
        // The operator's word is final: no other toolchain is tried.
        let path = PathBuf::from(&named);
        return match rustup.map(|toolchains| toolchains.join(&named)) {
            Some(toolchain) if !path.is_absolute() && toolchain.is_dir() => vec![toolchain],
            _ => vec![path],
        };
    }
    let mut installed: Vec<PathBuf> = rustup
        .and_then(|toolchains| toolchains.read_dir().ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    installed.sort();
    let (mut list, others): (Vec<_>, Vec<_>) = installed.into_iter().partition(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("nightly"))
    });
    list.push(PathBuf::from("/usr"));
    list.extend(others);
    list
}

/// Whether the compiler runs, is new enough and has its library's source; if
/// so, whether it is a nightly.
fn fit(rustc: &Path) -> Option<bool> {
    let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !source.is_file() {
        return None;
    }
    is_nightly(&output(Command::new(rustc).arg("--version"))?)
}

/// Whether what `rustc --version` says is a nightly; none if it is too old.
fn is_nightly(version: &str) -> Option<bool> {
    // `rustc 1.95.0 (59807616e 2026-04-14)`
    if numbers(version.split(' ').nth(1)?)? < numbers(OLDEST)? {
        return None;
    }
    Some(version.contains("-nightly") || version.contains("-dev"))
}

/// Major and minor version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn output(command: &mut Command) -> Option<String> {
    // A wrapper or a pinned toolchain of the outer build must not answer.
    let output = command
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_BOOTSTRAP")
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program in PATH, in cargo's bin directory or in /usr/local/bin.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .map(|home| home.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo)
        .chain([PathBuf::from("/usr/local/bin")])
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_must_not_be_too_old() {
        let said = |version: &str| is_nightly(&format!("rustc {version} (59807616e 2026-04-14)"));
        assert_eq!(said("1.85.0"), None);
        assert_eq!(said("1.9.0"), None);
        assert_eq!(said(&format!("{OLDEST}.0")), Some(false));
        assert_eq!(said("2.0.1"), Some(false));
        assert_eq!(said("1.150.0-nightly"), Some(true));
        assert_eq!(said("unknown"), None);
        assert_eq!(is_nightly(""), None);
    }
}
