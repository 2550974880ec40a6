//! Start, drain and stop.
#![allow(clippy::panic, reason = "tests")]

use std::time::{Duration, Instant};

use lab::dns::NameServer;
use lab::process::DEADLINE;
use lab::scene::{HOST, TlsUpstream};
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, policy};
use rustix::process::Signal;

#[test]
fn sigterm_drains_open_connections() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.20 echo.example.com\n")?;
    let _server = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy("echo", &policy::tcp_proxied("echo.example.com", 7000))?
        .start()?;
    let script = r#"
import socket, sys, time
s = socket.create_connection(("echo.example.com", 7000), 5)
s.sendall(b"one")
assert s.recv(3) == b"one"
print("open", flush=True)
# until the test says that the agent was told to stop
sys.stdin.readline()
s.sendall(b"two")
assert s.recv(3) == b"two"
"#;
    let mut client = lab.python(script).interactive().start()?;
    client.expect_line("open")?;
    agent.signal(Signal::TERM)?;
    lab::process::wait_for("capture to end", DEADLINE, || {
        // New connections are no longer taken: the name has its real address.
        let answer = lab
            .python("import socket; print(socket.gethostbyname('echo.example.com'))")
            .output()?;
        Ok((answer.stdout == "203.0.113.20\n").then_some(()))
    })?;
    client.send_line("go on")?;
    let status = client.wait(DEADLINE)?;
    assert!(status.success(), "the open connection was cut");
    let started = Instant::now();
    agent.finish()?;
    assert!(started.elapsed() < Duration::from_secs(5));
    Ok(())
}

#[test]
fn a_connection_that_does_not_end_is_cut_at_the_drain_deadline() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.20 echo.example.com\n")?;
    let _server = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy("echo", &policy::tcp_proxied("echo.example.com", 7000))?
        .setting("--drain-deadline", "1s")
        .start()?;
    let script = r#"
import socket
s = socket.create_connection(("echo.example.com", 7000), 5)
s.sendall(b"one")
assert s.recv(3) == b"one"
print("open", flush=True)
s.settimeout(20)
try:
    assert s.recv(1) == b""
except ConnectionResetError:
    pass
"#;
    let mut client = lab.python(script).interactive().start()?;
    client.expect_line("open")?;
    let started = Instant::now();
    agent.stop()?;
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(900), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    assert!(client.wait(DEADLINE)?.success());
    Ok(())
}

#[test]
fn sighup_reloads() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let mut agent = upstream.agent()?.start()?;
    agent.signal(Signal::HUP)?;
    upstream
        .lab
        .curl(&["--fail", &format!("http://{HOST}/")])
        .text()?;
    assert!(agent.is_running());
    agent.stop()
}

#[test]
fn a_start_that_cannot_succeed_says_why() -> Result<()> {
    let lab = Lab::new()?;
    let finished = lab.agent().setting("--cgroup", "/nonexistent").fail()?;
    assert_ne!(finished.code(), 0, "{finished:?}");
    assert!(finished.stderr.contains("/nonexistent"), "{finished:?}");
    let finished = lab.agent().setting("--no-such-flag", "1").fail()?;
    assert_eq!(finished.code(), 2, "{finished:?}");
    Ok(())
}

#[test]
fn the_kernel_programs_log_when_they_are_told_to() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "203.0.113.20 echo.example.com\n")?;
    let _server = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy("echo", &policy::tcp_proxied("echo.example.com", 7000))?
        .setting("--kernel-log", "on")
        .log_filter("debug")
        .start()?;
    lab.python("import socket; socket.create_connection(('echo.example.com', 7000), 5).close()")
        .text()?;
    lab::process::wait_for("a line of the connect hook", DEADLINE, || {
        Ok(agent.log()?.contains("to the agent, port").then_some(()))
    })?;
    agent.stop()
}
