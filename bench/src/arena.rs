//! The place of the measurements: a lab with the services in its world, and
//! the generator started in it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::process::{DEADLINE, Process};
use lab::{Group, Lab, RESOLVER};

use crate::cpus::{Cpus, pinned};
use crate::load::{Load, Outcome};
use crate::peer::Records;
use crate::serve::Serve;
use crate::services;

pub(crate) struct Arena {
    // Guards are dropped in this order, the lab last.
    _server: Process,
    _dns: NameServer,
    pub(crate) authority: PathBuf,
    pub(crate) own: PathBuf,
    pub(crate) cpus: Cpus,
    pub(crate) records: Records,
    pub(crate) lab: Lab,
}

/// A lab whose connections are controlled by `reno`, which any namespace may
/// have. The machine's default may pace what is sent (BBR), and the figures of
/// one stream then differ from round to round; Debian's (`cubic`) does the same
/// as `reno` where nothing is lost.
pub(crate) fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    for namespace in [lab.app(), lab.world()] {
        namespace
            .run(|| std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno"))?
            .context("cannot set the congestion control of a namespace")?;
    }
    Ok(lab)
}

impl Arena {
    pub(crate) fn new(cpus: Cpus) -> Result<Self> {
        let lab = lab()?;
        let own = std::env::current_exe()?;
        // Connections by the thousand leave as many ports in TIME_WAIT.
        lab.app()
            .run(|| std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1"))??;
        let hosts: Vec<String> = services::ALL.iter().map(services::Service::host).collect();
        let authority = Authority::new(&lab, "bench")?;
        let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let certificate = authority.issue(&names)?;
        let records: String = services::ALL
            .iter()
            .map(|service| format!("{} {}\n", service.address(), service.host()))
            .collect();
        let dns = NameServer::start_with(&lab, RESOLVER, &records, &[crate::dns::ZONE_RECORDS])?;
        let serve = Serve {
            listeners: services::ALL
                .iter()
                .map(services::Service::listener)
                .collect(),
            certificate: certificate.certificate.display().to_string(),
            key: certificate.key.display().to_string(),
        };
        let mut server = pinned(&lab, Group::Servers, &cpus.others(), &own)
            .arg("serve")
            .arg(serde_json::to_string(&serve)?)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(lab.directory().join("server.err"))?)
            .start()?;
        server.expect_line("ready").with_context(|| {
            std::fs::read_to_string(lab.directory().join("server.err")).unwrap_or_default()
        })?;
        Ok(Self {
            _server: server,
            _dns: dns,
            authority: authority.path(),
            own,
            cpus,
            records: Records::default(),
            lab,
        })
    }

    /// Runs the generator to its end, where `group` is; `begin` is called when
    /// its connections are open and warm, right before the work.
    pub(crate) fn load(
        &self,
        group: Group,
        load: &Load,
        begin: impl FnOnce() -> Result<()>,
    ) -> Result<Outcome> {
        let errors = self.lab.directory().join("load.err");
        let mut process = pinned(&self.lab, group, &self.cpus.others(), &self.own)
            .arg("load")
            .arg(serde_json::to_string(load)?)
            .stderr(std::fs::File::create(&errors)?)
            .interactive()
            .start()?;
        let why = || std::fs::read_to_string(&errors).unwrap_or_default();
        process.expect_line("warm").with_context(why)?;
        begin()?;
        process.send_line("go")?;
        let mut text = String::new();
        if let Some(mut stdout) = process.take_stdout() {
            // Ends by the generator's own deadline.
            stdout.read_to_string(&mut text)?;
        }
        process.wait(DEADLINE)?;
        serde_json::from_str(&text)
            .with_context(|| format!("the generator printed {text:?} and {:?}", why()))
    }

    /// CPU seconds of everything in the lab so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let clients = self.lab.client_cgroup();
        let whole = clients.parent().context("a cgroup has a parent")?;
        crate::account::cgroup_seconds(whole)
    }

    /// A program started beside the clients, in a folder of its own.
    pub(crate) fn proxy(&self, name: &str, program: &Path) -> Result<lab::process::Spawn> {
        let output = std::fs::File::create(self.lab.directory().join(format!("{name}.out")))?;
        Ok(
            pinned(&self.lab, Group::Outside, &self.cpus.proxies(), program)
                .stdout(output.try_clone()?)
                .stderr(output),
        )
    }

    /// What such a program has printed.
    pub(crate) fn printed(&self, name: &str) -> String {
        let file = self.lab.directory().join(format!("{name}.out"));
        std::fs::read_to_string(file).unwrap_or_default()
    }

    /// Waits until something listens on a port of the clients' namespace.
    pub(crate) fn wait_listening(
        &self,
        process: &mut Process,
        name: &str,
        port: u16,
    ) -> Result<()> {
        lab::process::wait_for(&format!("{name} to listen"), DEADLINE, || {
            if !process.is_running() {
                bail!("{name} ended: {}", self.printed(name));
            }
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            let connected = self
                .lab
                .app()
                .run(|| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)))?;
            Ok(connected.ok().map(drop))
        })
    }

    /// `GET` of a page from the clients' namespace.
    pub(crate) fn get(&self, url: &str) -> Result<String> {
        self.lab
            .outsider("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "20",
                url,
            ])
            .output()?
            .text()
    }
}
