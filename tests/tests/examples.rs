//! Every example document does what it says.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::Nginx;
use lab::tcp::{Behaviour, Server};
use lab::{Context as _, Lab, RESOLVER, Result};

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples"))
}

fn example(name: &str) -> Result<String> {
    fs::read_to_string(folder().join(name)).with_context(|| format!("cannot read {name}"))
}

#[test]
fn every_example_loads() -> Result<()> {
    let lab = Lab::new()?;
    let mut seen = 0;
    for entry in fs::read_dir(folder())? {
        // Each for itself: two may show the same host.
        let file = entry?.path();
        let finished = lab.egressctl(&["validate"])?.arg(&file).output()?;
        assert_eq!(finished.code(), 0, "{}: {finished:?}", file.display());
        seen += 1;
    }
    assert!(seen >= 3, "{seen} examples");
    Ok(())
}

#[test]
fn databases_are_told_apart_by_name_and_fail_over_between_regions() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "10.0.0.12 users.db.example\n")?;
    let near = Server::start(&lab, "10.0.0.11:5432", Behaviour::Echo)?;
    let far = Server::start(&lab, "10.0.1.11:5432", Behaviour::Echo)?;
    let users = Server::start(&lab, "10.0.0.12:5432", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy("databases", &example("databases.yaml")?)?
        .setting("--locality", "eu-west-1/a")
        .start()?;
    let path = |host: &str| lab.egressctl(&["explain", host])?.text();
    assert!(path("orders.db.example:5432")?.contains("direct"));
    let ask = |host: &str, word: &str| {
        let script = format!(
            "import socket\nwith socket.create_connection(('{host}', 5432), 5) as s:\n    s.sendall(b'{word}')\n    assert s.recv(100) == b'{word}'\n"
        );
        lab.python(&script).text()
    };
    ask("orders.db.example", "orders")?;
    ask("users.db.example", "users")?;
    assert_eq!(near.received(), [b"orders".to_vec()]);
    assert_eq!(users.received(), [b"users".to_vec()]);
    assert!(far.received().is_empty());
    // The nearer one is gone: three refused connections eject it.
    drop(near);
    for _ in 0..3 {
        let _refused = ask("orders.db.example", "lost");
    }
    ask("orders.db.example", "moved")?;
    assert_eq!(
        far.received().last().map(Vec::as_slice),
        Some(&b"moved"[..])
    );
    agent.stop()
}

#[test]
fn an_unreliable_api_is_tried_again_on_another_address() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(
        &lab,
        RESOLVER,
        "203.0.113.31 api.weather.example\n203.0.113.32 api.weather.example\n",
    )?;
    let _bad = Nginx::new(&lab, "bad")
        .http("203.0.113.31:80")?
        .with("location = /weather { return 503; }")
        .start()?;
    let good = Nginx::new(&lab, "good").http("203.0.113.32:80")?.start()?;
    let agent = lab
        .agent()
        .policy("retries", &example("retries.yaml")?)?
        .start()?;
    let routes = lab.egressctl(&["proxy-config", "routes", "api.weather.example"])?;
    let routes = routes.text()?;
    assert!(
        routes.contains("to api.weather.example:80; timeout: 10s"),
        "{routes}"
    );
    assert!(
        routes.contains("retries: 3 on 5xx, reset, connect-failure"),
        "{routes}"
    );
    for _ in 0..4 {
        lab.curl(&["--fail", "http://api.weather.example/weather"])
            .text()?;
    }
    assert!(good.requests()?.len() >= 4);
    agent.stop()
}

#[test]
fn plain_http_leaves_as_tls_verified_against_the_systems_roots() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.10 api.payments.example\n")?;
    let authority = Authority::new(&lab, "roots")?;
    let certificate = authority.issue(&["api.payments.example"])?;
    let nginx = Nginx::new(&lab, "payments")
        .https("203.0.113.10:443", &certificate)?
        .start()?;
    let roots = authority.path();
    let agent = lab
        .agent()
        .policy("tls", &example("tls-origination.yaml")?)?
        .environment("SSL_CERT_FILE", &roots.display().to_string())
        .start()?;
    lab.curl(&["--fail", "http://api.payments.example/charges"])
        .text()?;
    assert_eq!(nginx.request(1)?["sni"], "api.payments.example");
    agent.stop()
}
