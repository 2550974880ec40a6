//! Locality failover, shown by `explain`: nearest first, the named region when
//! it fails, and back again.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::backend::{Backend, Speaks};
use lab::dns::NameServer;
use lab::process::wait_for;
use lab::{Lab, RESOLVER, Result, ensure};

/// A database in three regions, each of which fails over to a named one.
/// Times are shorter than an operator would write them.
const GLOBAL_DATABASE: &str = "apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata:
  name: global-database
  namespace: default
spec:
  hosts:
    - db.global-service.com
  location: MESH_EXTERNAL
  ports:
    - number: 5432
      name: postgres
      protocol: TCP
  resolution: STATIC
  endpoints:
    - address: 10.1.1.10
      locality: us-east-1/us-east-1a
      labels:
        region: us-east
    - address: 10.2.1.10
      locality: eu-west-1/eu-west-1a
      labels:
        region: eu-west
    - address: 10.3.1.10
      locality: ap-southeast-1/ap-southeast-1a
      labels:
        region: ap-southeast
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: global-database-routing
  namespace: default
spec:
  host: db.global-service.com
  trafficPolicy:
    connectionPool:
      tcp:
        maxConnections: 100
        connectTimeout: 10s
    outlierDetection:
      consecutive5xxErrors: 5
      interval: 500ms
      baseEjectionTime: 1s
    localityLbSetting:
      enabled: true
      failover:
        - from: us-east-1
          to: eu-west-1
        - from: eu-west-1
          to: us-east-1
        - from: ap-southeast-1
          to: us-east-1
";

/// Connects and prints the line that comes.
fn connect(lab: &Lab) -> Result<lab::process::Finished> {
    lab.python(
        r#"
import socket
with socket.create_connection(("db.global-service.com", 5432), 5) as s:
    print(s.makefile().readline().strip())
"#,
    )
    .output()
}

/// Connects until `server` answers.
fn until(lab: &Lab, server: &str) -> Result<()> {
    wait_for(server, Duration::from_secs(20), || {
        let finished = connect(lab)?;
        Ok((finished.stdout.trim() == server).then_some(()))
    })
}

fn explain(lab: &Lab) -> Result<String> {
    lab.egressctl(&["explain", "db.global-service.com:5432"])?
        .text()
}

#[test]
fn a_global_database_fails_over_and_returns() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let start =
        |name: &str, ip: &str| Backend::start(&lab, name, &format!("{ip}:5432"), Speaks::Name);
    let mut near = start("us-east", "10.1.1.10")?;
    let _next = start("eu-west", "10.2.1.10")?;
    let far = start("ap-southeast", "10.3.1.10")?;
    let agent = lab
        .agent()
        .policy("global-database", GLOBAL_DATABASE)?
        .setting("--locality", "us-east-1/us-east-1a")
        .start()?;
    for _ in 0..10 {
        ensure!(connect(&lab)?.text()?.trim() == "us-east");
    }
    let text = explain(&lab)?;
    ensure!(text.contains("us-east-1"), "{text}");
    near.kill();
    until(&lab, "eu-west")?;
    for _ in 0..5 {
        ensure!(connect(&lab)?.text()?.trim() == "eu-west");
    }
    let text = explain(&lab)?;
    let line = text.lines().find(|line| line.contains("10.1.1.10"));
    ensure!(line.is_some_and(|line| line.contains("ejected")), "{text}");
    let table = lab
        .egressctl(&["proxy-config", "endpoints", "db.global-service.com"])?
        .text()?;
    let line = table.lines().find(|line| line.contains("10.1.1.10"));
    let line = line.unwrap_or_default();
    for part in [
        "us-east-1/us-east-1a",
        "ejected",
        "connect",
        "consecutive-5xx until",
    ] {
        ensure!(line.contains(part), "no {part}: {table}");
    }
    near.revive(&lab)?;
    until(&lab, "us-east")?;
    for _ in 0..10 {
        ensure!(connect(&lab)?.text()?.trim() == "us-east");
    }
    ensure!(far.served() == 0, "the far region took part");
    agent.stop()
}

#[test]
fn localities_share_the_load_as_distribute_says() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let start =
        |name: &str, ip: &str| Backend::start(&lab, name, &format!("{ip}:5432"), Speaks::Name);
    let us = start("us-east", "10.1.1.10")?;
    let eu = start("eu-west", "10.2.1.10")?;
    let far = start("ap-southeast", "10.3.1.10")?;
    let (head, _) = GLOBAL_DATABASE
        .split_once("    outlierDetection")
        .unwrap_or_default();
    let document = format!(
        "{head}    loadBalancer:
      localityLbSetting:
        distribute:
          - from: us-east-1/*
            to:
              us-east-1/*: 80
              eu-west-1/*: 20
"
    );
    let agent = lab
        .agent()
        .policy("global-database", &document)?
        .setting("--locality", "us-east-1/us-east-1a")
        .start()?;
    lab.python(
        r#"
import socket
for _ in range(200):
    with socket.create_connection(("db.global-service.com", 5432), 5) as s:
        assert s.recv(1)
"#,
    )
    .text()?;
    let (us, eu) = (us.served(), eu.served());
    ensure!(us + eu == 200 && far.served() == 0, "{us} {eu}");
    ensure!((140..=180).contains(&us), "{us} {eu}");
    agent.stop()
}
