//! The servers that egress is measured beside, on ports of their own in the
//! clients' namespace. Each answers the services' names itself, and forwards
//! the rest without keeping an answer.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Result, bail};
use lab::RESOLVER;
use lab::process::{DEADLINE, Process, wait_for};

use super::latency::ask;
use crate::arena::Arena;
use crate::services::{self, Service};

pub(super) struct Server {
    pub(super) title: &'static str,
    pub(super) port: u16,
    pub(super) process: Process,
}

/// dnsmasq, and unbound where it is installed.
pub(super) fn start_all(arena: &Arena) -> Result<Vec<Server>> {
    let mut servers = vec![dnsmasq(arena)?];
    let installed = ["/usr/sbin/unbound", "/usr/bin/unbound"];
    if installed
        .iter()
        .any(|path| std::path::Path::new(path).exists())
    {
        servers.push(unbound(arena)?);
    }
    for server in &mut servers {
        let address = SocketAddr::from(([127, 0, 0, 1], server.port));
        let (title, process) = (server.title, &mut server.process);
        wait_for(&format!("{title} to answer"), DEADLINE, || {
            if !process.is_running() {
                bail!("{title} ended: {}", arena.printed(title));
            }
            let name = services::HTTP1.host();
            let asked = arena.lab.app().run(|| ask(address, &name, 1))?;
            Ok(asked.ok())
        })?;
    }
    Ok(servers)
}

/// An address that stands for a service in both families, as egress has one.
fn addresses(service: &Service) -> [String; 2] {
    let number = service.number;
    [format!("240.240.0.{number}"), format!("2001:2::{number}")]
}

fn dnsmasq(arena: &Arena) -> Result<Server> {
    let mut records = String::new();
    for service in &services::ALL {
        for address in addresses(service) {
            let _ = writeln!(records, "{address} {}", service.host());
        }
    }
    let hosts = arena.lab.write("dnsmasq.hosts", &records)?;
    let port = 5353;
    let process = arena
        .proxy("dnsmasq", "dnsmasq".as_ref())?
        .args(lab::dns::DNSMASQ)
        .args([
            "--local-ttl=30",
            "--cache-size=0",
            "--dns-forward-max=10000",
        ])
        .args(["--listen-address=127.0.0.1", "--except-interface=eth0"])
        .arg(format!("--port={port}"))
        .arg(format!("--server={RESOLVER}"))
        .arg(format!("--addn-hosts={}", hosts.display()))
        .start()?;
    Ok(Server {
        title: "dnsmasq",
        port,
        process,
    })
}

fn unbound(arena: &Arena) -> Result<Server> {
    let port = 5354;
    let mut text = format!(
        "server:
    interface: 127.0.0.1@{port}
    do-daemonize: no
    chroot: \"\"
    username: \"\"
    pidfile: \"\"
    use-syslog: no
    num-threads: 1
    module-config: \"iterator\"
    do-not-query-localhost: no
    local-zone: \"bench.example.\" static
"
    );
    for service in &services::ALL {
        for (kind, address) in ["A", "AAAA"].into_iter().zip(addresses(service)) {
            let host = service.host();
            let _ = writeln!(text, "    local-data: \"{host}. 30 IN {kind} {address}\"");
        }
    }
    let _ = write!(
        text,
        "forward-zone:\n    name: \".\"\n    forward-addr: {RESOLVER}\n"
    );
    let file = arena.lab.write("unbound.conf", &text)?;
    let process = arena
        .proxy("unbound", "unbound".as_ref())?
        .args(["-d", "-c"])
        .arg(file)
        .start()?;
    Ok(Server {
        title: "unbound",
        port,
        process,
    })
}
