//! Client certificates: whose they are, and what a service that demands them
//! sees.
#![allow(clippy::panic, reason = "tests")]

use lab::certificates::{Authority, Certificate};
use lab::dns::NameServer;
use lab::nginx::{Nginx, RunningNginx};
use lab::{Lab, RESOLVER, Result, policy};

const HOST: &str = "pay.example.com";
const REAL: &str = "203.0.113.40";

struct World {
    nginx: Option<RunningNginx>,
    _dns: NameServer,
    /// Of the server and of good clients.
    authority: Authority,
    lab: Lab,
}

/// A service that demands client certificates and answers with what it saw.
impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let server = authority.issue(&[HOST])?;
        let lines = format!(
            "ssl_verify_client on;\nssl_client_certificate {};\n\
             location /who {{ return 200 '$ssl_client_serial $ssl_session_reused\\n'; }}\n",
            authority.path().display()
        );
        Ok(Self {
            nginx: Some(
                Nginx::new(&lab, "pay")
                    .https(&format!("{REAL}:443"), &server)?
                    .with(&lines)
                    .start()?,
            ),
            _dns: NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?,
            authority,
            lab,
        })
    }

    /// The service in the root namespace, by HTTP on port 80 and as bytes on
    /// port 8080, with the rules given.
    fn policy(&self, rules: &[String]) -> String {
        let entry = format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: pay, namespace: istio-system}}
spec:
  hosts: [{HOST}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
    - {{number: 80, name: http, protocol: HTTP, targetPort: 443}}
    - {{number: 8080, name: tcp, protocol: TCP, targetPort: 443}}
"
        );
        let mut documents = vec![entry.as_str()];
        documents.extend(rules.iter().map(String::as_str));
        policy::join(&documents)
    }

    /// A rule of `namespace` with this beside its host, and this identity.
    fn rule(&self, namespace: &str, more: &str, identity: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: pay-{}, namespace: {namespace}}}
spec:
  host: {HOST}
  {more}
  trafficPolicy:
    tls:
      mode: MUTUAL
      {identity}
",
            more.len()
        )
    }

    fn files(&self, certificate: &Certificate) -> String {
        format!(
            "clientCertificate: {}\n      privateKey: {}\n      caCertificates: {}",
            certificate.certificate.display(),
            certificate.key.display(),
            self.authority.path().display()
        )
    }
}

/// Many connections at once, each new and each kept for several requests, over
/// both ports; prints the serials that the service saw.
const CROWD: &str = r#"
import http.client
from concurrent.futures import ThreadPoolExecutor
def one(number):
    seen = set()
    connection = http.client.HTTPConnection(HOST, 80 if number % 2 else 8080, timeout=30)
    for _ in range(3):
        connection.request("GET", "/who", headers={"host": HOST})
        answer = connection.getresponse()
        assert answer.status == 200, (answer.status, answer.read())
        seen.add(answer.read().decode().split()[0])
    connection.close()
    return seen
with ThreadPoolExecutor(8) as pool:
    print(*sorted(set().union(*pool.map(one, range(COUNT)))))
"#;

#[test]
fn no_tenant_shows_the_certificate_of_another() -> Result<()> {
    let world = World::new()?;
    let lab = &world.lab;
    let [alpha, beta, gamma] =
        ["alpha", "beta", "gamma"].map(|name| world.authority.issue(&[name]));
    let (alpha, beta, gamma) = (alpha?, beta?, gamma?);
    // By namespace, and by workloadSelector within one.
    let selector = "workloadSelector: {matchLabels: {app: gamma}}\n  exportTo: [\".\"]";
    let policy = world.policy(&[
        world.rule("alpha", "exportTo: [\".\"]", &world.files(&alpha)),
        world.rule("beta", "exportTo: [\".\"]", &world.files(&beta)),
        world.rule("beta", selector, &world.files(&gamma)),
    ]);
    let names = ["alpha", "beta", "gamma"];
    let mut join = Vec::new();
    for name in names {
        join.push(lab.client_group(&format!("tenant-{name}"))?);
    }
    let agent = lab
        .agent()
        .policy("pay", &policy)?
        .setting("--workload", "tenant-alpha=alpha")
        .setting("--workload", "tenant-beta=beta")
        .setting("--workload", "tenant-gamma=beta,app=gamma")
        .start()?;
    let count = if lab::long() { 2_000 } else { 60 };
    let seen = crowds(lab, &join, count)?;
    assert_eq!(seen, [alpha.serial, beta.serial, gamma.serial]);
    agent.stop()
}

/// Runs a crowd in each group at once.
fn crowds(lab: &Lab, join: &[String], count: usize) -> Result<Vec<String>> {
    std::thread::scope(|scope| {
        let running: Vec<_> = join
            .iter()
            .map(|join| {
                let script = format!("{join}HOST = {HOST:?}\nCOUNT = {count}\n{CROWD}");
                let deadline = std::time::Duration::from_mins(4);
                scope.spawn(move || lab.python(&script).deadline(deadline).text())
            })
            .collect();
        running
            .into_iter()
            .map(|running| match running.join() {
                Ok(text) => Ok(text?.trim().to_owned()),
                Err(_) => lab::bail!("a crowd panicked"),
            })
            .collect()
    })
}

#[test]
fn one_credential_name_is_another_secret_in_each_namespace() -> Result<()> {
    let world = World::new()?;
    let lab = &world.lab;
    let secrets = lab.directory().join("secrets");
    let mut serials = Vec::new();
    let mut join = Vec::new();
    for name in ["alpha", "beta"] {
        let certificate = world.authority.issue(&[name])?;
        let directory = secrets.join(name).join("client");
        std::fs::create_dir_all(&directory)?;
        std::fs::copy(&certificate.certificate, directory.join("tls.crt"))?;
        std::fs::copy(&certificate.key, directory.join("tls.key"))?;
        std::fs::copy(world.authority.path(), directory.join("ca.crt"))?;
        serials.push(certificate.serial);
        join.push(lab.client_group(&format!("tenant-{name}"))?);
    }
    // One rule for all, so one cluster and one endpoint set.
    let policy = world.policy(&[world.rule("istio-system", "", "credentialName: client")]);
    let agent = lab
        .agent()
        .policy("pay", &policy)?
        .setting("--secrets-dir", secrets.display().to_string())
        .setting("--workload", "tenant-alpha=alpha")
        .setting("--workload", "tenant-beta=beta")
        .start()?;
    let count = if lab::long() { 2_000 } else { 60 };
    assert_eq!(crowds(lab, &join, count)?, serials);
    // Who has no secret of that name gets no connection, and not another's.
    let other = format!("{}HOST = {HOST:?}\nCOUNT = 1\n{CROWD}", "");
    let refused = lab.python(&other).output()?;
    assert_ne!(refused.code(), 0);
    agent.record("the reason", |record| {
        record
            .detail()
            .contains("credentialName client: no such credential")
    })?;
    agent.stop()
}

#[test]
fn a_service_resumes_sessions_and_refuses_bad_clients() -> Result<()> {
    let world = World::new()?;
    let lab = &world.lab;
    let good = world.authority.issue(&["good"])?;
    let policy = world.policy(&[world.rule("istio-system", "", &world.files(&good))]);
    let agent = lab
        .agent()
        .policy("pay", &policy)?
        .setting("--workers", "1")
        .start()?;
    let url = format!("http://{HOST}:8080/who");
    let first = lab.curl(&["--fail", &url]).text()?;
    assert_eq!(first.trim(), format!("{} .", good.serial));
    let second = lab.curl(&["--fail", &url]).text()?;
    assert_eq!(second.trim(), format!("{} r", good.serial), "resumed");

    // A certificate of another authority: the service says so.
    let stranger = Authority::new(lab, "stranger")?.issue(&["good"])?;
    let policy = world.policy(&[world.rule("istio-system", "", &world.files(&stranger))]);
    lab.write_policy("pay", &policy)?;
    lab::process::wait_for("the service to refuse", lab::process::DEADLINE, || {
        let answer = lab.curl(&[&url]).text()?;
        Ok(answer.contains("SSL certificate error").then_some(()))
    })?;
    agent.stop()
}

#[test]
fn chains_that_break_a_rule_are_refused_with_that_rule() -> Result<()> {
    let mut world = World::new()?;
    world.nginx.take();
    let lab = &world.lab;
    let good = world.authority.issue(&["good"])?;
    let revoked_server = world.authority.issue(&[HOST])?;
    let list = world.authority.revoke(&[&revoked_server])?;
    let narrow = Authority::constrained(lab, "narrow", "example.org")?;
    let outside = narrow.issue(&[HOST])?;
    let agent = lab.agent().start()?;
    let ca = |authority: &Authority| authority.path().display().to_string();
    for (name, server, trust, said) in [
        (
            "revoked",
            &revoked_server,
            format!(
                "caCertificates: {}\n      caCrl: {}",
                ca(&world.authority),
                list.display()
            ),
            "revoked",
        ),
        (
            "constrained",
            &outside,
            format!("caCertificates: {}", ca(&narrow)),
            "name constraints",
        ),
    ] {
        let nginx = Nginx::new(lab, name)
            .https(&format!("{REAL}:443"), server)?
            .start()?;
        let identity = format!(
            "clientCertificate: {}\n      privateKey: {}\n      {trust}",
            good.certificate.display(),
            good.key.display()
        );
        let policy = world.policy(&[world.rule("istio-system", "", &identity)]);
        lab.write_policy("pay", &policy)?;
        lab::process::wait_for("the refusal", lab::process::DEADLINE, || {
            lab.curl(&["-o", "/dev/null", &format!("http://{HOST}/")])
                .output()?;
            let records = agent.records()?;
            Ok(records
                .iter()
                .any(|record| record.detail().contains(said))
                .then_some(()))
        })?;
        assert!(nginx.requests()?.is_empty(), "{name}: nothing came through");
        nginx.stop()?;
    }
    agent.stop()
}
