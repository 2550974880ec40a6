//! MariaDB in the world, each with its own data.

use std::fs;
use std::net::IpAddr;

use rustix::process::Signal;

use crate::certificates::Certificate;
use crate::process::{DEADLINE, Process, wait_for};
use crate::{Context, ensure};
use crate::{Group, Lab, Result, bail};

/// Of the user `app`.
pub const PASSWORD: &str = "correct horse";

/// A running server on port 3306 of one address; ended on drop.
pub struct MariaDb {
    process: Process,
}

impl MariaDb {
    /// Starts one that takes nothing but TLS: user `app`, database `shop`.
    pub fn tls(lab: &Lab, address: &str, certificate: &Certificate) -> Result<Self> {
        let ip: IpAddr = address.parse().context("address of MariaDB")?;
        lab.world().add_address(ip)?;
        let directory = lab.directory().join(format!("mariadb.{address}"));
        let (data, log) = (directory.join("data"), directory.join("log"));
        fs::create_dir_all(&directory)?;
        let made = lab
            .spawn(Group::Servers, "mariadb-install-db")
            .args(["--no-defaults", "--user=root", "--skip-test-db"])
            .arg("--auth-root-authentication-method=normal")
            .arg(format!("--datadir={}", data.display()))
            .output()?;
        ensure!(made.code() == 0, "mariadb-install-db: {}", made.stderr);
        let start = directory.join("start.sql");
        fs::write(
            &start,
            format!(
                "CREATE DATABASE shop;\nCREATE USER app@'%' IDENTIFIED BY '{PASSWORD}';\n\
                 GRANT ALL ON *.* TO app@'%';\n"
            ),
        )?;
        let output = fs::File::create(&log)?;
        let mut process = lab
            .spawn(Group::Servers, "mariadbd")
            .args(["--no-defaults", "--user=root", "--skip-name-resolve"])
            .args(["--require-secure-transport=ON", "--max-connections=250"])
            .args(["--max-allowed-packet=64M", "--innodb-buffer-pool-size=16M"])
            .arg(format!("--bind-address={address}"))
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", directory.join("socket").display()))
            .arg(format!("--pid-file={}", directory.join("pid").display()))
            .arg(format!("--init-file={}", start.display()))
            .arg(format!("--ssl-cert={}", certificate.certificate.display()))
            .arg(format!("--ssl-key={}", certificate.key.display()))
            .stdout(output.try_clone()?)
            .stderr(output)
            .start()?;
        wait_for("MariaDB to be ready", DEADLINE, || {
            let text = fs::read_to_string(&log)?;
            if !process.is_running() {
                bail!("MariaDB ended: {text}");
            }
            Ok(text.contains("ready for connections").then_some(()))
        })?;
        Ok(Self { process })
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        if self.process.signal(Signal::TERM).is_ok() {
            let _ = self.process.wait(std::time::Duration::from_secs(5));
        }
    }
}
