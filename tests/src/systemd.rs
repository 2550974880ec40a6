//! A systemd of the lab's own, as PID 1 of a PID namespace, with the agent's
//! unit as it is packaged and a drop-in for where things are here.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::process::{DEADLINE, Process, wait_for};
use crate::{Context, Lab, Result, agent, bail, cgroup, ensure};

/// The unit.
pub const UNIT: &str = "egress-agent.service";

const SYSTEMD: &str = "/lib/systemd/systemd";

/// What a system has that systemd starts on: one cgroup hierarchy, empty folders
/// for state, a bpf file system. `$1` is the folder of the units.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for folder in /run /var/lib /var/log; do mount -t tmpfs tmpfs "$folder"; done
export container=lab SYSTEMD_UNIT_PATH="$1"
exec /lib/systemd/systemd --system --unit=basic.target --log-target=null
"#;

/// Targets that every service depends on; systemd's own want more of a system.
const TARGETS: [&str; 4] = ["sysinit", "basic", "shutdown", "exit"];

/// A running systemd; all of it ends when it is dropped.
pub struct Systemd {
    /// The process that made the namespaces.
    _outer: Process,
    /// PID 1 of the namespace, as it is seen here.
    pid: u32,
    log: PathBuf,
    admin: PathBuf,
}

impl Systemd {
    /// Whether this host has the program.
    #[must_use]
    pub fn is_installed() -> bool {
        Path::new(SYSTEMD).exists()
    }

    /// Starts it, with the unit for an agent that has this lab's policy folder
    /// and clients, and these settings (`Environment=` lines).
    pub fn start(lab: &Lab, settings: &[(&str, &str)]) -> Result<Self> {
        let units = lab.directory().join("units");
        let dropins = units.join(format!("{UNIT}.d"));
        fs::create_dir_all(&dropins)?;
        fs::create_dir_all(lab.policy_directory())?;
        for target in TARGETS {
            let text = format!("[Unit]\nDescription={target}\nDefaultDependencies=no\n");
            fs::write(units.join(format!("{target}.target")), text)?;
        }
        let unit =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/systemd/egress-agent.service");
        let text = fs::read_to_string(&unit).with_context(|| unit.display().to_string())?;
        let program = agent::program("egress-agent")?;
        ensure!(text.contains("=/usr/bin/egress-agent"), "{text}");
        let text = text.replace("/usr/bin/egress-agent", &program.display().to_string());
        fs::write(units.join(UNIT), text)?;
        let log = lab.directory().join("unit.log");
        let admin = lab.directory().join("unit.sock");
        let clients = lab.client_cgroup();
        let clients = clients.strip_prefix(cgroup::root()?)?;
        let mut dropin = format!(
            "[Service]\n\
             # The lab is below /tmp, and its programs where they were built.\n\
             PrivateTmp=no\nProtectHome=no\nReadWritePaths={lab}\nConfigurationDirectory=\n\
             StandardOutput=append:{log}\nStandardError=append:{log}\n\
             Environment=EGRESS_POLICY={policy}\n\
             Environment=EGRESS_CGROUP=/sys/fs/cgroup/{clients}\n\
             Environment=EGRESS_ADMIN=unix:{admin}\n\
             Environment=EGRESS_DNS_UPSTREAM={resolver}:53\n",
            lab = lab.directory().display(),
            log = log.display(),
            policy = lab.policy_directory().display(),
            clients = clients.display(),
            admin = admin.display(),
            resolver = crate::RESOLVER,
        );
        for (name, value) in settings {
            dropin.push_str(&format!("Environment={name}={value}\n"));
        }
        fs::write(dropins.join("lab.conf"), dropin)?;
        let outer = lab
            .outsider("unshare")
            .args(["--mount", "--pid", "--ipc", "--uts", "--fork"])
            .args(["--kill-child", "--mount-proc", "sh", "-c", BOOT, "systemd"])
            .arg(&units)
            .stdout(fs::File::create(lab.directory().join("systemd.log"))?)
            .stderr(fs::File::create(lab.directory().join("systemd.err"))?)
            .start()?;
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let pid = wait_for("systemd", DEADLINE, || {
            let text = fs::read_to_string(&children)?;
            // What comes before it are the steps of its start.
            let is_systemd = |id: &&str| {
                fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name == "systemd\n")
            };
            let found = text.split_whitespace().find(is_systemd);
            Ok(found.and_then(|id| id.parse().ok()))
        })?;
        let systemd = Self {
            _outer: outer,
            pid,
            log,
            admin,
        };
        wait_for("systemd to answer", DEADLINE, || {
            let answer = systemd.run(["is-active", "basic.target"])?;
            Ok(answer.status.success().then_some(()))
        })
        .with_context(|| {
            fs::read_to_string(lab.directory().join("systemd.err")).unwrap_or_default()
        })?;
        Ok(systemd)
    }

    fn run(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
        Command::new("nsenter")
            .args(["--target", &self.pid.to_string()])
            // Its root, too: the lab may stand in a chroot.
            .args([
                "--mount",
                "--pid",
                "--net",
                "--root",
                "systemctl",
                "--no-pager",
            ])
            .args(arguments)
            .output()
            .context("cannot run nsenter")
    }

    /// `systemctl` with these words; it must succeed.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        if !output.status.success() {
            bail!(
                "systemctl {}: {}{}\n{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                self.log()?
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A property of the unit.
    pub fn property(&self, name: &str) -> Result<String> {
        let text = self.systemctl(&["show", "--value", "--property", name, UNIT])?;
        Ok(text.trim().to_owned())
    }

    /// Waits until a property of the unit is so.
    pub fn wait_for(&self, name: &str, value: &str) -> Result<()> {
        wait_for(&format!("{name}={value}"), Duration::from_secs(30), || {
            Ok((self.property(name)? == value).then_some(()))
        })
        .with_context(|| self.log().unwrap_or_default())
    }

    /// What the agent has logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Where the agent's admin API is.
    #[must_use]
    pub fn admin(&self) -> String {
        format!("unix:{}", self.admin.display())
    }
}
