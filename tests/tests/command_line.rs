//! egressctl and the metrics endpoint.
#![allow(clippy::panic, reason = "tests")]

use lab::scene::{HOST, REAL, TlsUpstream};
use lab::{Lab, Result, policy};

#[test]
fn validate_says_where_and_what() -> Result<()> {
    let lab = Lab::new()?;
    let good = lab.write_policy("good", &policy::tcp("good.example.com", 5432))?;
    let bad = lab.write_policy(
        "bad",
        &policy::tcp("bad.example.com", 5432).replace("number: 5432", "number: 70000"),
    )?;
    let validate = |path: &std::path::Path| lab.egressctl(&["validate"])?.arg(path).output();
    let finished = validate(&good)?;
    assert_eq!(finished.code(), 0, "{finished:?}");
    let finished = validate(&bad)?;
    assert_eq!(finished.code(), 1, "{finished:?}");
    let said = format!("{}{}", finished.stdout, finished.stderr);
    // file:line:column of the number
    assert!(said.contains("bad.yaml:11:15"), "{said}");
    assert!(said.contains("70000"), "{said}");
    assert_eq!(validate(&lab.policy_directory())?.code(), 1);
    assert_eq!(lab.egressctl(&["validate"])?.output()?.code(), 2);
    assert_eq!(lab.egressctl(&["no-such-command"])?.output()?.code(), 2);
    Ok(())
}

#[test]
fn get_status_and_explain_tell_what_is_in_force() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let lab = &upstream.lab;
    let agent = upstream.agent()?.start()?;
    lab.curl(&["--fail", &format!("http://{HOST}/")]).text()?;

    let listed = lab.egressctl(&["get"])?.text()?;
    assert!(
        listed.contains("ServiceEntry") && listed.contains("DestinationRule"),
        "{listed}"
    );
    let yaml = lab
        .egressctl(&[
            "get",
            "serviceentry",
            "api-secure-service-com",
            "-o",
            "yaml",
        ])?
        .text()?;
    assert!(
        yaml.contains(HOST) && yaml.contains("targetPort: 443"),
        "{yaml}"
    );
    let json = lab
        .egressctl(&["get", "serviceentry", "-o", "json"])?
        .text()?;
    serde_json::from_str::<serde_json::Value>(&json)?;

    let status = lab.egressctl(&["status"])?.text()?;
    assert!(
        status.contains(&lab.client_cgroup().display().to_string()),
        "{status}"
    );

    let explained = lab
        .egressctl(&["explain", &format!("http://{HOST}/")])?
        .text()?;
    for part in [HOST, REAL, "TLS", "443"] {
        assert!(explained.contains(part), "{part} is not in: {explained}");
    }
    let offline = lab
        .egressctl(&["explain", &format!("http://{HOST}/"), "--policy"])?
        .arg(lab.policy_directory())
        .text()?;
    assert!(
        offline.contains(HOST) && offline.contains("TLS"),
        "{offline}"
    );
    let unregistered = lab
        .egressctl(&["explain", "http://unregistered.example.com/"])?
        .output()?;
    assert!(
        unregistered
            .stdout
            .to_lowercase()
            .contains("not registered")
            || unregistered.stdout.to_lowercase().contains("no service"),
        "{unregistered:?}"
    );
    agent.stop()
}

#[test]
fn explain_from_a_caller_shows_the_rule_of_its_namespace() -> Result<()> {
    let lab = Lab::new()?;
    let service = policy::tcp_static("db.example.com", 5432, &["203.0.113.20"]);
    let private = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: careful, namespace: shop}
spec:
  host: db.example.com
  exportTo: ['.']
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}
";
    let agent = lab
        .agent()
        .policy("db", &service)?
        .policy("careful", private)?
        .start()?;
    let explain = |from: &[&str]| {
        lab.egressctl(&["explain", "db.example.com:5432"])?
            .args(from)
            .text()
    };
    let rule = "DestinationRule shop/careful";
    let shop = explain(&["--from", "shop"])?;
    assert!(shop.contains(rule), "{shop}");
    assert!(shop.contains("tcp.maxConnections: 7"), "{shop}");
    let others = explain(&["--from", "other"])?;
    assert!(!others.contains("tcp.maxConnections: 7"), "{others}");
    // A process by its number: this one, which no rule gives a namespace.
    let own = explain(&["--from", &std::process::id().to_string()])?;
    assert!(own.contains("From"), "{own}");
    assert!(!own.contains("tcp.maxConnections: 7"), "{own}");
    agent.stop()
}

#[test]
fn egressctl_without_an_agent_says_so() -> Result<()> {
    let lab = Lab::new()?;
    let finished = lab.egressctl(&["status"])?.output()?;
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(finished.stderr.contains("admin.sock"), "{finished:?}");
    Ok(())
}

#[test]
fn metrics_have_istios_tcp_names() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let agent = upstream.agent()?.start()?;
    upstream
        .lab
        // Of HTTP that it sees, the agent counts requests instead.
        .curl(&[
            "--fail",
            "--cacert",
            &upstream.ca,
            &format!("https://{HOST}/"),
        ])
        .text()?;
    agent.wait_records(1)?;
    let metrics = agent.metrics(&upstream.lab)?;
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
    ] {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(name) && line.contains(HOST));
        let Some(line) = line else {
            panic!("no {name} for {HOST} in:\n{metrics}");
        };
        let value = line
            .rsplit(' ')
            .next()
            .and_then(|value| value.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value >= 1.0), "{line}");
        assert!(line.contains("destination_service"), "{line}");
    }
    agent.stop()
}
