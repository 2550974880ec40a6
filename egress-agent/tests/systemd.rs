//! The systemd unit: systemd understands all of it, it is hardened, and it
//! agrees with the settings of the agent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::process::Command;

use egress_agent::settings::Settings;
use egress_agent::settings::command::command;
use egress_agent::settings::{DEFAULT_FILE, Sources};

const UNIT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../config/systemd/egress-agent.service"
);

/// Highest exposure, in tenths, that `systemd-analyze security` may give: what
/// remains is what the agent is for (networks, BPF, namespaces, root).
const EXPOSURE: u32 = 35;

/// The unit with the program that was just built, in a directory of its own.
fn unit() -> (tempfile::TempDir, String) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("egress-agent.service");
    let program = env!("CARGO_BIN_EXE_egress-agent");
    let text = fs::read_to_string(UNIT).unwrap();
    fs::write(&path, text.replace("/usr/bin/egress-agent", program)).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (home, path)
}

fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let Ok(output) = Command::new("systemd-analyze").args(arguments).output() else {
        eprintln!("SKIPPED: systemd-analyze is not installed");
        return None;
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Some((output.status.success(), text))
}

#[test]
fn systemd_understands_the_unit() {
    let (_home, path) = unit();
    if let Some((good, text)) = analyze(&["verify", "--man=no", &path]) {
        assert!(good && text.trim().is_empty(), "{text}");
    }
}

#[test]
fn the_unit_is_hardened() {
    let (_home, path) = unit();
    let threshold = format!("--threshold={EXPOSURE}");
    if let Some((good, text)) = analyze(&["security", "--offline=yes", &threshold, &path]) {
        assert!(good, "{text}");
    }
}

fn value<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    unit.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

/// With `ProtectSystem=strict` the agent can write only where the unit says.
#[test]
fn the_default_directories_are_those_of_the_unit() {
    let unit = fs::read_to_string(UNIT).unwrap();
    let matches = command()
        .try_get_matches_from(["egress-agent", "--settings", "/dev/null"])
        .unwrap();
    let settings: Settings = Sources::new(&matches, []).load().unwrap().settings;
    let under = |base: &str, key: &str| format!("{base}/{}", value(&unit, key).unwrap());
    let starts = |path: &std::path::Path, base: String| {
        assert!(path.starts_with(&base), "{} {base}", path.display());
    };
    starts(&settings.state_dir, under("/var/lib", "StateDirectory"));
    starts(&settings.admin.0, under("/run", "RuntimeDirectory"));
    let configuration = under("/etc", "ConfigurationDirectory");
    starts(&settings.secrets_dir, configuration.clone());
    starts(&settings.policy[0], configuration.clone());
    starts(DEFAULT_FILE.as_ref(), configuration);
    assert_eq!(
        value(&unit, "ReadWritePaths").and_then(|path| path.strip_prefix('-')),
        settings.bpffs.to_str(),
        "pins cannot be written, or must be there before ExecStartPre makes the directory"
    );
}
