//! What a service must show to be believed, where verification can be turned
//! off, and where keys may lie and must not.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::process::ExitStatusExt;

use lab::certificates::{Authority, Certificate};
use lab::dns::NameServer;
use lab::nginx::{Nginx, RunningNginx};
use lab::process::{DEADLINE, wait_for};
use lab::{Group, Lab, RESOLVER, Result, policy};

const HOST: &str = "pay.example.com";
const REAL: &str = "203.0.113.45";

struct World {
    nginx: RunningNginx,
    _dns: NameServer,
    authority: Authority,
    lab: Lab,
}

impl World {
    /// A service that shows what `certificate` makes.
    fn new(certificate: impl FnOnce(&Lab, &Authority) -> Result<Certificate>) -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let certificate = certificate(&lab, &authority)?;
        let lines = format!(
            "ssl_verify_client optional;\nssl_client_certificate {};\n\
             location /who {{ return 200 '$ssl_client_serial'; }}\n",
            authority.path().display()
        );
        Ok(Self {
            nginx: Nginx::new(&lab, "pay")
                .https(&format!("{REAL}:443"), &certificate)?
                .with(&lines)
                .start()?,
            _dns: NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?,
            authority,
            lab,
        })
    }

    /// The policy, with other lines in place of `caCertificates`.
    fn policy(&self, lines: &str) -> String {
        policy::tls_origination(HOST, &self.authority.path()).replace(
            &format!("caCertificates: {}", self.authority.path().display()),
            lines,
        )
    }

    /// Refused, with these words in the record, and nothing came through.
    fn refuses(&self, policy: &str, words: &[&str]) -> Result<()> {
        let agent = self.lab.agent().policy("pay", policy)?.start()?;
        let answer = self
            .lab
            .curl(&["--include", &format!("http://{HOST}/who")])
            .text()?;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        agent.record("the reason", |record| {
            record.has_flag("UF") && words.iter().all(|word| record.detail().contains(word))
        })?;
        assert!(self.nginx.requests()?.is_empty(), "something came through");
        agent.stop()
    }
}

#[test]
fn a_self_signed_certificate_is_refused() -> Result<()> {
    let world = World::new(|lab, _| Authority::self_signed(lab, &[HOST]))?;
    let policy = policy::tls_origination(HOST, &world.authority.path());
    world.refuses(&policy, &["no trusted authority", HOST, "caCertificates"])
}

#[test]
fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    let world = World::new(|lab, _| Authority::new(lab, "stranger")?.issue(&[HOST]))?;
    let policy = policy::tls_origination(HOST, &world.authority.path());
    world.refuses(
        &policy,
        &["no trusted authority", "stranger", "caCertificates"],
    )
}

#[test]
fn a_name_that_the_policy_does_not_want_is_refused() -> Result<()> {
    let world = World::new(|_, authority| authority.issue(&[HOST]))?;
    let ca = world.authority.path();
    let policy = world.policy(&format!(
        "caCertificates: {}\n          subjectAltNames: [other.example.com]",
        ca.display()
    ));
    world.refuses(&policy, &["is not for other.example.com", HOST])
}

#[test]
fn verification_that_is_turned_off_works_and_is_told_everywhere() -> Result<()> {
    let world = World::new(|lab, _| Authority::self_signed(lab, &["another.example.com"]))?;
    let lab = &world.lab;
    let text = world.policy("insecureSkipVerify: true");
    let agent = lab.agent().policy("pay", &text)?.start()?;
    lab.curl(&["--fail", &format!("http://{HOST}/who")])
        .text()?;
    assert_eq!(world.nginx.requests()?.len(), 1);
    let log = agent.log()?;
    assert!(log.contains("insecureSkipVerify"), "{log}");
    let metrics = agent.metrics(lab)?;
    let metric = metrics
        .lines()
        .find(|line| line.starts_with("egress_tls_verification_skipped{"));
    assert!(metric.is_some_and(|line| line.ends_with(" 1")), "{metrics}");
    let explained = lab
        .egressctl(&["explain", &format!("http://{HOST}/")])?
        .text()?;
    assert!(
        explained.contains("neither chain nor name is checked"),
        "{explained}"
    );
    let secrets = lab.egressctl(&["proxy-config", "secrets"])?.text()?;
    assert!(secrets.contains("insecureSkipVerify"), "{secrets}");
    agent.stop()
}

/// As systemd lays `LoadCredential=` out: one file for each name, or for each
/// file of a directory, all readable by the service alone (systemd.exec(5)).
#[test]
fn credentials_of_systemd_are_found_and_rotate() -> Result<()> {
    let world = World::new(|_, authority| authority.issue(&[HOST]))?;
    let lab = &world.lab;
    let credentials = lab.directory().join("credentials");
    fs::create_dir(&credentials)?;
    let lay = |certificate: &Certificate| -> Result<()> {
        for (from, to) in [
            (&certificate.certificate, "client_tls.crt"),
            (&certificate.key, "client_tls.key"),
            (&world.authority.path(), "client_ca.crt"),
        ] {
            let (next, to) = (credentials.join("next"), credentials.join(to));
            fs::copy(from, &next)?;
            fs::rename(&next, &to)?;
        }
        Ok(())
    };
    let first = world.authority.issue(&["client"])?;
    lay(&first)?;
    let text = world
        .policy("credentialName: client")
        .replace("mode: SIMPLE", "mode: MUTUAL");
    let agent = lab
        .agent()
        .policy("pay", &text)?
        .environment("CREDENTIALS_DIRECTORY", &credentials.display().to_string())
        .start()?;
    let who = || lab.curl(&["--fail", &format!("http://{HOST}/who")]).text();
    assert_eq!(who()?, first.serial);
    let second = world.authority.issue(&["client-two"])?;
    lay(&second)?;
    // A connection that is kept goes on with what it began with.
    let target = format!("{HOST}:80");
    wait_for("the new certificate", DEADLINE, || {
        let shown = lab.egressctl(&["explain", "--connect", &target])?.text()?;
        Ok(shown.contains("client-two").then_some(()))
    })?;
    agent.stop()
}

/// Keys are in memory while the agent runs: a crash writes none of it out, and
/// no log or view shows any.
#[test]
fn keys_reach_no_core_file_and_no_output() -> Result<()> {
    let world = World::new(|_, authority| authority.issue(&[HOST]))?;
    let lab = &world.lab;
    let client = world.authority.issue(&["client"])?;
    let text = world
        .policy(&format!(
            "clientCertificate: {}\n          privateKey: {}\n          caCertificates: {}",
            client.certificate.display(),
            client.key.display(),
            world.authority.path().display()
        ))
        .replace("mode: SIMPLE", "mode: MUTUAL");
    let dumps = lab.directory().join("dumps");
    fs::create_dir(&dumps)?;
    let begin = format!("cd {} && ulimit -c unlimited && ", dumps.display());
    let allowed = lab
        .spawn(Group::Outside, "sh")
        .args(["-c", &format!("{begin} sh -c 'kill -ABRT $$'; exit $?")])
        .output()?;
    assert_eq!(allowed.code(), 128 + 6, "{allowed:?}");
    if !allowed.stderr.contains("core dumped") {
        eprintln!("nothing is dumped on this machine: that the agent is not shows little");
    }
    let agent = lab
        .agent()
        .policy("pay", &text)?
        .log_filter("debug")
        .under(&["sh", "-c", &format!("{begin} exec \"$@\""), "sh"])
        .start()?;
    let seen = lab
        .curl(&["--fail", &format!("http://{HOST}/who")])
        .text()?;
    assert_eq!(seen, client.serial);
    let mut shown = agent.log()?;
    for view in [
        &["proxy-config", "secrets", "-o", "json"] as &[&str],
        &["proxy-config", "secrets", "-o", "yaml"],
        &["explain", "--connect", &format!("{HOST}:80"), "-o", "json"],
    ] {
        shown.push_str(&lab.egressctl(view)?.text()?);
    }
    let key = fs::read_to_string(&client.key)?;
    for line in key.lines().filter(|line| !line.starts_with("-----")) {
        assert!(!shown.contains(line), "a line of the key is shown");
    }
    assert!(!shown.contains("PRIVATE KEY"));
    let status = agent.crash()?;
    assert_eq!(status.signal(), Some(6), "{status}");
    assert!(!status.core_dumped(), "{status}");
    Ok(())
}
