//! What fails, fails promptly, says why, and never sends plaintext.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::agent::Agent;
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::{Nginx, RunningNginx};
use lab::process::Finished;
use lab::record::Record;
use lab::scene::{HOST, REAL, TlsUpstream};
use lab::tcp::{Behaviour, Server};
use lab::{BLACK_HOLE, Lab, RESOLVER, Result, policy};

/// What a client may wait for an error, connect timeouts aside.
const PROMPT: Duration = Duration::from_secs(3);

/// curl's verdict, and the record of its connection.
fn fetch(lab: &Lab, agent: &Agent) -> Result<(Finished, Record)> {
    fetch_within(PROMPT, lab, agent)
}

fn fetch_within(limit: Duration, lab: &Lab, agent: &Agent) -> Result<(Finished, Record)> {
    let finished = lab.curl(&["--fail", &format!("http://{HOST}/")]).output()?;
    assert_ne!(finished.code(), 0, "{finished:?}");
    assert!(finished.elapsed < limit, "{finished:?}");
    let record = agent.record("the record of the failure", |_| true)?;
    Ok((finished, record))
}

/// Asserts that the record has one of `flags`, and that both the record and
/// the agent's log name the cause.
fn names_the_cause(agent: &Agent, record: &Record, flags: &[&str], cause: &[&str]) -> Result<()> {
    assert!(flags.iter().any(|flag| record.has_flag(flag)), "{record}");
    let detail = record.detail().to_lowercase();
    let log = agent.log()?.to_lowercase();
    for word in cause {
        assert!(
            detail.contains(word),
            "{word} is not in the record: {record}"
        );
        assert!(log.contains(word), "{word} is not in the log: {log}");
    }
    Ok(())
}

/// Every byte that came to an upstream port must be TLS: a handshake record.
fn only_tls_came(server: &Server) {
    let received = server.received();
    assert!(!received.is_empty(), "nobody came");
    for bytes in received.iter().filter(|bytes| !bytes.is_empty()) {
        assert_eq!(bytes[0], 0x16, "{bytes:?}");
        assert!(!bytes.windows(4).any(|four| four == b"GET "), "{bytes:?}");
    }
}

/// Nothing in nginx's log: no request came through, plain or not.
fn no_request_came(nginx: &RunningNginx) -> Result<()> {
    assert_eq!(nginx.requests()?, Vec::<serde_json::Value>::new());
    Ok(())
}

#[test]
fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let other = Authority::new(&upstream.lab, "other")?;
    let agent = upstream
        .lab
        .agent()
        .policy("api", &policy::tls_origination(HOST, &other.path()))?
        .start()?;
    let (_, record) = fetch(&upstream.lab, &agent)?;
    names_the_cause(&agent, &record, &["UF"], &["issuer"])?;
    no_request_came(&upstream.nginx)?;
    agent.stop()
}

/// A certificate for the wrong name, and one that has expired.
fn bad_certificate(expired: bool, cause: &[&str]) -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
    let authority = Authority::new(&lab, "world")?;
    let certificate = if expired {
        authority.issue_expired(&[HOST])?
    } else {
        authority.issue(&["other.example.com"])?
    };
    let nginx = Nginx::new(&lab, "api")
        .https(&format!("{REAL}:443"), &certificate)?
        .start()?;
    let agent = lab
        .agent()
        .policy("api", &policy::tls_origination(HOST, &authority.path()))?
        .start()?;
    let (_, record) = fetch(&lab, &agent)?;
    names_the_cause(&agent, &record, &["UF"], cause)?;
    no_request_came(&nginx)?;
    agent.stop()
}

#[test]
fn a_certificate_for_another_name_is_refused() -> Result<()> {
    bad_certificate(false, &["name"])
}

#[test]
fn an_expired_certificate_is_refused() -> Result<()> {
    bad_certificate(true, &["expired"])
}

/// Fixed endpoints in the place of DNS.
fn agent_with_endpoint<'lab>(
    lab: &'lab Lab,
    authority: &Authority,
    endpoint: &str,
) -> Result<lab::agent::Builder<'lab>> {
    let document = policy::tls_origination(HOST, &authority.path()).replacen(
        "resolution: DNS",
        &format!("resolution: STATIC\n  endpoints:\n    - address: {endpoint}"),
        1,
    );
    lab.agent().policy("api", &document)
}

#[test]
fn a_refused_endpoint_is_reported() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let authority = Authority::new(&lab, "world")?;
    let agent = agent_with_endpoint(&lab, &authority, REAL)?.start()?;
    let (_, record) = fetch(&lab, &agent)?;
    names_the_cause(&agent, &record, &["UF"], &["refused", REAL])?;
    agent.stop()
}

#[test]
fn a_black_hole_ends_at_the_connect_timeout() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let authority = Authority::new(&lab, "world")?;
    let document = policy::tls_origination(HOST, &authority.path())
        .replacen(
            "resolution: DNS",
            &format!("resolution: STATIC\n  endpoints:\n    - address: {BLACK_HOLE}"),
            1,
        )
        .replacen(
            "        tls:",
            "        connectionPool:\n          tcp:\n            connectTimeout: 1s\n        tls:",
            1,
        );
    let agent = lab.agent().policy("api", &document)?.start()?;
    // HTTP is tried three times by default (Istio: `attempts: 2`).
    let (finished, record) = fetch_within(Duration::from_secs(1) + PROMPT, &lab, &agent)?;
    assert!(
        finished.elapsed >= Duration::from_millis(900),
        "{finished:?}"
    );
    names_the_cause(&agent, &record, &["UF"], &["time", BLACK_HOLE])?;
    agent.stop()
}

#[test]
fn a_dead_name_server_is_reported() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    upstream.dns.freeze()?;
    let agent = upstream.agent()?.start()?;
    // The virtual address needs no upstream; the endpoint does.
    let started = std::time::Instant::now();
    let finished = upstream
        .lab
        .curl(&["--fail", &format!("http://{HOST}/")])
        .output()?;
    assert_ne!(finished.code(), 0, "{finished:?}");
    assert!(started.elapsed() < Duration::from_secs(12), "{finished:?}");
    let record = agent.record("the record of the failure", |_| true)?;
    names_the_cause(&agent, &record, &["UH", "DF"], &["dns"])?;

    // And it gets well by itself.
    upstream.dns.thaw()?;
    lab::process::wait_for("the service to come back", lab::process::DEADLINE, || {
        let finished = upstream
            .lab
            .curl(&["--fail", &format!("http://{HOST}/")])
            .output()?;
        Ok((finished.code() == 0).then_some(()))
    })?;
    agent.stop()
}

#[test]
fn plaintext_never_reaches_an_upstream_that_answers_no_tls() -> Result<()> {
    for behaviour in [
        Behaviour::Echo,
        Behaviour::SpeakFirst,
        Behaviour::CloseAtOnce,
        Behaviour::ResetAfterRead,
    ] {
        let lab = Lab::new()?;
        let _dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
        let authority = Authority::new(&lab, "world")?;
        let server = Server::start(&lab, &format!("{REAL}:443"), behaviour)?;
        let agent = lab
            .agent()
            .policy("api", &policy::tls_origination(HOST, &authority.path()))?
            .start()?;
        let (_, record) = fetch(&lab, &agent)?;
        assert!(record.has_flag("UF"), "{behaviour:?}: {record}");
        only_tls_came(&server);
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_missing_authority_file_is_reported_and_nothing_goes_out() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let agent = upstream
        .lab
        .agent()
        .policy(
            "api",
            &policy::tls_origination(HOST, "/nonexistent/ca.pem".as_ref()),
        )?
        .start()?;
    let finished = upstream
        .lab
        .curl(&["--fail", &format!("http://{HOST}/")])
        .output()?;
    assert_ne!(finished.code(), 0, "{finished:?}");
    assert!(finished.elapsed < PROMPT, "{finished:?}");
    let record = agent.record("the record of the failure", |_| true)?;
    names_the_cause(&agent, &record, &["UF"], &["/nonexistent/ca.pem"])?;
    no_request_came(&upstream.nginx)?;
    agent.stop()
}

#[test]
fn a_bad_document_is_rejected_alone() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let bad = policy::tcp("bad.example.com", 80).replace("resolution: DNS", "resolutoin: DNS");
    let agent = upstream.agent()?.policy("bad", &bad)?.start()?;
    upstream
        .lab
        .curl(&["--fail", &format!("http://{HOST}/")])
        .text()?;
    let log = agent.log()?;
    assert!(
        log.contains("bad.yaml") && log.contains("resolutoin"),
        "{log}"
    );
    agent.stop()
}
