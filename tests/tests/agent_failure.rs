//! What happens while no agent is there, by the services' own policy.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::memory::Limit;
use lab::process::wait_for;
use lab::tcp::{Behaviour, Server};
use lab::{Context, Lab, RESOLVER, Result, ensure, policy};
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
             203.0.113.22 open.example.com\n203.0.113.21 new.example.com\n",
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
    scene.lab.clean_up()
}

#[test]
fn killed_for_memory_the_kernel_does_as_declared() -> Result<()> {
    let scene = Scene::new()?;
    let mut agent = scene.agent()?;
    let mut client = scene.lab.python(CLIENT).interactive().start()?;
    client.expect_line(ALIVE)?;
    let limit = Limit::new(&scene.lab, agent.id(), 24 << 20)?;
    // More than fits.
    let many: Vec<String> = (0..20_000)
        .map(|n| policy::tcp_static(&format!("h{n}.example.com"), 7000, &["203.0.113.20"]))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let file = scene.lab.write_policy("many", &policy::join(&many))?;
    wait_for("the agent to be killed", Duration::from_mins(1), || {
        Ok((!agent.is_running()).then_some(()))
    })?;
    ensure!(limit.kills()? > 0, "it ended of itself: {}", agent.log()?);
    drop(limit);
    std::thread::sleep(Duration::from_secs(1));
    client.send_line("killed")?;
    client.expect_line(DOWN)?;
    std::fs::remove_file(file)?;
    let next = scene.agent()?;
    client.send_line("again")?;
    client.expect_line(ALIVE)?;
    next.stop()
}

/// State and access log on a disk that gets full.
#[test]
fn a_full_disk_stops_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    let disk = Disk::new(lab)?;
    let start = || {
        lab.agent()
            .setting("--heartbeat-limit", "500ms")
            .setting(
                "--access-log",
                disk.0.join("access.log").display().to_string(),
            )
            .start()
    };
    let agent = start()?;
    let mut client = lab.python(CLIENT).interactive().start()?;
    client.expect_line(ALIVE)?;
    disk.fill()?;
    // A host that has no address yet, connections, records.
    lab.write_policy("new", &policy::tcp("new.example.com", 7001))?;
    wait_for("the new host", Duration::from_secs(20), || {
        let answer = lab
            .python("import socket; print(socket.gethostbyname('new.example.com'))")
            .output()?;
        Ok(answer.stdout.starts_with("240.240.").then_some(()))
    })
    .with_context(|| agent.log().unwrap_or_default())?;
    for _ in 0..20 {
        client.send_line("full")?;
        client.expect_line(ALIVE)?;
    }
    let complaints = wait_for("the agent to complain", Duration::from_secs(20), || {
        let log = agent.log()?;
        Ok(log.to_lowercase().contains("no space left").then_some(log))
    })?;
    ensure!(!complaints.contains("panicked"), "{complaints}");
    // It starts on a full disk, too, and knows what was saved before.
    agent.kill();
    let agent = start()?;
    client.send_line("started again")?;
    client.expect_line(ALIVE)?;
    disk.empty()?;
    let before = std::fs::metadata(disk.0.join("access.log")).map_or(0, |file| file.len());
    client.send_line("room again")?;
    client.expect_line(ALIVE)?;
    wait_for("records again", Duration::from_secs(20), || {
        let length = std::fs::metadata(disk.0.join("access.log")).map_or(0, |file| file.len());
        Ok((length > before).then_some(()))
    })?;
    agent.stop()
}

/// A small file system in the place of the agent's state directory.
struct Disk(PathBuf);

impl Disk {
    fn new(lab: &Lab) -> Result<Self> {
        let state = lab.directory().join("state");
        std::fs::create_dir_all(&state)?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &state, "tmpfs", flags, Some(c"size=128k"))?;
        Ok(Self(state))
    }

    /// Takes every page that is left.
    fn fill(&self) -> Result<()> {
        let full = std::fs::write(self.0.join("ballast"), vec![0_u8; 256 << 10]);
        ensure!(full.is_err(), "the disk is larger than it should be");
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("ballast"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
