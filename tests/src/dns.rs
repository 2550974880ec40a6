//! A real name server in the world: dnsmasq, with the test's records and no
//! way to ask anybody else.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{DEADLINE, Process, wait_for};
use crate::{Context, Group, Lab, Result, bail, tcp};

/// Options for a dnsmasq that reads nothing of the host's and stays in the
/// foreground.
pub const DNSMASQ: [&str; 7] = [
    "--keep-in-foreground",
    "--conf-file=/dev/null",
    "--user=root",
    "--pid-file=",
    "--no-resolv",
    "--no-hosts",
    "--bind-interfaces",
];

/// A running name server on port 53 of one address; ended on drop.
///
/// It answers with the records given, and NXDOMAIN for every other name.
pub struct NameServer {
    process: Process,
    address: SocketAddr,
    hosts: PathBuf,
    log: PathBuf,
}

impl NameServer {
    /// Starts one. `records` holds lines like `/etc/hosts`: address, names.
    pub fn start(lab: &Lab, address: &str, records: &str) -> Result<Self> {
        Self::start_with(lab, address, records, &[])
    }

    /// Starts one with further options of dnsmasq.
    pub fn start_with(lab: &Lab, address: &str, records: &str, options: &[&str]) -> Result<Self> {
        let ip: IpAddr = address.parse().context("address of a name server")?;
        lab.world().add_address(ip)?;
        let directory = lab
            .directory()
            .join(format!("dns.{}", address.replace(':', "_")));
        fs::create_dir_all(&directory)?;
        let (hosts, log) = (directory.join("hosts"), directory.join("log"));
        fs::write(&hosts, records)?;
        fs::write(&log, "")?;
        let output = fs::File::create(directory.join("output"))?;
        let mut process = lab
            .spawn(Group::Servers, "dnsmasq")
            .args(DNSMASQ)
            .args(["--local-ttl=1", "--log-queries", "--local=/#/"])
            .arg(format!("--listen-address={address}"))
            .arg("--except-interface=eth0")
            .arg(format!("--addn-hosts={}", hosts.display()))
            .arg(format!("--log-facility={}", log.display()))
            .args(options)
            .stdout(output.try_clone()?)
            .stderr(output)
            .start()?;
        let address = SocketAddr::new(ip, 53);
        wait_for("dnsmasq to listen", DEADLINE, || {
            if !process.is_running() {
                bail!(
                    "dnsmasq ended: {}",
                    fs::read_to_string(directory.join("output"))?
                );
            }
            tcp::answers(lab, address)
        })?;
        Ok(Self {
            process,
            address,
            hosts,
            log,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives it other records.
    pub fn set(&self, records: &str) -> Result<()> {
        let before = self.reloads()?;
        fs::write(&self.hosts, records)?;
        self.process.signal(Signal::HUP)?;
        wait_for("dnsmasq to reload", DEADLINE, || {
            Ok((self.reloads()? > before).then_some(()))
        })
    }

    fn reloads(&self) -> Result<usize> {
        let marker = format!("read {}", self.hosts.display());
        let text = fs::read_to_string(&self.log)?;
        Ok(text.lines().filter(|line| line.contains(&marker)).count())
    }

    /// Names that it was asked for, with the type: `A example.com`.
    pub fn queries(&self) -> Result<Vec<String>> {
        // dnsmasq: query[A] example.com from 192.0.2.2
        let text = fs::read_to_string(&self.log)?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_once("query[")?.1.split_once(" from "))
            .map(|(query, _)| query.replace(']', ""))
            .collect())
    }

    /// Addresses that asked for a name.
    pub fn askers(&self, name: &str) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.log)?;
        let marker = format!("] {name} from ");
        Ok(text
            .lines()
            .filter_map(|line| line.split_once(&marker))
            .map(|(_, who)| who.trim().to_owned())
            .collect())
    }

    /// Makes it silent: it goes on existing, and answers nothing.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Lets it answer again.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Stops it and waits for its end.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(Duration::from_secs(5)).map(drop)
    }
}
