//! Limits of `connectionPool`, exact with 64 clients at once, over all
//! workers, and what happens beyond them.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::agent::Agent;
use lab::backend::{Backend, Speaks};
use lab::dns::NameServer;
use lab::load::{self, Mode};
use lab::process::wait_for;
use lab::{Lab, RESOLVER, Result, ensure};

const LOAD: &str = env!("CARGO_BIN_EXE_load");
const CLIENTS: u32 = 64;
const DEADLINE: Duration = Duration::from_secs(40);

/// A service on one fixed endpoint, with `pool` under `connectionPool`.
fn service(protocol: &str, port: u16, pool: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: limited
spec:
  hosts: [limited.example.com]
  resolution: STATIC
  ports:
    - number: {port}
      name: port
      protocol: {protocol}
  endpoints:
    - address: 10.0.0.1
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: limited
spec:
  host: limited.example.com
  trafficPolicy:
    connectionPool:
{pool}"
    )
}

struct Scene {
    agent: Agent,
    backend: Backend,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new(speaks: Speaks, port: u16, document: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let dns = NameServer::start(&lab, RESOLVER, "")?;
        let backend = Backend::start(&lab, "only", &format!("10.0.0.1:{port}"), speaks)?;
        let agent = lab
            .agent()
            .policy("limited", document)?
            .setting("--workers", "2")
            .start()?;
        Ok(Self {
            agent,
            backend,
            _dns: dns,
            lab,
        })
    }

    fn burst(&self, mode: Mode, port: u16) -> Result<load::Load> {
        load::burst(
            &self.lab,
            LOAD,
            (mode, "limited.example.com", port),
            CLIENTS,
        )
    }

    /// Every place comes back, whatever path the connections took.
    fn all_is_given_back(&self, limit: &str) -> Result<()> {
        let line = format!("limit=\"{limit}\"}} 0");
        wait_for(
            "all places to be given back",
            Duration::from_secs(10),
            || {
                let metrics = self.agent.metrics(&self.lab)?;
                let taken = metrics
                    .lines()
                    .find(|text| text.starts_with("egress_limit_taken") && text.ends_with(&line));
                Ok(taken.map(drop))
            },
        )
    }
}

/// 10 of 64 connections are served; the others fail while those are open.
fn connections(document: &str) -> Result<()> {
    let scene = Scene::new(Speaks::Name, 7000, document)?;
    for _ in 0..2 {
        let load = scene.burst(Mode::Tcp, 7000)?;
        let tries = load.finish(DEADLINE)?;
        let served = tries.iter().filter(|one| one.server().is_some()).count();
        ensure!(served == 10, "{served} were served: {tries:?}");
        // Refused by connect, or reset at once: never an end of stream that
        // looks like an answer.
        for one in &tries {
            let Err(error) = &one.outcome else { continue };
            let refused = error.contains("refused") || error.contains("reset");
            ensure!(refused, "{one:?}");
        }
        ensure!(scene.backend.most() == 10, "{}", scene.backend.most());
        wait_for("the connections to end", Duration::from_secs(10), || {
            Ok((scene.backend.now() == 0).then_some(()))
        })?;
        // The kernel tells the agent a moment later.
        scene.all_is_given_back("maxConnections")?;
    }
    scene.agent.record("the overflow", |r| r.has_flag("UO"))?;
    scene.agent.stop()
}

#[test]
fn max_connections_of_proxied_tcp_are_exact() -> Result<()> {
    connections(&service(
        "TCP",
        7000,
        "      tcp:\n        maxConnections: 10\n        idleTimeout: 60s\n",
    ))
}

#[test]
fn max_connections_of_the_direct_path_are_exact() -> Result<()> {
    connections(&service(
        "TCP",
        7000,
        "      tcp:\n        maxConnections: 10\n",
    ))
}

#[test]
fn requests_beyond_http2_max_requests_are_answered_at_once() -> Result<()> {
    let pool = "      http:\n        http2MaxRequests: 10\n";
    let scene = Scene::new(Speaks::Http, 80, &service("HTTP", 80, pool))?;
    for round in 1..=2 {
        scene.backend.hold();
        let load = scene.burst(Mode::Http, 80)?;
        // While the ten are held up: the rest is not kept waiting.
        load.wait_for("54 answers", 54, |one| matches!(one.outcome, Ok((503, _))))?;
        wait_for("ten requests", Duration::from_secs(10), || {
            Ok((scene.backend.now() == 10).then_some(()))
        })?;
        scene.backend.release();
        let tries = load.finish(DEADLINE)?;
        let served = tries.iter().filter(|one| one.server().is_some()).count();
        ensure!(served == 10, "{served} were served: {tries:?}");
        ensure!(scene.backend.served() == 10 * round);
        scene.all_is_given_back("http2MaxRequests")?;
    }
    ensure!(scene.backend.most() == 10);
    scene.agent.record("the overflow", |r| r.has_flag("UO"))?;
    scene.backend.hold();
    let load = scene.burst(Mode::Http, 80)?;
    load.wait_for("54 answers", 54, |one| matches!(one.outcome, Ok((503, _))))?;
    // As Istio's clients know it.
    let head = scene
        .lab
        .curl(&["--include", "http://limited.example.com/"])
        .text()?;
    ensure!(head.contains("x-envoy-overloaded: true"), "{head}");
    scene.backend.release();
    load.finish(DEADLINE)?;
    scene.agent.stop()
}

#[test]
fn requests_that_wait_for_a_connection_are_bounded() -> Result<()> {
    let pool =
        "      tcp:\n        maxConnections: 1\n      http:\n        http1MaxPendingRequests: 5\n";
    let scene = Scene::new(Speaks::Http, 80, &service("HTTP", 80, pool))?;
    for round in 1..=2 {
        scene.backend.hold();
        let target = (Mode::Http, "limited.example.com", 80);
        let first = load::burst(&scene.lab, LOAD, target, 1)?;
        wait_for("the first request", Duration::from_secs(10), || {
            Ok((scene.backend.now() == 1).then_some(()))
        })?;
        // Five wait for the only connection, whatever worker they came to.
        let load = scene.burst(Mode::Http, 80)?;
        load.wait_for("59 answers", 59, |one| matches!(one.outcome, Ok((503, _))))?;
        scene.backend.release();
        let tries = load.finish(DEADLINE)?;
        let served = tries.iter().filter(|one| one.server().is_some()).count();
        ensure!(served == 5, "{served} were served: {tries:?}");
        ensure!(first.finish(DEADLINE)?[0].server().is_some());
        ensure!(scene.backend.served() == 6 * round);
        scene.all_is_given_back("http1MaxPendingRequests")?;
    }
    ensure!(scene.backend.most() == 1, "{}", scene.backend.most());
    scene.agent.stop()
}
