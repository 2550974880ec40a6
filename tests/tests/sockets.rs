//! Every kind of socket that programs use, and what the ends of a connection
//! mean: half-close, reset, refusal.
#![allow(clippy::panic, reason = "tests")]

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, policy};

const HOST: &str = "echo.example.com";

struct Service {
    agent: Agent,
    server: Server,
    _dns: NameServer,
    lab: Lab,
}

/// The kernel alone carries it.
fn service(behaviour: Behaviour) -> Result<Service> {
    with_policy(behaviour, &policy::tcp(HOST, 7000))
}

/// The agent carries it, since the kernel cannot enforce an idle limit; only
/// the agent sees which side reset a connection.
fn proxied(behaviour: Behaviour) -> Result<Service> {
    with_policy(behaviour, &policy::tcp_proxied(HOST, 7000))
}

fn with_policy(behaviour: Behaviour, document: &str) -> Result<Service> {
    let lab = Lab::new()?;
    let dns = NameServer::start(&lab, RESOLVER, &format!("203.0.113.20 {HOST}\n"))?;
    let server = Server::start(&lab, "203.0.113.20:7000", behaviour)?;
    let agent = lab.agent().policy("echo", document)?.start()?;
    Ok(Service {
        agent,
        server,
        _dns: dns,
        lab,
    })
}

/// Runs a script that finds the virtual addresses in `V4` and `V6`.
fn run(service: &Service, script: &str) -> Result<String> {
    service
        .lab
        .python(&format!(
            r#"
import errno, os, select, socket, struct, sys, time
V4 = socket.getaddrinfo("{HOST}", 7000, socket.AF_INET, socket.SOCK_STREAM)[0][4]
V6 = socket.getaddrinfo("{HOST}", 7000, socket.AF_INET6, socket.SOCK_STREAM)[0][4]

def echo(s, data=b"ping"):
    s.settimeout(5)
    s.sendall(data)
    got = b""
    while len(got) < len(data):
        part = s.recv(65536)
        assert part
        got += part
    assert got == data

{script}
"#
        ))
        .text()
}

#[test]
fn ipv4_ipv6_and_mapped_sockets_reach_the_service() -> Result<()> {
    let service = service(Behaviour::Echo)?;
    run(
        &service,
        r#"
for family, address in (
    (socket.AF_INET, V4),
    (socket.AF_INET6, V6),
    (socket.AF_INET6, ("::ffff:" + V4[0], 7000)),
):
    with socket.socket(family) as s:
        s.settimeout(5)
        s.connect(address)
        assert s.getpeername()[:2] == address[:2], (s.getpeername(), address)
        echo(s)
"#,
    )?;
    assert_eq!(service.server.received(), vec![b"ping".to_vec(); 3]);
    service.agent.wait_records(3)?;
    service.agent.stop()
}

#[test]
fn non_blocking_connects_and_fast_open_reach_the_service() -> Result<()> {
    let service = service(Behaviour::Echo)?;
    run(
        &service,
        r#"
for family, address in ((socket.AF_INET, V4), (socket.AF_INET6, V6)):
    with socket.socket(family) as s:
        s.setblocking(False)
        code = s.connect_ex(address)
        assert code in (0, errno.EINPROGRESS), code
        poll = select.poll()
        poll.register(s, select.POLLOUT)
        assert poll.poll(5000)
        assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert s.getpeername()[:2] == address[:2]
        echo(s)
    # connect and first data in one call
    with socket.socket(family) as s:
        # blocking: without a cookie it would be EINPROGRESS otherwise
        assert s.sendto(b"fast", socket.MSG_FASTOPEN, address) == 4
        s.settimeout(5)
        assert s.recv(4) == b"fast"
        assert s.getpeername()[:2] == address[:2]
    # the option that defers connect to the first write
    TCP_FASTOPEN_CONNECT = 30
    with socket.socket(family) as s:
        s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        s.connect(address)
        assert s.send(b"first") == 5
        s.settimeout(5)
        assert s.recv(5) == b"first"
    # bound to a source address first
    with socket.socket(family) as s:
        s.bind(("", 0))
        s.settimeout(5)
        s.connect(address)
        echo(s)
"#,
    )?;
    assert_eq!(service.server.received().len(), 8);
    service.agent.stop()
}

#[test]
fn one_socket_connected_again_reaches_the_service_again() -> Result<()> {
    let service = service(Behaviour::Echo)?;
    run(
        &service,
        r#"
s = socket.socket()
for number in range(3):
    s.settimeout(5)
    s.connect(V4)
    echo(s, b"round %d" % number)
    # AF_UNSPEC dissolves the association (connect(2)).
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    unspec = struct.pack("=H14x", socket.AF_UNSPEC)
    assert libc.connect(s.fileno(), unspec, len(unspec)) == 0
"#,
    )?;
    assert_eq!(service.server.received().len(), 3);
    service.agent.stop()
}

#[test]
fn half_close_passes_both_ways() -> Result<()> {
    let service = proxied(Behaviour::CountAtEnd)?;
    run(
        &service,
        r#"
with socket.create_connection(V4, 5) as s:
    s.sendall(b"x" * 3000000)
    s.shutdown(socket.SHUT_WR)
    assert s.makefile("rb").read() == b"3000000\n"
"#,
    )?;
    let record = service.agent.record("the record", |_| true)?;
    assert_eq!(record.flag(), "-", "{record}");
    assert_eq!(record.sent(), 3_000_000, "{record}");
    assert_eq!(record.received(), 8, "{record}");
    service.agent.stop()
}

#[test]
fn a_server_that_speaks_first_is_heard() -> Result<()> {
    let service = service(Behaviour::SpeakFirst)?;
    run(
        &service,
        r#"
with socket.create_connection(V4, 5) as s:
    start = time.monotonic()
    assert s.recv(6) == b"hello\n"
    # Not held back to look for a protocol in the client's bytes.
    assert time.monotonic() - start < 1
    echo(s)
"#,
    )?;
    service.agent.stop()
}

#[test]
fn a_reset_of_the_server_is_a_reset_for_the_client() -> Result<()> {
    let service = proxied(Behaviour::ResetAfterRead)?;
    run(
        &service,
        r#"
with socket.create_connection(V4, 5) as s:
    s.sendall(b"anything")
    try:
        got = s.recv(100)
        raise SystemExit("no reset but %r" % got)
    except ConnectionResetError:
        pass
"#,
    )?;
    let record = service.agent.record("the record", |_| true)?;
    assert!(["UR", "UC"].contains(&record.flag()), "{record}");
    service.agent.stop()
}

#[test]
fn a_reset_of_the_client_reaches_the_server_and_the_log() -> Result<()> {
    let service = proxied(Behaviour::Echo)?;
    run(
        &service,
        r#"
with socket.create_connection(V4, 5) as s:
    echo(s)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"#,
    )?;
    let record = service.agent.record("the record", |_| true)?;
    assert_eq!(record.flag(), "DC", "{record}");
    service.agent.stop()
}

#[test]
fn udp_to_a_registered_address_is_refused_at_once() -> Result<()> {
    let service = service(Behaviour::Echo)?;
    let finished = run(
        &service,
        r#"
for family, address in (
    (socket.AF_INET, V4),
    (socket.AF_INET6, V6),
    (socket.AF_INET6, ("::ffff:" + V4[0], 7000)),
):
    for connected in (True, False):
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.settimeout(2)
            start = time.monotonic()
            try:
                if connected:
                    s.connect(address)
                    s.send(b"initial")
                else:
                    s.sendto(b"initial", address)
                raise SystemExit(f"not refused: {address} connected={connected}")
            except OSError as error:
                assert not isinstance(error, TimeoutError)
                print(errno.errorcode[error.errno])
            assert time.monotonic() - start < 1
"#,
    )?;
    for code in finished.lines() {
        assert!(["ECONNREFUSED", "EPERM"].contains(&code), "{finished}");
    }
    service.agent.stop()
}

#[test]
fn a_port_that_is_not_registered_is_refused_promptly() -> Result<()> {
    let service = service(Behaviour::Echo)?;
    // A virtual address leads nowhere but to the registered ports: without a
    // refusal, this would only time out.
    run(
        &service,
        r#"
for address in ((V4[0], 9), (V6[0], 9)):
    try:
        socket.create_connection(address, 5)
        raise SystemExit("connected")
    except ConnectionRefusedError:
        pass
"#,
    )?;
    service.agent.stop()
}

#[test]
fn the_listener_of_the_agent_refuses_who_dials_it() -> Result<()> {
    let service = service(Behaviour::Echo)?;
    let listeners = service
        .lab
        .outsider("ss")
        .args([
            "--listening",
            "--tcp",
            "--numeric",
            "--no-header",
            "--processes",
        ])
        .text()?;
    let mut tried = 0;
    for line in listeners.lines().filter(|line| line.contains("egress")) {
        let Some(address) = line.split_whitespace().nth(3) else {
            continue;
        };
        let Some((host, port)) = address.rsplit_once(':') else {
            continue;
        };
        if port == "15020" {
            continue;
        }
        tried += 1;
        let host = host.trim_matches(['[', ']']);
        // It may be accepted and closed, but says nothing and leads nowhere.
        run(
            &service,
            &format!(
                r#"
try:
    s = socket.create_connection(("{host}", {port}), 5)
    s.settimeout(5)
    s.sendall(b"GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")
    assert s.recv(100) == b""
except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
    pass
"#
            ),
        )?;
    }
    assert!(tried >= 2, "{listeners}");
    assert_eq!(service.server.received().len(), 0);
    service.agent.stop()
}
