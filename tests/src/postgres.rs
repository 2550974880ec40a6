//! PostgreSQL in the world, each with its own data.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::certificates::Certificate;
use crate::process::{DEADLINE, Process, wait_for};
use crate::{Context, Group, Lab, Result, bail, ensure};

/// Of the user `postgres` where a server asks for one.
pub const PASSWORD: &str = "correct horse";

/// A running server on port 5432 of one address; ended on drop.
pub struct Postgres {
    process: Process,
}

impl Postgres {
    /// Starts one that lets everybody in, and runs `sql` in it.
    pub fn start(lab: &Lab, address: &str, sql: &str) -> Result<Self> {
        Self::start_with(lab, address, sql, None)
    }

    /// Starts one that takes nothing but TLS and passwords by SCRAM: user
    /// `postgres`, password [`PASSWORD`].
    pub fn tls(lab: &Lab, address: &str, certificate: &Certificate, sql: &str) -> Result<Self> {
        let sql = format!("ALTER USER postgres PASSWORD '{PASSWORD}';\n{sql}");
        Self::start_with(lab, address, &sql, Some(certificate))
    }

    fn start_with(
        lab: &Lab,
        address: &str,
        sql: &str,
        certificate: Option<&Certificate>,
    ) -> Result<Self> {
        let ip: IpAddr = address.parse().context("address of PostgreSQL")?;
        lab.world().add_address(ip)?;
        let programs = programs()?;
        let directory = lab.directory().join(format!("postgres.{address}"));
        let (data, log) = (directory.join("data"), directory.join("log"));
        fs::create_dir_all(&directory)?;
        // PostgreSQL refuses to run as root.
        let owner = user("postgres")?;
        std::os::unix::fs::chown(&directory, Some(owner.0), Some(owner.1))?;
        as_postgres(lab, &programs.join("initdb"))
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--locale=C",
            ])
            .args(["--encoding=UTF8", "--pgdata"])
            .arg(&data)
            .text()?;
        let mut access = fs::read_to_string(data.join("pg_hba.conf"))?;
        let mut tls = Vec::new();
        match certificate {
            None => access.push_str("host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n"),
            Some(certificate) => {
                access
                    .push_str("hostssl all all all scram-sha-256\nhostnossl all all all reject\n");
                let (pem, key) = (directory.join("server.pem"), directory.join("server.key"));
                fs::copy(&certificate.certificate, &pem)?;
                fs::copy(&certificate.key, &key)?;
                // It refuses a key that others may read.
                fs::set_permissions(&key, PermissionsExt::from_mode(0o600))?;
                std::os::unix::fs::chown(&key, Some(owner.0), Some(owner.1))?;
                tls.extend([
                    "-c".to_owned(),
                    "ssl=on".to_owned(),
                    "-c".to_owned(),
                    format!("ssl_cert_file={}", pem.display()),
                    "-c".to_owned(),
                    format!("ssl_key_file={}", key.display()),
                ]);
            }
        }
        fs::write(data.join("pg_hba.conf"), access)?;
        let output = fs::File::create(&log)?;
        let mut process = as_postgres(lab, &programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-c", &format!("listen_addresses={address}")])
            .args([
                "-c",
                "port=5432",
                "-c",
                "fsync=off",
                "-c",
                "max_connections=250",
            ])
            .args(["-c", "shared_buffers=16MB", "-c", "log_connections=on"])
            .args(tls)
            .arg("-k")
            .arg(&directory)
            .stdout(output.try_clone()?)
            .stderr(output)
            .start()?;
        wait_for("PostgreSQL to be ready", DEADLINE, || {
            if !process.is_running() {
                bail!("PostgreSQL ended: {}", fs::read_to_string(&log)?);
            }
            Ok(fs::read_to_string(&log)?
                .contains("ready to accept connections")
                .then_some(()))
        })?;
        let finished = as_postgres(lab, Path::new("psql"))
            .args([
                "--no-psqlrc",
                "--quiet",
                "--set=ON_ERROR_STOP=1",
                "--username=postgres",
            ])
            .arg("--host")
            .arg(&directory)
            .input(sql)
            .output()?;
        ensure!(finished.code() == 0, "psql: {}", finished.stderr);
        Ok(Self { process })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown: takes its children with it.
        if self.process.signal(Signal::QUIT).is_ok() {
            let _ = self.process.wait(std::time::Duration::from_secs(5));
        }
    }
}

fn as_postgres(lab: &Lab, program: &Path) -> crate::process::Spawn {
    lab.spawn(Group::Servers, "setpriv")
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
}

/// Folder of the newest server's programs; Debian keeps them off PATH.
fn programs() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .context("no PostgreSQL server is installed")?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().context("no PostgreSQL server is installed")
}

/// User and group id of a user in `/etc/passwd`.
fn user(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let fields: Vec<&str> = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name) && fields.len() > 3)
        .with_context(|| format!("there is no user {name}"))?;
    Ok((fields[2].parse()?, fields[3].parse()?))
}
