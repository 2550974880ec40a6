//! System packages by apt-get (Debian 12 and its like).

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;
use crate::host;
use crate::step;

/// Runs `apt-get` with every service start denied, the way Debian documents
/// for chroots (`invoke-rc.d` asks `policy-rc.d`, and 101 is "forbidden").
/// Installing nginx or PostgreSQL must not leave a server running here. The
/// file is taken away again however the shell ends; an older one is kept.
const GUARDED_APT: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
saved=$policy.before-egress
restore() {
    rm -f "$policy"
    if [ -e "$saved" ]; then mv "$saved" "$policy"; fi
}
trap restore EXIT
trap 'exit 130' INT TERM HUP
if [ -e "$policy" ] && [ ! -e "$saved" ]; then mv "$policy" "$saved"; fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"
apt-get -q "$@"
"#;

/// Set once apt's lists are fresh.
static REFRESHED: AtomicBool = AtomicBool::new(false);

/// Those of `wanted` that are not installed.
pub(crate) fn missing(wanted: &[&'static str]) -> Vec<&'static str> {
    wanted
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect()
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// Installs `packages`, refreshing apt's lists first (once a run).
///
/// Fails when this is no apt system, when not root, or naming the packages
/// that apt does not know, with `alternative` as what to do then.
pub(crate) fn install(packages: &[&str], alternative: &str) -> Result<(), Failure> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if host::find_program("apt-get").is_none() {
        return Err(Failure::with_remedy(
            format!("this system has no apt-get to install {list}"),
            alternative,
        ));
    }
    host::require_root(&format!("installing {list}"))?;
    refresh()?;
    let unknown: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_known(package))
        .collect();
    if !unknown.is_empty() {
        return Err(Failure::with_remedy(
            format!("apt knows no package {}", unknown.join(", ")),
            alternative,
        ));
    }
    eprintln!("packages to install: {list}");
    step::run(
        "installing packages (apt-get install)",
        Command::new("sh")
            .args(["-c", GUARDED_APT, "apt-get"])
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Refreshes apt's lists, once a run.
pub(crate) fn refresh() -> Result<(), Failure> {
    if REFRESHED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    step::run(
        "refreshing the package lists (apt-get update)",
        apt().args(["-q", "update"]),
    )
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_known(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["--quiet=0", "policy", package])
        .output()
        .is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout);
            text.contains("Candidate:") && !text.contains("Candidate: (none)")
        })
}
