//! Documents about TLS as operators have them.
#![allow(clippy::panic, reason = "tests")]

use std::fs;

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::mariadb::MariaDb;
use lab::nginx::Nginx;
use lab::postgres::Postgres;
use lab::{Lab, RESOLVER, Result};

const MTLS: &str = include_str!("policies/08-mtls-external-service.yaml");
const WITH_SECRET: &str = include_str!("policies/09-mtls-with-secret.yaml");
const PARTNER: &str = "secure.partner-api.com";
const REAL: &str = "203.0.113.70";

#[test]
fn mutual_tls_by_files_and_by_credential() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let (server, client) = (authority.issue(&[PARTNER])?, authority.issue(&["client"])?);
    let lines = format!(
        "ssl_verify_client on;\nssl_client_certificate {};\n\
         location /who {{ return 200 '$ssl_client_serial'; }}\n",
        authority.path().display()
    );
    let nginx = Nginx::new(&lab, "partner")
        .https(&format!("{REAL}:443"), &server)?
        .with(&lines)
        .start()?;
    let _dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {PARTNER}\n"))?;
    // The document names /etc/certs, which belongs to the host.
    let certs = lab.directory().join("certs");
    fs::create_dir(&certs)?;
    fs::copy(&client.certificate, certs.join("client.pem"))?;
    fs::copy(&client.key, certs.join("client-key.pem"))?;
    fs::copy(authority.path(), certs.join("ca.pem"))?;
    let by_files = MTLS.replace("/etc/certs", &certs.display().to_string());
    // As `kubectl create secret generic partner-api-certs` makes it.
    let secret = lab
        .directory()
        .join("secrets/istio-system/partner-api-certs");
    fs::create_dir_all(&secret)?;
    for (from, to) in [
        ("client.pem", "cert"),
        ("client-key.pem", "key"),
        ("ca.pem", "cacert"),
    ] {
        fs::copy(certs.join(from), secret.join(to))?;
    }
    let entry = MTLS.split("---").next().unwrap_or_default();
    let by_secret = format!("{entry}---\n{WITH_SECRET}");
    for (name, policy) in [("files", by_files), ("credential", by_secret)] {
        let agent = lab
            .agent()
            .policy("partner", &policy)?
            .setting("--namespace", "production")
            .setting(
                "--secrets-dir",
                lab.directory().join("secrets").display().to_string(),
            )
            .start()?;
        let url = format!("http://{PARTNER}:443/who");
        let seen = lab.curl(&["--fail", &url]).text()?;
        assert_eq!(seen, client.serial, "{name}");
        agent.stop()?;
    }
    // Without a client certificate the service answers 400.
    let requests = nginx.requests()?;
    assert!(
        requests.iter().all(|request| request["status"] == 200),
        "{requests:?}"
    );
    Ok(())
}

#[test]
fn the_examples_of_client_certificates_and_databases_work() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let client = authority.issue(&["client"])?;
    let hosts = [
        ("203.0.113.71", "api.partner.example"),
        ("203.0.113.72", "orders.db.example"),
        ("203.0.113.73", "shop.db.example"),
    ];
    let records: String = hosts
        .iter()
        .map(|(ip, name)| format!("{ip} {name}\n"))
        .collect();
    let _dns = NameServer::start(&lab, RESOLVER, &records)?;
    let lines = format!(
        "ssl_verify_client on;\nssl_client_certificate {};\nssl_protocols TLSv1.3;\n\
         location /who {{ return 200 '$ssl_client_serial'; }}\n",
        authority.path().display()
    );
    let certificate = |host: &str| authority.issue(&[host]);
    let _nginx = Nginx::new(&lab, "partner")
        .https("203.0.113.71:443", &certificate(hosts[0].1)?)?
        .with(&lines)
        .start()?;
    let _postgres = Postgres::tls(&lab, hosts[1].0, &certificate(hosts[1].1)?, "")?;
    let _mariadb = MariaDb::tls(&lab, hosts[2].0, &certificate(hosts[2].1)?)?;
    let secret = lab.directory().join("secrets/default/partner");
    fs::create_dir_all(&secret)?;
    fs::copy(&client.certificate, secret.join("tls.crt"))?;
    fs::copy(&client.key, secret.join("tls.key"))?;
    fs::copy(authority.path(), secret.join("ca.crt"))?;
    let agent = lab
        .agent()
        .policy(
            "mutual",
            include_str!("../../config/examples/mutual-tls.yaml"),
        )?
        .policy(
            "databases",
            include_str!("../../config/examples/database-tls.yaml"),
        )?
        .setting(
            "--secrets-dir",
            lab.directory().join("secrets").display().to_string(),
        )
        .environment("SSL_CERT_FILE", &authority.path().display().to_string())
        .start()?;
    let seen = lab
        .curl(&["--fail", "http://api.partner.example/who"])
        .text()?;
    assert_eq!(seen, client.serial);
    let version = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let seen = lab
        .psql(hosts[1].1, version)
        .env("PGPASSWORD", lab::postgres::PASSWORD)
        .text()?;
    assert_eq!(seen.trim(), "TLSv1.3");
    let seen = lab
        .client("mariadb")
        .args([
            "--no-defaults",
            "--skip-ssl",
            "--batch",
            "--skip-column-names",
        ])
        .args([
            "--user=app",
            &format!("--password={}", lab::mariadb::PASSWORD),
        ])
        .args([&format!("--host={}", hosts[2].1), "--execute"])
        .arg("SHOW STATUS LIKE 'Ssl_version'")
        .text()?;
    assert_eq!(seen.trim(), "Ssl_version\tTLSv1.3");
    agent.stop()
}
