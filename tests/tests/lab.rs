//! The lab itself, with no agent: servers answer, nothing leads out, nothing
//! is left behind.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::Nginx;
use lab::postgres::Postgres;
use lab::process::{DEADLINE, wait_for};
use lab::tcp::{Behaviour, Server};
use lab::{BLACK_HOLE, Group, Lab, RESOLVER, Result, ensure, kernel};

#[test]
fn curl_reaches_nginx_by_name_over_verified_tls() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let certificate = authority.issue(&["api.example.com"])?;
    let dns = NameServer::start(&lab, RESOLVER, "203.0.113.10 api.example.com\n")?;
    let nginx = Nginx::new(&lab, "api")
        .https("203.0.113.10:443", &certificate)?
        .https("[2001:db8:1::10]:443", &certificate)?
        .start()?;
    let ca = authority.path().display().to_string();

    let answer = lab
        .curl(&["--cacert", &ca, "https://api.example.com/hello"])
        .text()?;
    assert!(answer.contains(r#""protocol":"TLSv1.3""#), "{answer}");
    let request = nginx.request(1)?;
    assert_eq!(request["sni"], "api.example.com");
    assert_eq!(request["client"], lab::CLIENT);
    assert_eq!(request["status"], 200);
    assert!(dns.queries()?.contains(&"A api.example.com".to_owned()));

    lab.curl(&[
        "--cacert",
        &ca,
        "--resolve",
        "api.example.com:443:[2001:db8:1::10]",
        "https://api.example.com/",
    ])
    .text()?;
    assert_eq!(nginx.request(2)?["client"], lab::CLIENT6);
    nginx.stop()
}

#[test]
fn bad_certificates_are_bad() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let _nginx = Nginx::new(&lab, "bad")
        .https(
            "203.0.113.10:443",
            &authority.issue_expired(&["expired.example.com"])?,
        )?
        .https(
            "203.0.113.11:443",
            &authority.issue(&["other.example.com"])?,
        )?
        .start()?;
    let ca = authority.path().display().to_string();
    for (host, address) in [
        ("expired.example.com", "203.0.113.10"),
        ("wrong.example.com", "203.0.113.11"),
    ] {
        let resolve = format!("{host}:443:{address}");
        let url = format!("https://{host}/");
        let finished = lab
            .curl(&["--cacert", &ca, "--resolve", &resolve, &url])
            .output()?;
        assert_eq!(finished.code(), 60, "{host}: {finished:?}");
    }
    Ok(())
}

#[test]
fn name_servers_can_be_changed_frozen_and_chosen() -> Result<()> {
    let lab = Lab::new()?;
    let first = NameServer::start(&lab, RESOLVER, "203.0.113.1 a.example.com\n")?;
    let _second = NameServer::start(&lab, "2001:db8:1::53", "203.0.113.2 a.example.com\n")?;
    let lookup = |lab: &Lab| {
        lab.python("import socket; print(socket.gethostbyname('a.example.com'))")
            .output()
    };
    assert_eq!(lookup(&lab)?.text()?, "203.0.113.1\n");
    first.set("203.0.113.3 a.example.com\n")?;
    assert_eq!(lookup(&lab)?.text()?, "203.0.113.3\n");
    first.set("")?;
    ensure!(lookup(&lab)?.text().is_err(), "the name is gone");
    lab.set_resolvers(&["2001:db8:1::53"])?;
    assert_eq!(lookup(&lab)?.text()?, "203.0.113.2\n");
    first.set("203.0.113.3 a.example.com\n")?;
    first.freeze()?;
    // glibc gives up on the silent one after two seconds and asks the other.
    lab.set_resolvers(&[RESOLVER, "2001:db8:1::53"])?;
    let finished = lookup(&lab)?;
    assert!(finished.elapsed >= Duration::from_secs(2), "{finished:?}");
    assert_eq!(finished.text()?, "203.0.113.2\n");
    first.thaw()?;
    assert_eq!(lookup(&lab)?.text()?, "203.0.113.3\n");
    first.stop()
}

#[test]
fn two_databases_hold_different_data() -> Result<()> {
    let lab = Lab::new()?;
    for (address, name) in [("10.0.0.1", "orders"), ("10.0.0.2", "users")] {
        let _server = Postgres::start(
            &lab,
            address,
            &format!("CREATE TABLE who (name text); INSERT INTO who VALUES ('{name}');"),
        )?;
        assert_eq!(
            lab.psql(address, "SELECT name FROM who").text()?,
            format!("{name}\n")
        );
    }
    Ok(())
}

#[test]
fn small_servers_behave_as_told() -> Result<()> {
    let lab = Lab::new()?;
    let echo = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let _count = Server::start(&lab, "203.0.113.20:7001", Behaviour::CountAtEnd)?;
    let _reset = Server::start(&lab, "203.0.113.20:7002", Behaviour::ResetAfterRead)?;
    let script = r#"
import socket
def talk(port, data):
    s = socket.create_connection(("203.0.113.20", port), 5)
    s.sendall(data)
    try:
        s.shutdown(socket.SHUT_WR)
    except OSError:
        return "reset"  # it came before
    got = b""
    while True:
        try:
            part = s.recv(65536)
        except ConnectionResetError:
            return "reset"
        if not part:
            return got.decode()
        got += part
print(talk(7000, b"ping"), talk(7001, b"x" * 100000).strip(), talk(7002, b"ping"))
try:
    socket.create_connection(("203.0.113.20", 9), 5)
except ConnectionRefusedError:
    print("refused")
"#;
    assert_eq!(lab.python(script).text()?, "ping 100000 reset\nrefused\n");
    assert_eq!(echo.received(), [b"ping".to_vec()]);
    Ok(())
}

#[test]
fn nothing_leads_out() -> Result<()> {
    let lab = Lab::new()?;
    for address in [BLACK_HOLE, "[2001:db8:dead::1]"] {
        let url = format!("http://{address}/");
        let finished = lab
            .curl_in(Group::Outside, &["--connect-timeout", "1", &url])
            .output()?;
        assert_eq!(finished.code(), 28, "{address}: {finished:?}");
    }
    let routes = lab
        .outsider("ip")
        .args(["route", "show", "default"])
        .text()?;
    assert_eq!(routes.trim(), "default via 192.0.2.1 dev eth0");
    let routes = lab
        .spawn(Group::Servers, "ip")
        .args(["route", "show", "default"])
        .text()?;
    assert_eq!(routes.trim(), "");
    Ok(())
}

#[test]
fn groups_are_cgroups_and_nothing_is_left_behind() -> Result<()> {
    let (directory, namespaces, cgroup, sleeper);
    {
        let lab = Lab::new()?;
        let membership = lab.client("cat").arg("/proc/self/cgroup").text()?;
        assert!(
            membership.contains(&format!("0::/{}/clients", lab.name())),
            "{membership}"
        );
        let membership = lab.outsider("cat").arg("/proc/self/cgroup").text()?;
        assert!(
            membership.contains(&format!("0::/{}/outside", lab.name())),
            "{membership}"
        );
        assert_eq!(kernel::attached(&lab.client_cgroup())?, []);
        // A process that its starter forgets, with a child of its own.
        let process = lab.client("sh").args(["-c", "sleep 1000 & wait"]).start()?;
        sleeper = process.id();
        wait_for("the child of the process", DEADLINE, || {
            let members = std::fs::read_to_string(lab.client_cgroup().join("cgroup.procs"))?;
            Ok((members.lines().count() == 2).then_some(()))
        })?;
        std::mem::forget(process);
        directory = lab.directory().to_owned();
        namespaces = [lab.app().path(), lab.world().path()];
        cgroup = lab.client_cgroup();
        assert!(cgroup.exists() && namespaces.iter().all(|path| path.exists()));
    }
    assert!(!directory.exists());
    assert!(!cgroup.exists());
    assert!(namespaces.iter().all(|path| !path.exists()));
    // Dead, if not yet reaped by this process.
    let state = std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    Ok(())
}

#[test]
fn a_killed_maker_leaves_nothing_behind() -> Result<()> {
    // This very program, asked for the test below, which never ends by itself.
    let lab = Lab::new()?;
    let mut maker = lab
        .outsider(std::env::current_exe()?)
        .args(["--nocapture", "--exact", "make_a_lab_and_wait_if_asked"])
        .env(MAKE_AND_WAIT, "1")
        .interactive()
        .start()?;
    maker.expect_line("made")?;
    let pid = maker.id();
    let of_maker = |folder: &Path| -> Result<usize> {
        let beginning = format!("egress-lab.{pid}.");
        Ok(std::fs::read_dir(folder)?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&beginning))
            .count())
    };
    assert_eq!(of_maker("/run/netns".as_ref())?, 2);
    maker.kill();
    wait_for("the janitor", DEADLINE, || {
        let left = of_maker("/run/netns".as_ref())? + of_maker(&std::env::temp_dir())?;
        Ok((left == 0).then_some(()))
    })
}

/// Set for the process that [`a_killed_maker_leaves_nothing_behind`] kills.
const MAKE_AND_WAIT: &str = "EGRESS_LAB_MAKE_AND_WAIT";

#[test]
fn make_a_lab_and_wait_if_asked() -> Result<()> {
    let _lab = Lab::new()?;
    if std::env::var_os(MAKE_AND_WAIT).is_some() {
        println!("\nmade");
        std::thread::sleep(DEADLINE);
    }
    Ok(())
}

#[test]
fn the_dns_client_reads_what_a_real_server_says() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.1 a.example.com\n")?;
    let script = format!(
        r#"
for ways in ({{}}, {{"connected": True}}, {{"tcp": True}}, {{"edns": 1232}}):
    answer = query("{RESOLVER}", "a.example.com", A, **ways)
    assert answer.addresses() == ["203.0.113.1"], vars(answer)
    assert answer.ttls == [1] and answer.rcode == NOERROR, vars(answer)
    assert (answer.edns is not None) == ("edns" in ways), vars(answer)
    assert query("{RESOLVER}", "b.example.com", A, **ways).rcode == NXDOMAIN
"#
    );
    lab.dns_python(&script).text().map(drop)
}

#[test]
fn leftovers_of_a_killed_run_are_removed() -> Result<()> {
    // A lab of process 4294967295, which cannot exist.
    let name = format!("egress-lab.4294967295.1.{}", std::process::id());
    let namespace = format!("{name}.app");
    let status = std::process::Command::new("ip")
        .args(["netns", "add", &namespace])
        .status()?;
    ensure!(status.success(), "ip netns add");
    let directory = std::env::temp_dir().join(&name);
    std::fs::create_dir(&directory)?;
    let _lab = Lab::new()?;
    assert!(!directory.exists());
    assert!(!Path::new("/run/netns").join(&namespace).exists());
    Ok(())
}
