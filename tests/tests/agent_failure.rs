//! What happens while no agent is there, by the services' own policy.

use std::time::{Duration, Instant};

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, ensure, policy};
use rustix::process::Signal;

/// Connects to each service by the virtual address that it had while the agent
/// lived, and prints what became of it.
const CLIENT: &str = r#"
import socket, sys
names = ("direct", "closed", "open")
ports = {"direct": 7001, "closed": 7000, "open": 7002}
address = {n: (socket.gethostbyname(n + ".example.com"), ports[n]) for n in names}
def state():
    out = []
    for n in names:
        try:
            with socket.create_connection(address[n], 3) as s:
                s.sendall(b"hello")
                out.append(n + "=" + s.recv(5).decode())
        except OSError as error:
            out.append(n + "=" + type(error).__name__)
    print(*out, flush=True)
state()
for line in sys.stdin:
    state()
"#;

struct Scene {
    _servers: [Server; 3],
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let dns = NameServer::start(
            &lab,
            RESOLVER,
            "203.0.113.20 closed.example.com\n203.0.113.21 direct.example.com\n\
             203.0.113.22 open.example.com\n",
        )?;
        let servers = [
            Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?,
            Server::start(&lab, "203.0.113.21:7001", Behaviour::Echo)?,
            Server::start(&lab, "203.0.113.22:7002", Behaviour::Echo)?,
        ];
        lab.write_policy("closed", &policy::tcp_proxied("closed.example.com", 7000))?;
        lab.write_policy("direct", &policy::tcp("direct.example.com", 7001))?;
        let open = policy::tcp_proxied("open.example.com", 7002);
        let open = open.replacen(
            "metadata:",
            "metadata:\n  annotations: { egress-agent.dev/on-agent-failure: open }",
            1,
        );
        lab.write_policy("open", &open)?;
        Ok(Self {
            _servers: servers,
            _dns: dns,
            lab,
        })
    }

    fn agent(&self) -> Result<Agent> {
        self.lab
            .agent()
            .setting("--heartbeat-limit", "500ms")
            .start()
    }
}

const ALIVE: &str = "direct=hello closed=hello open=hello";
const DOWN: &str = "direct=hello closed=ConnectionRefusedError open=hello";

#[test]
fn killed_or_stopped_the_kernel_does_as_declared_within_a_second() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.agent()?;
    let mut client = scene.lab.python(CLIENT).interactive().start()?;
    client.expect_line(ALIVE)?;

    agent.signal(Signal::STOP)?;
    std::thread::sleep(Duration::from_secs(1));
    client.send_line("stopped")?;
    client.expect_line(DOWN)?;
    agent.signal(Signal::CONT)?;
    std::thread::sleep(Duration::from_millis(500));
    client.send_line("goes on")?;
    client.expect_line(ALIVE)?;

    let started = Instant::now();
    agent.kill();
    std::thread::sleep(Duration::from_secs(1).saturating_sub(started.elapsed()));
    client.send_line("killed")?;
    client.expect_line(DOWN)?;

    // The next one goes on with what it finds, with no gap for `direct`.
    let next = scene.agent()?;
    client.send_line("again")?;
    client.expect_line(ALIVE)?;
    next.record("a direct connection of the time between", |record| {
        record.service().contains("direct.example.com")
    })?;
    ensure!(
        !next.log()?.contains("panicked"),
        "the log: {}",
        next.log()?
    );
    next.stop()?;
    // Stopped cleanly: declared behaviour holds until the pins are removed.
    client.send_line("stopped cleanly")?;
    client.expect_line(DOWN)?;
    let cleaned = scene
        .lab
        .outsider(lab::agent::program("egress-agent")?)
        .arg("--cleanup")
        .arg("--bpffs")
        .arg(scene.lab.directory().join("bpffs/egress"))
        .text()?;
    ensure!(cleaned.starts_with("removed "), "{cleaned}");
    Ok(())
}
