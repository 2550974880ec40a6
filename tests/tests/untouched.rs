//! What is not ours stays as it is: programs outside the cgroup, unregistered
//! destinations, the agent's own traffic; and everything once it has stopped.
#![allow(clippy::panic, reason = "tests")]

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::Nginx;
use lab::scene::{HOST, REAL, TlsUpstream};
use lab::tcp::{Behaviour, Server};
use lab::{Group, Lab, RESOLVER, Result, kernel, policy};

#[test]
fn programs_outside_the_cgroup_are_untouched() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let agent = upstream.agent()?.start()?;
    let lookup = format!("import socket; print(socket.gethostbyname('{HOST}'))");
    assert_eq!(
        upstream.lab.python_in(Group::Outside, &lookup).text()?,
        format!("{REAL}\n")
    );
    assert_ne!(upstream.lab.python(&lookup).text()?, format!("{REAL}\n"));
    upstream
        .lab
        .curl_in(
            Group::Outside,
            &[
                "--fail",
                "--cacert",
                &upstream.ca,
                "--tls-max",
                "1.2",
                &format!("https://{HOST}/"),
            ],
        )
        .text()?;
    assert_eq!(upstream.nginx.request(1)?["protocol"], "TLSv1.2");
    // Port 80 is not there without the agent.
    let finished = upstream
        .lab
        .curl_in(Group::Outside, &[&format!("http://{HOST}/")])
        .output()?;
    assert_eq!(finished.code(), 7, "{finished:?}");
    assert_eq!(agent.records()?.len(), 0, "{:?}", agent.records()?);
    agent.stop()
}

#[test]
fn unregistered_destinations_are_untouched() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let lab = &upstream.lab;
    upstream
        .dns
        .set(&format!("{REAL} {HOST}\n203.0.113.30 other.example.com\n"))?;
    let certificate = upstream.authority.issue(&["other.example.com"])?;
    let other = Nginx::new(lab, "other")
        .http("203.0.113.30:80")?
        .https("203.0.113.30:443", &certificate)?
        .start()?;
    let agent = upstream.agent()?.start()?;
    let answer = lab
        .curl(&[
            "--fail",
            "--write-out",
            "%{remote_ip}",
            "http://other.example.com/",
        ])
        .text()?;
    assert!(answer.ends_with("203.0.113.30"), "{answer}");
    assert_eq!(other.request(1)?["protocol"], "");
    lab.curl(&[
        "--fail",
        "--cacert",
        &upstream.ca,
        "https://other.example.com/",
    ])
    .text()?;
    // A port of a registered host that is not registered.
    let _extra = Server::start(lab, &format!("{REAL}:7000"), Behaviour::Echo)?;
    lab.python(&format!(
        "import socket\ns = socket.create_connection(('{REAL}', 7000), 5)\n\
         s.sendall(b'x')\nassert s.recv(1) == b'x'\n"
    ))
    .text()?;
    assert_eq!(agent.records()?.len(), 0, "{:?}", agent.records()?);
    agent.stop()
}

#[test]
fn the_agent_does_not_capture_itself() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    // On a host the agent is inside the cgroup that it captures. If it caught
    // its own connections, this would never come to an end.
    let agent = upstream.agent()?.inside_the_cgroup().start()?;
    for number in 1..=3 {
        upstream
            .lab
            .curl(&["--fail", &format!("http://{HOST}/{number}")])
            .text()?;
    }
    assert_eq!(upstream.nginx.request(3)?["protocol"], "TLSv1.3");
    let records = agent.wait_records(3)?;
    assert_eq!(records.len(), 3, "{records:?}");
    assert!(
        records.iter().all(|record| record.process() == "curl"),
        "{records:?}"
    );
    agent.stop()
}

#[test]
fn a_workload_cannot_pass_for_the_agent() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let agent = upstream.agent()?.start()?;
    // The same user as the agent, and any mark it likes.
    let script = format!(
        r#"
import socket, struct
SO_MARK = 36
address = socket.getaddrinfo("{HOST}", 80, socket.AF_INET)[0][4]
for mark in (1, 0x539, 0xe9, 0x10, 0xffffffff):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", mark))
        s.settimeout(5)
        s.connect(address)
        s.sendall(b"GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n")
        assert b"TLSv1.3" in s.makefile("rb").read()
"#
    );
    upstream.lab.python(&script).text()?;
    agent.stop()
}

#[test]
fn after_the_cleanup_nothing_of_ours_is_attached() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let lab = &upstream.lab;
    let agent = upstream.agent()?.start()?;
    let hooks: Vec<String> = kernel::attached(&lab.client_cgroup())?
        .into_iter()
        .map(|(hook, _)| hook)
        .collect();
    // As bpftool names them.
    for hook in [
        "cgroup_inet4_connect",
        "cgroup_inet6_connect",
        "cgroup_inet4_getpeername",
        "cgroup_sock_ops",
    ] {
        assert!(
            hooks.iter().any(|attached| attached == hook),
            "{hook} is not among {hooks:?}"
        );
    }
    agent.stop()?;
    // What stays is for the next agent, and for `on-agent-failure` until then.
    assert_ne!(kernel::attached(&lab.client_cgroup())?, []);
    lab.clean_up()?;
    assert_eq!(kernel::attached(&lab.client_cgroup())?, []);
    lab.curl(&[
        "--fail",
        "--cacert",
        &upstream.ca,
        &format!("https://{HOST}/"),
    ])
    .text()?;
    let lookup = format!("import socket; print(socket.gethostbyname('{HOST}'))");
    assert_eq!(lab.python(&lookup).text()?, format!("{REAL}\n"));
    Ok(())
}

#[test]
fn other_programs_on_the_same_cgroup_stay() -> Result<()> {
    let lab = Lab::new()?;
    let cgroup = lab.client_cgroup();
    // One was there before the agent, one came while it ran.
    let before = kernel::Neutral::attach(&lab)?;
    let alone = kernel::attached(&cgroup)?;
    assert_eq!(alone.len(), 1, "{alone:?}");
    let agent = lab.agent().start()?;
    let during = kernel::Neutral::attach(&lab)?;
    let all = kernel::attached(&cgroup)?;
    assert!(all.len() > 2, "{all:?}");
    let status = lab.egressctl(&["status", "-o", "json"])?.text()?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let others = status["capture"]["others"].as_array().map_or(0, Vec::len);
    assert!(others >= 2, "{status}");
    let order = status["capture"]["others"].to_string();
    assert!(order.contains("runs before egress"), "{order}");
    assert!(order.contains("runs after egress"), "{order}");
    agent.stop()?;
    lab.clean_up()?;
    let left = kernel::attached(&cgroup)?;
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&alone[0]), "{left:?} without {alone:?}");
    drop((before, during));
    assert_eq!(kernel::attached(&cgroup)?, []);
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_cgroup_stops_and_says_why() -> Result<()> {
    // Both would give out the same virtual addresses.
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
    let authority = Authority::new(&lab, "world")?;
    let first = lab
        .agent()
        .policy("api", &policy::tls_origination(HOST, &authority.path()))?
        .start()?;
    let before = kernel::attached(&lab.client_cgroup())?;
    let said = match lab.second_agent() {
        Ok(_) => panic!("it started"),
        Err(error) => format!("{error:#}"),
    };
    assert!(said.contains("another program on the same hooks"), "{said}");
    assert_eq!(kernel::attached(&lab.client_cgroup())?, before);
    first.stop()
}
