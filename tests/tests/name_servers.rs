//! Name servers of one policy namespace, and one that can be reached in one
//! network namespace only.
#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use lab::backend::{Backend, Speaks};
use lab::dns::NameServer;
use lab::process::wait_for;
use lab::{Lab, RESOLVER, Result, ensure};

fn entry(namespace: &str, name: &str, endpoint: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: {name}
  namespace: {namespace}
spec:
  hosts: [{name}.example.com]
  resolution: DNS
  ports:
    - number: 7000
      name: port
      protocol: TCP
  endpoints:
    - address: {endpoint}
"
    )
}

/// Prints who answers.
fn connect(lab: &Lab, host: &str) -> Result<String> {
    let script = format!(
        "import socket
with socket.create_connection(('{host}.example.com', 7000), 5) as s:
    print(s.makefile().readline().strip())"
    );
    lab.python(&script).text()
}

#[test]
fn a_namespace_has_name_servers_of_its_own() -> Result<()> {
    let lab = Lab::new()?;
    let common = "10.0.0.1 db.corp.example.net db.inside.example.net\n";
    let _dns = NameServer::start(&lab, RESOLVER, common)?;
    let _first = Backend::start(&lab, "b1", "10.0.0.1:7000", Speaks::Name)?;
    let _second = Backend::start(&lab, "b2", "10.0.0.2:7000", Speaks::Name)?;
    // It listens on the loopback of a namespace: nobody else can ask it.
    let pod = lab.pod(1)?;
    let hosts = lab.write("inside", "10.0.0.2 db.inside.example.net\n")?;
    let inside = lab
        .spawn_in(&pod, &lab.cgroup("inside")?, "dnsmasq")
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
        ])
        .args(["--pid-file=", "--no-resolv", "--no-hosts", "--local=/#/"])
        .args([
            "--bind-interfaces",
            "--listen-address=127.0.0.1",
            "--port=5353",
        ])
        .arg(format!("--addn-hosts={}", hosts.display()))
        .start()?;
    let document = [
        entry("default", "common", "db.inside.example.net"),
        entry("payments", "own", "db.inside.example.net"),
        entry("payments", "searched", "db"),
    ]
    .concat();
    let server = format!("payments=127.0.0.1:5353@{}", pod.path().display());
    let agent = lab
        .agent()
        .policy("both", &document)?
        .setting("--dns-upstream-in", server)
        .setting("--dns-search-in", "payments=inside.example.net")
        .start()?;
    for (host, server) in [("common", "b1"), ("own", "b2"), ("searched", "b2")] {
        wait_for(
            &format!("{host} to lead to {server}"),
            Duration::from_secs(10),
            || {
                // Until its name is resolved a connection may fail.
                let told = connect(&lab, host).unwrap_or_default();
                Ok((told.trim() == server).then_some(()))
            },
        )?;
    }
    let names = lab
        .egressctl(&["proxy-config", "dns", "db.inside.example.net", "-o", "json"])?
        .text()?;
    ensure!(
        names.contains("10.0.0.1") && names.contains("10.0.0.2"),
        "{names}"
    );
    ensure!(names.contains("payments"), "{names}");
    // While the namespace is gone the last answer stands, and the reason is told.
    drop(inside);
    pod.delete()?;
    ensure!(
        connect(&lab, "own")?.trim() == "b2",
        "the last answer is lost"
    );
    wait_for("the reason to be told", Duration::from_secs(20), || {
        let names = lab
            .egressctl(&["proxy-config", "dns", "db.inside.example.net", "-o", "json"])?
            .text()?;
        Ok(names.contains("network namespace").then_some(()))
    })?;
    agent.stop()
}
