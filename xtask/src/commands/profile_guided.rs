//! The profile-guided build: the agent is built so that it counts which way
//! its branches go, the bench's load runs over it, and it is built again for
//! what was counted. Needs root, as the bench does.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::cargo::{Build, cargo, workspace_root};
use crate::commands::build::{PROGRAMS, title};
use crate::commands::{bench, remove};
use crate::failure::Failure;
use crate::packages;
use crate::step;

/// What is run while branches are counted: each way that bytes take.
const TRAINING: [&str; 11] = [
    "http1-1k",
    "http1-1k-2000",
    "http1-100k",
    "http2-1k",
    "http2-100k",
    "tcp-connect",
    "tcp-echo",
    "tls-1k",
    "tls-full",
    "tls-resumed",
    "dns-answer",
];

const ALTERNATIVE: &str = "with a compiler from rustup, `rustup component add llvm-tools`";

/// Builds the agent and `egressctl` twice. What has not changed since is not
/// done again.
pub(super) fn agent() -> Result<(), Failure> {
    let tool = merge_tool()?;
    let bench = bench::prepare()?;
    let directory = Build::ProfileGuided.target();
    let counting = Counting::build(&directory.join("counting"))?;
    let profile = counting.profile(&bench, &tool)?;
    programs(
        &directory,
        &format!("-Cprofile-use={}", profile.display()),
        Build::ProfileGuided.name(),
    )
}

/// A build that counts.
struct Counting {
    directory: PathBuf,
}

impl Counting {
    fn build(directory: &Path) -> Result<Self, Failure> {
        let counting = Self {
            directory: directory.to_owned(),
        };
        let flag = format!("-Cprofile-generate={}", counting.counts().display());
        programs(directory, &flag, "counting branches")?;
        Ok(counting)
    }

    fn counts(&self) -> PathBuf {
        self.directory.join("counts")
    }

    /// The profile, made anew if the programs are newer. Its name tells what is
    /// in it, so that cargo sees when it has changed.
    fn profile(&self, bench: &Path, tool: &Path) -> Result<PathBuf, Failure> {
        let merged = self.directory.join("merged.profdata");
        let programs = self.directory.join("release");
        if modified(&merged) < modified(&programs.join("egress-agent")) {
            remove(&self.counts())?;
            step::run(
                "running the bench's load over it",
                Command::new(bench)
                    .args(["run", "--rounds", "1", "--share", "1"])
                    .args(["--without", "direct,Envoy,HAProxy,nginx", "--out"])
                    .arg(self.directory.join("report"))
                    .args(TRAINING)
                    .env("EGRESS_BIN_DIR", &programs)
                    .current_dir(workspace_root()),
            )?;
            // Under its name only when it is whole.
            let part = merged.with_extension("part");
            step::run(
                "merging what was counted (llvm-profdata)",
                Command::new(tool)
                    .args(["merge", "--output"])
                    .arg(&part)
                    .arg(self.counts()),
            )?;
            fs::rename(&part, &merged).map_err(|e| Failure::io(merged.display(), &e))?;
        }
        let content = fs::read(&merged).map_err(|e| Failure::io(merged.display(), &e))?;
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let named = self.directory.join("profile");
        let profile = named.join(format!("{:016x}.profdata", hasher.finish()));
        if !profile.exists() {
            // Not beside those of earlier builds.
            remove(&named)?;
            fs::create_dir_all(&named)
                .and_then(|()| fs::copy(&merged, &profile))
                .map_err(|e| Failure::io(profile.display(), &e))?;
        }
        Ok(profile)
    }
}

/// When a file was written last; what is not there is older than anything.
fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file)
        .and_then(|metadata| metadata.modified())
        .ok()
}

/// Builds into `target` with one more flag for the compiler; that of the
/// kernel programs is not given it.
fn programs(target: &Path, flag: &str, how: &str) -> Result<(), Failure> {
    step::run(
        &title(how),
        cargo(PROGRAMS)
            .args(["--release", "--target-dir"])
            .arg(target)
            // Parts of flags, which may have spaces in them.
            .env("CARGO_ENCODED_RUSTFLAGS", flags(flag)),
    )
}

/// The user's own flags with one more, as cargo takes them.
fn flags(one: &str) -> String {
    const BETWEEN: char = '\x1f';
    let mut flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_else(|_| {
        let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
        let words: Vec<&str> = flags.split_whitespace().collect();
        words.join(&BETWEEN.to_string())
    });
    if !flags.is_empty() {
        flags.push(BETWEEN);
    }
    flags.push_str(one);
    flags
}

/// The `llvm-profdata` of the LLVM that the compiler has: the format of counts
/// changes from version to version.
fn merge_tool() -> Result<PathBuf, Failure> {
    let compiler = Compiler::ask()?;
    let ours = compiler
        .sysroot
        .join("lib/rustlib")
        .join(&compiler.host)
        .join("bin/llvm-profdata");
    if ours.exists() {
        return Ok(ours);
    }
    let package = format!("llvm-{}", compiler.llvm);
    let tool = PathBuf::from(format!("/usr/lib/{package}/bin/llvm-profdata"));
    if !tool.exists() {
        packages::install(&[&package], ALTERNATIVE)?;
    }
    Ok(tool)
}

/// What the compiler says of itself.
#[derive(PartialEq, Eq, Debug)]
struct Compiler {
    sysroot: PathBuf,
    host: String,
    /// The first number of the version.
    llvm: u32,
}

impl Compiler {
    fn ask() -> Result<Self, Failure> {
        let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let ask = |arguments: &[&str]| {
            let output = Command::new(&program)
                .args(arguments)
                .current_dir(workspace_root())
                .output()
                .map_err(|e| Failure::io("cannot start rustc", &e))?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (sysroot, version) = (ask(&["--print", "sysroot"])?, ask(&["-vV"])?);
        Self::read(&sysroot, &version)
            .ok_or_else(|| Failure::new(format!("rustc -vV names no host or LLVM: {version:?}")))
    }

    fn read(sysroot: &str, version: &str) -> Option<Self> {
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name));
        Some(Self {
            sysroot: sysroot.trim().into(),
            host: field("host: ")?.to_owned(),
            llvm: field("LLVM version: ")?.split('.').next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_tells_its_llvm() {
        let version = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
                       host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        let wanted = Compiler {
            sysroot: "/opt/rust".into(),
            host: "x86_64-unknown-linux-gnu".to_owned(),
            llvm: 22,
        };
        assert_eq!(Compiler::read("/opt/rust\n", version), Some(wanted));
        assert_eq!(Compiler::read("/opt/rust", "rustc 1.95.0"), None);
    }
}
