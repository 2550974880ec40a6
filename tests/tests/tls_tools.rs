//! What helps an operator with TLS: handshakes on demand, and the mesh identity.
#![allow(clippy::panic, reason = "tests")]

use std::fs;

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::Nginx;
use lab::postgres::Postgres;
use lab::scene::{HOST, REAL, TlsUpstream};
use lab::{Lab, RESOLVER, Result, policy};

#[test]
fn explain_connects_with_the_identity_of_the_policy() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let TlsUpstream { lab, nginx, .. } = &upstream;
    let agent = upstream.agent()?.start()?;
    let explain = |arguments: &[&str]| {
        let url = format!("http://{HOST}/");
        let all = [&["explain", "--connect", &url], arguments].concat();
        lab.egressctl(&all)?.text()
    };
    // The name is resolved when it is first asked for.
    lab.curl(&["--fail", &format!("http://{HOST}/")]).text()?;
    let text = explain(&[])?;
    for part in [
        &format!("{REAL}:443 from 192.0.2.2:") as &str,
        "TLSv1.3, TLS_",
        "time: TCP ",
        "ALPN: none",
        "client certificate: none",
        "issued by CN=world",
        &format!("names: {HOST}"),
        " days)",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let value: serde_json::Value = serde_json::from_str(&explain(&["-o", "json"])?)?;
    let tls = &value["connections"][0]["tls"];
    assert_eq!(tls["sni"], HOST);
    assert!(
        tls["chain"][0]["days_left"]
            .as_i64()
            .is_some_and(|days| days > 1000)
    );
    // Not a byte of an application was sent.
    assert_eq!(nginx.requests()?.len(), 1);

    // A policy that trusts another authority: the failure in words.
    let other = Authority::new(lab, "other")?;
    lab.write_policy("api", &policy::tls_origination(HOST, &other.path()))?;
    lab::process::wait_for("the reason", lab::process::DEADLINE, || {
        let text = explain(&[])?;
        Ok((text.contains("failed") && text.contains("no trusted authority")).then_some(()))
    })?;
    agent.stop()
}

#[test]
fn explain_connects_within_protocols() -> Result<()> {
    const DB: &str = "db.example.com";
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let _postgres = Postgres::tls(&lab, "203.0.113.20", &authority.issue(&[DB])?, "")?;
    let records = format!("203.0.113.20 {DB}\n");
    let _dns = NameServer::start(&lab, RESOLVER, &records)?;
    let policy = policy::tls_tcp(DB, 5432, "postgres", &authority.path());
    let agent = lab.agent().policy("db", &policy)?.start()?;
    lab.psql(DB, "SELECT 1")
        .env("PGPASSWORD", lab::postgres::PASSWORD)
        .text()?;
    let target = format!("{DB}:5432");
    let text = lab.egressctl(&["explain", "--connect", &target])?.text()?;
    assert!(text.contains("starts within postgres"), "{text}");
    assert!(text.contains("TLSv1.3, TLS_"), "{text}");
    agent.stop()
}

#[test]
fn the_mesh_identity_is_presented_and_peers_are_known_by_spiffe_id() -> Result<()> {
    const MINE: &str = "spiffe://example.org/ns/default/sa/agent";
    const THEIRS: &str = "spiffe://example.org/ns/pay/sa/server";
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "mesh")?;
    let (server, client) = (authority.issue_uri(THEIRS)?, authority.issue_uri(MINE)?);
    let lines = format!(
        "ssl_verify_client on;\nssl_client_certificate {};\n\
         location /who {{ return 200 '$ssl_client_serial'; }}\n",
        authority.path().display()
    );
    let _nginx = Nginx::new(&lab, "pay")
        .https(&format!("{REAL}:443"), &server)?
        .with(&lines)
        .start()?;
    let _dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
    let rule = |name: &str| {
        policy::tls_origination(HOST, &authority.path())
            .replace("mode: SIMPLE", "mode: ISTIO_MUTUAL")
            .replace(
                &format!("caCertificates: {}", authority.path().display()),
                &format!("subjectAltNames: [\"{name}\"]"),
            )
    };
    let identity = lab.directory().join("identity");
    fs::create_dir(&identity)?;
    fs::copy(&client.certificate, identity.join("cert-chain.pem"))?;
    fs::copy(&client.key, identity.join("key.pem"))?;
    fs::copy(authority.path(), identity.join("root-cert.pem"))?;

    let agent = lab
        .agent()
        .policy("api", &rule(THEIRS))?
        .setting("--mesh-identity", identity.display().to_string())
        .start()?;
    let url = format!("http://{HOST}/who");
    assert_eq!(lab.curl(&["--fail", &url]).text()?, client.serial);
    let secrets = lab.egressctl(&["proxy-config", "secrets"])?.text()?;
    assert!(secrets.contains("mesh identity"), "{secrets}");
    // A peer of another name is none.
    lab.write_policy("api", &rule("spiffe://example.org/ns/other/sa/server"))?;
    agent_refuses(&lab, &url)?;
    agent.record("the reason", |record| {
        record
            .detail()
            .contains("not for spiffe://example.org/ns/other/sa/server")
            && record.detail().contains(THEIRS)
    })?;
    agent.stop()?;

    // Without an identity: refused, and never in the clear.
    let agent = lab.agent().policy("api", &rule(THEIRS))?.start()?;
    agent_refuses(&lab, &url)?;
    agent.record("the reason", |record| {
        record.detail().contains("mesh-identity")
    })?;
    agent.stop()
}

fn agent_refuses(lab: &Lab, url: &str) -> Result<()> {
    lab::process::wait_for("a refusal", lab::process::DEADLINE, || {
        Ok((lab.curl(&["--fail", url]).output()?.code() != 0).then_some(()))
    })
}
