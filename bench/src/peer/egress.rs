//! The agent, with the services as an operator would register them.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use lab::Group;
use lab::agent::Agent;

use super::{Counters, Name, Peer, redirect};
use crate::arena::Arena;
use crate::logs::LogPipe;
use crate::serve::{Speaks, Tls};
use crate::services::Service;

pub(super) struct Egress {
    /// Until it is stopped.
    agent: Option<Agent>,
    _log: LogPipe,
}

impl Egress {
    pub(super) fn start(arena: &Arena, services: &[Service]) -> Result<Self> {
        let log = LogPipe::new(arena, "egress", None)?;
        let agent = arena
            .lab
            .agent()
            .policy("services", &policies(arena, services))?
            .setting("--workers", arena.cpus.threads().to_string())
            .under(&["taskset", "-c", &arena.cpus.proxies()])
            // The default, which the lab's other agents do not have.
            .setting("--access-log-linger", "100ms")
            .setting("--access-log", log.path().display().to_string())
            .log_filter("warn")
            .start()?;
        Ok(Self {
            agent: Some(agent),
            _log: log,
        })
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent is stopped")
    }
}

impl Drop for Egress {
    /// As an operator stops it: what it writes at its end is written (a build
    /// that counts its branches writes the counts).
    fn drop(&mut self) {
        if let Some(Err(error)) = self.agent.take().map(Agent::stop) {
            eprintln!("bench: egress did not end in order: {error:#}");
        }
    }
}

impl Peer for Egress {
    fn name(&self) -> Name {
        Name::Egress
    }

    fn pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Agent::id)
    }

    fn group(&self) -> Group {
        Group::Clients
    }

    fn target(&self, service: &Service) -> String {
        format!("{}:{}", service.host(), service.port)
    }

    fn counters(&self, arena: &Arena, service: &Service) -> Result<Option<Counters>> {
        let metrics = self.agent()?.metrics(&arena.lab)?;
        let sum = |name: &str| -> Result<u64> {
            let mut total = 0.0;
            for line in metrics.lines().filter(|line| line.starts_with(name)) {
                let value = line.rsplit(' ').next().context("an empty metric")?;
                total += value.parse::<f64>().with_context(|| line.to_owned())?;
            }
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a counter"
            )]
            let whole = total as u64;
            Ok(whole)
        };
        Ok(Some(Counters {
            // What the kernel carries never comes to the agent's listeners.
            connections: if service.direct {
                sum("istio_tcp_connections_opened_total")?
            } else {
                sum("egress_connections_accepted_total")?
            },
            requests: sum("istio_requests_total")?,
            dns: sum("egress_dns_queries_total{result=\"answered\"}")?,
        }))
    }

    fn carries(&self, _service: &Service) -> bool {
        true
    }

    fn engage<'a>(&'a self, _arena: &'a Arena) -> Result<Option<redirect::Redirect<'a>>> {
        Ok(None)
    }
}

/// One ServiceEntry and, where needed, one DestinationRule for each service.
pub(crate) fn policies(arena: &Arena, services: &[Service]) -> String {
    services
        .iter()
        .map(|service| document(arena, service))
        .collect::<Vec<_>>()
        .join("---\n")
}

fn document(arena: &Arena, service: &Service) -> String {
    let Service {
        name,
        port,
        upstream_port,
        ..
    } = service;
    let host = service.host();
    let protocol = match service.speaks {
        Speaks::Http1 => "HTTP",
        Speaks::Http2 => "HTTP2",
        Speaks::Echo | Speaks::Bulk => "TCP",
    };
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: {name}
spec:
  hosts: [{host}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
    - number: {port}
      name: {}
      protocol: {protocol}
      targetPort: {upstream_port}
",
        protocol.to_lowercase()
    );
    let mut rule = String::new();
    if service.tls != Tls::Off {
        let _ = write!(
            rule,
            "    tls:
      mode: SIMPLE
      sni: {host}
      caCertificates: {}
",
            arena.authority.display()
        );
    } else if !service.direct && protocol == "TCP" {
        // A limit that the kernel cannot enforce: the agent carries it.
        rule.push_str("    connectionPool:\n      tcp:\n        idleTimeout: 3600s\n");
    }
    if !rule.is_empty() {
        let _ = write!(
            text,
            "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: {name}
spec:
  host: {host}
  trafficPolicy:
{rule}"
        );
    }
    text
}
