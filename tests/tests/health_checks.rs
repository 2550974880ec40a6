//! Active health checks (`egress-agent.dev/health-check`): endpoints go out and
//! come back with no traffic at all.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::backend::{Backend, Speaks};
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::process::wait_for;
use lab::scene::{HOST, REAL, TlsUpstream};
use lab::{Lab, RESOLVER, Result, ensure, policy};

fn checked(host: &str, check: &str, policy: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: checked
  namespace: default
  annotations:
    egress-agent.dev/health-check: {check} interval=200ms timeout=2s unhealthy=2 healthy=2
spec:
  host: {host}
  trafficPolicy:
{policy}
"
    )
}

const POOL: &str = "    loadBalancer:
      simple: ROUND_ROBIN";

/// Waits until `proxy-config endpoints` shows `address` with all of `parts`.
fn shows(lab: &Lab, host: &str, address: &str, parts: &[&str]) -> Result<()> {
    let mut seen = String::new();
    let waited = wait_for("a state", Duration::from_secs(20), || {
        seen = lab
            .egressctl(&["proxy-config", "endpoints", host])?
            .text()?;
        let mut lines = seen.lines().filter(|line| line.contains(address));
        let so = lines.any(|line| parts.iter().all(|part| line.contains(part)));
        Ok(so.then_some(()))
    });
    waited.map_err(|error| error.context(format!("{address} {parts:?}:\n{seen}")))
}

#[test]
fn a_tcp_check_takes_a_dead_server_out_before_a_client_meets_it() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let first = Backend::start(&lab, "first", "10.0.0.1:7000", Speaks::Name)?;
    let mut second = Backend::start(&lab, "second", "10.0.0.2:7000", Speaks::Name)?;
    let host = "checked.example.com";
    let document =
        policy::tcp_static(host, 7000, &["10.0.0.1", "10.0.0.2"]) + &checked(host, "tcp", POOL);
    let agent = lab.agent().policy("checked", &document)?.start()?;
    // The checks are connections that say nothing.
    wait_for("checks", Duration::from_secs(10), || {
        Ok((first.served() > 2 && second.served() > 2).then_some(()))
    })?;
    second.kill();
    shows(&lab, host, "10.0.0.2:7000", &["unhealthy", "connect"])?;
    let talk = r#"
import socket
for _ in range(20):
    with socket.create_connection(("checked.example.com", 7000), 5) as s:
        assert s.makefile().readline() == "first\n"
"#;
    lab.python(talk).text()?;
    second.revive(&lab)?;
    shows(&lab, host, "10.0.0.2:7000", &[" healthy"])?;
    let log = agent.log()?;
    ensure!(log.contains("endpoint fails its health check"), "{log}");
    ensure!(log.contains("endpoint passes its health check"), "{log}");
    let metrics = agent.metrics(&lab)?;
    ensure!(metrics.contains("egress_health_checks_total{"), "{metrics}");
    agent.stop()
}

#[test]
fn an_http_check_asks_the_path_that_the_policy_names() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let _first = Backend::start(&lab, "first", "10.0.0.1:80", Speaks::Http)?;
    let second = Backend::start(&lab, "second", "10.0.0.2:80", Speaks::Http)?;
    let host = "checked.example.com";
    let document = policy::tcp_static(host, 80, &["10.0.0.1", "10.0.0.2"])
        .replace("protocol: TCP", "protocol: HTTP")
        + &checked(host, "http path=/healthz expected=200-299", POOL);
    let agent = lab.agent().policy("checked", &document)?.start()?;
    shows(&lab, host, "10.0.0.2:80", &[" healthy"])?;
    second.answer(503);
    shows(&lab, host, "10.0.0.2:80", &["unhealthy", "status 503"])?;
    for _ in 0..6 {
        let body = lab
            .curl(&["--fail", "http://checked.example.com/"])
            .text()?;
        ensure!(body == "first", "{body}");
    }
    second.answer(200);
    shows(&lab, host, "10.0.0.2:80", &[" healthy"])?;
    agent.stop()
}

#[test]
fn a_tls_check_fails_where_a_connection_would() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let lab = &upstream.lab;
    let stranger = Authority::new(lab, "stranger")?;
    let entry = policy::tls_origination(HOST, upstream.ca.as_ref());
    let entry = entry.split("---\n").next().unwrap_or_default().to_owned();
    let document = |ca: &str| {
        let tls = format!("    tls:\n      mode: SIMPLE\n      caCertificates: {ca}");
        entry.clone() + &checked(HOST, "tls", &tls)
    };
    let agent = lab
        .agent()
        .policy("api", &document(&upstream.ca))?
        .start()?;
    let address = format!("{REAL}:443");
    shows(lab, HOST, &address, &[" healthy"])?;
    lab.curl(&["--fail", &format!("http://{HOST}/")]).text()?;
    let other = stranger.path().display().to_string();
    lab.write_policy("api", &document(&other))?;
    shows(lab, HOST, &address, &["unhealthy", "TLS handshake failed"])?;
    lab.write_policy("api", &document(&upstream.ca))?;
    shows(lab, HOST, &address, &[" healthy"])?;
    agent.stop()
}
