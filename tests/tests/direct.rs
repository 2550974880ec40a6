//! Direct services with the tools that people use: the real endpoint on the
//! wire, the dialled address in the application, and no work for the agent.

use std::fs;
use std::time::Duration;

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::postgres::Postgres;
use lab::process::wait_for;
use lab::tcp::{Behaviour, Server};
use lab::{Context, Group, Lab, RESOLVER, Result, ensure, policy};

const NAMES: &str = "203.0.113.40 files.example.com
203.0.113.41 db.example.com
";

/// CPU nanoseconds that the agent's threads have run.
fn cpu(agent: &Agent) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", agent.id()))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let ran: u64 = text
            .split_whitespace()
            .next()
            .context("schedstat")?
            .parse()?;
        sum += ran;
    }
    Ok(sum)
}

/// TCP connections of the clients' namespace to `port`, as the kernel has them:
/// what is on the wire.
fn on_the_wire(lab: &Lab, port: u16) -> Result<String> {
    let text = lab
        .outsider("ss")
        .args(["-Htn", "state", "established"])
        .arg(format!("( dport = :{port} )"))
        .text()?;
    // An IPv6 socket on an IPv4 endpoint has its address in mapped form.
    Ok(text.replace("[::ffff:", "").replace("]:", ":"))
}

#[test]
fn iperf3_goes_to_the_endpoint_and_costs_the_agent_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, NAMES)?;
    let agent = lab
        .agent()
        .policy("files", &policy::tcp("files.example.com", 5201))?
        .start()?;
    let _server = lab
        .spawn(Group::Servers, "iperf3")
        .args(["--server", "--bind", "203.0.113.40"])
        .stdout(fs::File::create(lab.directory().join("iperf3.server"))?)
        .start()?;
    wait_for("iperf3 to listen", Duration::from_secs(10), || {
        let listens = lab
            .spawn(Group::Servers, "ss")
            .args(["-Hltn", "( sport = :5201 )"])
            .text()?;
        Ok((!listens.is_empty()).then_some(()))
    })?;
    let report = lab.directory().join("iperf3.json");
    let transfer = |name: &str| {
        lab.client("iperf3")
            .args(["--client", name, "--time", "3", "--json"])
            .stdout(fs::File::create(&report)?)
            .start()
    };
    let mut client = transfer("files.example.com")?;
    wait_for("the streams", Duration::from_secs(10), || {
        // The control connection and the stream.
        let lines = on_the_wire(&lab, 5201)?;
        Ok((lines.lines().count() >= 2).then_some(()))
    })?;
    let before = cpu(&agent)?;
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu(&agent)? - before;
    let wire = on_the_wire(&lab, 5201)?;
    ensure!(client.wait(Duration::from_secs(20))?.success());

    ensure!(
        wire.lines().count() >= 2
            && wire
                .lines()
                .all(|line| line.contains("192.0.2.2:") && line.contains(" 203.0.113.40:5201")),
        "on the wire: {wire}"
    );
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&report)?)?;
    // iperf3 asks getpeername.
    let peer = report["start"]["connected"][0]["remote_host"]
        .as_str()
        .context("no peer")?;
    ensure!(
        peer.starts_with("240.240.") || peer.starts_with("2001:2:"),
        "the peer that iperf3 saw: {peer}"
    );
    let bytes = report["end"]["sum_received"]["bytes"]
        .as_u64()
        .context("no bytes")?;
    ensure!(bytes > 1_000_000, "{bytes}");
    // Its heartbeat and clocks go on: some per mille of a processor.
    ensure!(used < 50_000_000, "the agent used {used} ns in a second");
    println!("{bytes} bytes; the agent used {used} ns of CPU in a second of it");
    let record = agent.record("the stream", |record| {
        record.service() == "files.example.com" && record.sent() > 1_000_000
    })?;
    ensure!(record.endpoint() == "203.0.113.40:5201", "{record}");
    agent.stop()
}

#[test]
fn psql_goes_to_the_endpoint_and_is_told_what_it_dialled() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, NAMES)?;
    let _server = Postgres::start(
        &lab,
        "203.0.113.41",
        "CREATE TABLE numbers AS SELECT generate_series(1, 200000) AS number;",
    )?;
    let agent = lab
        .agent()
        .policy("db", &policy::tcp("db.example.com", 5432))?
        .start()?;
    let query = "SELECT inet_client_addr() || ' ' || inet_server_addr() || ' ' || \
                 (SELECT sum(number) FROM numbers)";
    let answer = lab
        .client("psql")
        .args(["--no-psqlrc", "--tuples-only", "--no-align"])
        .args(["--host", "db.example.com", "--username", "postgres"])
        .args(["--command", query])
        .text()?;
    ensure!(
        answer.trim() == "192.0.2.2/32 203.0.113.41/32 20000100000"
            || answer.trim() == "192.0.2.2 203.0.113.41 20000100000",
        "{answer}"
    );
    // The same library, its socket looked at from within and from without.
    let script = r#"
import os, psycopg, socket, sys
with psycopg.connect("host=db.example.com user=postgres sslmode=disable") as connection:
    peer = socket.socket(fileno=os.dup(connection.pgconn.socket)).getpeername()
    assert peer[0].startswith(("240.240.", "2001:2:")) and peer[1] == 5432, peer
    print("connected", flush=True)
    sys.stdin.readline()
    rows = connection.execute("SELECT number FROM numbers").fetchall()
    assert len(rows) == 200000
    print("read", flush=True)
    sys.stdin.readline()
"#;
    let mut client = lab.python(script).interactive().start()?;
    client.expect_line("connected")?;
    let wire = on_the_wire(&lab, 5432)?;
    ensure!(wire.contains(" 203.0.113.41:5432"), "on the wire: {wire}");
    let before = cpu(&agent)?;
    client.send_line("read")?;
    client.expect_line("read")?;
    let used = cpu(&agent)? - before;
    client.send_line("end")?;
    ensure!(client.wait(Duration::from_secs(10))?.success());
    println!("the agent used {used} ns of CPU while 200,000 rows were read");
    agent.record("the second connection", |record| {
        record.received() > 1_000_000
    })?;
    agent.stop()
}

/// Who ended a connection is told as for proxied ones.
#[test]
fn a_reset_is_told_in_the_record() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, NAMES)?;
    let _server = Server::start(&lab, "203.0.113.40:7000", Behaviour::ResetAfterRead)?;
    let _echo = Server::start(&lab, "203.0.113.41:7001", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy("files", &policy::tcp("files.example.com", 7000))?
        .policy("db", &policy::tcp("db.example.com", 7001))?
        .start()?;
    let script = r#"
import socket, struct
s = socket.create_connection(("files.example.com", 7000), 5)
s.sendall(b"hello")
try:
    s.recv(1)
    raise SystemExit("no reset")
except ConnectionResetError:
    pass
s = socket.create_connection(("db.example.com", 7001), 5)
s.sendall(b"hello")
assert s.recv(5) == b"hello"
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.close()
s = socket.create_connection(("db.example.com", 7001), 5)
s.sendall(b"hello!")
assert s.recv(6) == b"hello!"
s.close()
"#;
    lab.python(script).text()?;
    for (host, sent, received, flag) in [
        ("files.example.com", 5, 0, "UC"),
        ("db.example.com", 5, 5, "DC"),
        ("db.example.com", 6, 6, "-"),
    ] {
        let record = agent.record("a record", |record| {
            record.service() == host && record.sent() == sent
        })?;
        ensure!(
            record.flag() == flag && record.received() == received,
            "{record}"
        );
    }
    agent.stop()
}
