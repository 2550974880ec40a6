//! Credentials that the agent adds and the application never sees.
#![allow(clippy::panic, reason = "tests")]

use std::fs;

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply};
use lab::nginx::Nginx;
use lab::process::{DEADLINE, wait_for};
use lab::{Lab, RESOLVER, Result};

const HOST: &str = "api.partner.example";
const RECORDER: &str = "10.255.0.1:8080";
/// As operators have it.
const DOCUMENT: &str = include_str!("../../config/examples/credential.yaml");

#[test]
fn a_token_is_added_rotated_and_never_shown() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let certificate = authority.issue(&[HOST])?;
    let _dns = NameServer::start(&lab, RESOLVER, &format!("203.0.113.10 {HOST}\n"))?;
    let server = HttpServer::start(&lab, RECORDER, |request| {
        // The service itself must not make it known either.
        Reply::ok(if request.header("authorization").is_some() {
            "welcome"
        } else {
            "who are you?"
        })
    })?;
    let _nginx = Nginx::new(&lab, "partner")
        .proxy("203.0.113.10:443", Some(&certificate), true, RECORDER)?
        .start()?;
    let secrets = lab.directory().join("secrets");
    let secret = secrets.join("default/partner-token");
    let agent = lab
        .agent()
        .policy("partner", DOCUMENT)?
        .log_filter("trace")
        .setting("--secrets-dir", secrets.display().to_string())
        .environment("SSL_CERT_FILE", &authority.path().display().to_string())
        .start()?;

    // Nothing goes out without it.
    let answer = lab.fetch(&[&format!("http://{HOST}/early")])?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("partner-token"), "{answer:?}");
    assert!(server.requests().is_empty());
    let record = agent.record("a refused request", |r| r.field("path") == "/early")?;
    assert_eq!(record.flag(), "UF", "{record}");

    let fetch = || {
        lab.fetch(&[
            "--verbose",
            // What the application sends in its place does not count.
            "--header",
            "authorization: Bearer of-the-application",
            &format!("http://{HOST}/orders"),
        ])
    };
    let comes = |token: &str| {
        let wanted = format!("Bearer {token}");
        wait_for("a token to be used", DEADLINE, || {
            let answer = fetch()?;
            if answer.status != 200 {
                return Ok(None);
            }
            let got = server.last()?;
            let all: Vec<_> = got.all("authorization").collect();
            assert_eq!(all.len(), 1, "{all:?}");
            Ok((all == [wanted.as_str()]).then_some(answer))
        })
    };
    fs::create_dir_all(&secret)?;
    fs::write(secret.join("token"), "first-s3cret\n")?;
    let answer = comes("first-s3cret")?;
    assert_eq!(answer.body, "welcome");
    assert_eq!(server.last()?.header("x-seen-tls"), Some("TLSv1.3"));

    // Rotated without a restart; a value that cannot be used changes nothing.
    fs::write(secret.join("new"), "second-s3cret")?;
    fs::rename(secret.join("new"), secret.join("token"))?;
    comes("second-s3cret")?;
    fs::write(secret.join("token"), "")?;
    for _ in 0..3 {
        assert_eq!(fetch()?.status, 200);
        assert_eq!(
            server.last()?.header("authorization"),
            Some("Bearer second-s3cret")
        );
    }

    // Neither log nor access log nor anything that can be asked for shows it.
    let records = agent.wait_records(5)?;
    let mut shown: String = records.iter().map(ToString::to_string).collect();
    shown.push_str(&agent.log()?);
    shown.push_str(&agent.metrics(&lab)?);
    for arguments in [
        &["proxy-config", "secrets"][..],
        &["proxy-config", "services", "-o", "json"],
        &["get", "destinationrule", "-o", "yaml"],
    ] {
        shown.push_str(&lab.egressctl(arguments)?.output()?.stdout);
    }
    assert!(shown.contains("/orders"));
    assert!(!shown.contains("s3cret"), "a credential is shown");
    agent.stop()
}

#[test]
fn other_forms_of_credentials_are_written_as_their_servers_want_them() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let server = HttpServer::start(&lab, "203.0.113.10:80", |_| Reply::ok("ok"))?;
    let secrets = lab.directory().join("secrets");
    for (name, key, value) in [
        ("login", "username", "aladdin"),
        ("login", "password", "open sesame"),
        ("key", "value", "k-123"),
    ] {
        let directory = secrets.join("default").join(name);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(key), value)?;
    }
    let document = |name: &str, credential: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: {name}
  namespace: default
  annotations: {{egress-agent.dev/inject-credential: {credential}}}
spec:
  hosts: [{name}.example.com]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 203.0.113.10}}]
---
"
        )
    };
    let documents = [
        document("basic", "basic secret=login"),
        document("header", "header name=x-api-key secret=key key=value"),
        document("none", "header name=host secret=key").replace(
            "  annotations: {egress-agent.dev/inject-credential: header name=host secret=key}\n",
            "",
        ),
    ]
    .concat();
    let agent = lab
        .agent()
        .policy("all", &documents)?
        .setting("--secrets-dir", secrets.display().to_string())
        .start()?;
    for (host, header, value) in [
        (
            "basic",
            "authorization",
            Some("Basic YWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ),
        ("header", "x-api-key", Some("k-123")),
        ("none", "authorization", None),
    ] {
        let answer = lab.fetch(&[&format!("http://{host}.example.com/")])?;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(server.last()?.header(header), value, "{host}");
    }
    agent.stop()
}
