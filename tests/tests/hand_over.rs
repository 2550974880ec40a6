//! A second agent takes over from the first: nothing is refused, nothing that
//! is open is cut before the drain deadline.

use std::time::{Duration, Instant};

use lab::dns::NameServer;
use lab::process::DEADLINE;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, ensure, policy};

/// Makes new connections to a direct and a proxied service, with a lookup
/// each, until its input ends; then prints how many there were and every
/// failure.
const LOAD: &str = r#"
import socket, sys, threading, time
stop = threading.Event()
done, failures, lock = [0], [], threading.Lock()
def client(host, port, number):
    while not stop.is_set():
        started = time.time()
        step = "lookup"
        try:
            address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
            assert address[0].startswith("240.240."), address
            step = "connect"
            with socket.create_connection(address, 5) as s:
                assert s.getpeername() == address
                step = "exchange"
                s.sendall(b"hello")
                assert s.recv(5) == b"hello"
            with lock:
                done[0] += 1
        except Exception as error:
            with lock:
                failures.append(f"{started:.3f} {host} {step}: {error!r} after {time.time() - started:.3f} s")
        time.sleep(PAUSE)
threads = [threading.Thread(target=client, args=(host, port, n))
           for n in range(THREADS) for host, port in (("direct.example.com", 7001), ("proxied.example.com", 7000))]
for t in threads: t.start()
print("running", flush=True)
sys.stdin.readline()
stop.set()
for t in threads: t.join()
print(done[0], file=sys.stderr)
for failure in failures: print(failure, file=sys.stderr)
print("failures", len(failures), "enough", done[0] > 50, flush=True)
"#;

struct Scene {
    _servers: [Server; 2],
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let dns = NameServer::start(
            &lab,
            RESOLVER,
            "203.0.113.20 proxied.example.com\n203.0.113.21 direct.example.com\n",
        )?;
        let servers = [
            Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?,
            Server::start(&lab, "203.0.113.21:7001", Behaviour::Echo)?,
        ];
        lab.write_policy("proxied", &policy::tcp_proxied("proxied.example.com", 7000))?;
        lab.write_policy("direct", &policy::tcp("direct.example.com", 7001))?;
        Ok(Self {
            _servers: servers,
            _dns: dns,
            lab,
        })
    }
}

#[test]
fn agents_take_over_under_load_and_nothing_fails() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    let (times, threads) = if lab::long() { (100, 25) } else { (5, 4) };
    let mut agent = lab.agent().setting("--drain-deadline", "5s").start()?;
    let script = LOAD
        .replace("THREADS", &threads.to_string())
        .replace("PAUSE", "0.1");
    let report = lab.directory().join("load.txt");
    let mut load = lab
        .python(&script)
        .interactive()
        .deadline(Duration::from_secs(3600))
        .stderr(std::fs::File::create(&report)?)
        .start()?;
    load.expect_line("running")?;
    for _ in 0..times {
        let next = lab.agent().setting("--drain-deadline", "5s").start()?;
        agent.finish()?;
        agent = next;
    }
    std::thread::sleep(Duration::from_millis(500));
    load.send_line("stop")?;
    if let Err(error) = load.expect_line("failures 0 enough True") {
        lab::bail!(
            "{error}\n{}\n{}",
            std::fs::read_to_string(&report)?,
            agent.log()?
        );
    }
    ensure!(load.wait(DEADLINE)?.success());
    let log = agent.log()?;
    ensure!(
        log.matches("taking over from the agent that runs").count() == times,
        "{log}"
    );
    agent.stop()
}

#[test]
fn an_open_connection_goes_on_in_the_agent_that_drains() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    let first = lab.agent().setting("--drain-deadline", "20s").start()?;
    let script = r#"
import socket, sys
s = socket.create_connection(("proxied.example.com", 7000), 5)
def echo(text):
    s.sendall(text)
    assert s.recv(len(text)) == text
echo(b"one")
print("open", flush=True)
sys.stdin.readline()
echo(b"two")
print("goes on", flush=True)
"#;
    let mut client = lab.python(script).interactive().start()?;
    client.expect_line("open")?;
    let second = lab.agent().start()?;
    client.send_line("go on")?;
    client.expect_line("goes on")?;
    ensure!(client.wait(DEADLINE)?.success());
    let started = Instant::now();
    first.finish()?;
    ensure!(
        started.elapsed() < Duration::from_secs(5),
        "it ends with its last connection"
    );
    // The admin socket and the metrics are the second one's.
    lab.egressctl(&["status"])?.text()?;
    second.metrics(lab)?;
    second.stop()
}

#[test]
fn an_agent_that_does_not_get_ready_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    let agent = lab.agent().start()?;
    let script = r#"
import socket
for host, port in (("direct.example.com", 7001), ("proxied.example.com", 7000)):
    with socket.create_connection((host, port), 5) as s:
        assert s.getpeername()[0].startswith(("240.240.", "2001:2:")), s.getpeername()
        s.sendall(b"hello")
        assert s.recv(5) == b"hello"
"#;
    lab.python(script).text()?;
    // It asks to take over, and then cannot open its access log.
    let failed = lab
        .agent()
        .setting("--access-log", "/nonexistent/directory/log")
        .start();
    ensure!(failed.is_err(), "it cannot start");
    lab::process::wait_for("the first agent to go on", DEADLINE, || {
        Ok(agent.log()?.contains("this one goes on").then_some(()))
    })?;
    lab.python(script).text()?;
    agent.stop()
}
