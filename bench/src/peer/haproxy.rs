//! HAProxy in front of the services, dialled by the clients themselves.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use lab::Group;
use lab::process::Process;

use super::{Counters, Name, Peer, redirect};
use crate::arena::Arena;
use crate::logs::LogPipe;
use crate::serve::{Speaks, Tls};
use crate::services::Service;

/// Its port for a service is this and the service's.
const OFFSET: u16 = 10_000;
const STATISTICS: u16 = 19_999;

pub(super) struct Haproxy {
    process: Process,
    _log: LogPipe,
}

impl Haproxy {
    pub(super) fn start(arena: &Arena, services: &[Service]) -> Result<Self> {
        let file = arena
            .lab
            .write("haproxy.cfg", &configuration(arena, services))?;
        let log = LogPipe::new(arena, "haproxy", None)?;
        let mut process = arena
            .proxy("haproxy", "haproxy".as_ref())?
            .args(["-db", "-f"])
            .arg(file)
            .stdout(log.writer()?)
            .start()?;
        arena.wait_listening(&mut process, "haproxy", STATISTICS)?;
        Ok(Self { process, _log: log })
    }
}

fn configuration(arena: &Arena, services: &[Service]) -> String {
    let threads = arena.cpus.threads();
    let mut text = format!(
        "global
    maxconn 9000
    nbthread {threads}
    log stdout format raw local0
    tune.ssl.default-dh-param 2048
defaults
    log global
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    maxconn 9000
    http-reuse safe
frontend statistics
    mode http
    bind 127.0.0.1:{STATISTICS}
    stats enable
    stats uri /
"
    );
    for service in services {
        let (mode, log) = match service.speaks {
            Speaks::Http1 | Speaks::Http2 => ("http", arena.records.haproxy()),
            Speaks::Echo | Speaks::Bulk => ("tcp", "option tcplog".to_owned()),
        };
        let http2 = if service.speaks == Speaks::Http2 {
            " proto h2"
        } else {
            ""
        };
        let tls = if service.tls == Tls::Off {
            String::new()
        } else {
            format!(
                " ssl verify required ca-file {} sni str({host}) verifyhost {host}",
                arena.authority.display(),
                host = service.host()
            )
        };
        let _ = write!(
            text,
            "listen {}
    mode {mode}
    {log}
    bind 127.0.0.1:{}{http2}
    server one {}:{}{http2}{tls}
",
            service.name,
            service.port + OFFSET,
            service.address(),
            service.upstream_port
        );
    }
    text
}

impl Peer for Haproxy {
    fn name(&self) -> Name {
        Name::Haproxy
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.id())
    }

    fn group(&self) -> Group {
        Group::Outside
    }

    fn target(&self, service: &Service) -> String {
        format!("127.0.0.1:{}", service.port + OFFSET)
    }

    fn counters(&self, arena: &Arena, _service: &Service) -> Result<Option<Counters>> {
        let table = arena.get(&format!("http://127.0.0.1:{STATISTICS}/;csv"))?;
        let mut lines = table.lines();
        let head: Vec<&str> = lines.next().context("no statistics")?.split(',').collect();
        let column = |name: &str| {
            head.iter()
                .position(|field| *field == name)
                .with_context(|| format!("HAProxy's statistics have no {name}"))
        };
        let (sessions, requests) = (column("stot")?, column("req_tot")?);
        let mut counters = Counters::default();
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            if fields.get(1) != Some(&"FRONTEND") || fields.first() == Some(&"statistics") {
                continue;
            }
            let number = |index: usize| -> u64 {
                fields
                    .get(index)
                    .and_then(|field| field.parse().ok())
                    .unwrap_or(0)
            };
            counters.connections += number(sessions);
            counters.requests += number(requests);
        }
        Ok(Some(counters))
    }

    fn carries(&self, _service: &Service) -> bool {
        true
    }

    fn engage<'a>(&'a self, _arena: &'a Arena) -> Result<Option<redirect::Redirect<'a>>> {
        Ok(None)
    }
}
