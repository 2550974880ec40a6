//! The agent as a unit of systemd: restarts lose nothing, whatever else
//! happens is what the guide says.

use std::time::Duration;

use lab::churn;
use lab::dns::NameServer;
use lab::load::now;
use lab::process::Process;
use lab::systemd::{Systemd, UNIT};
use lab::{Lab, RESOLVER, Result, ensure, policy};

const CHURN: &str = env!("CARGO_BIN_EXE_churn");

const NAMES: &str = "203.0.113.20 proxied.example.com
203.0.113.21 direct.example.com
203.0.113.23 web.example.com
";

const SERVERS: [&str; 3] = ["203.0.113.20:7000", "203.0.113.21:7001", "203.0.113.23:80"];

const TARGETS: [&str; 4] = [
    "tcp:direct.example.com:7001",
    "tcp:proxied.example.com:7000",
    "http:web.example.com:80",
    "dns:proxied.example.com:0",
];

struct Scene {
    systemd: Systemd,
    _servers: Process,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    /// `None`, with a line that says so, where there is no systemd.
    fn new() -> Result<Option<Self>> {
        if !Systemd::is_installed() {
            eprintln!("SKIPPED: systemd is not installed");
            return Ok(None);
        }
        let lab = Lab::new()?;
        churn::widen_ports(&lab)?;
        let dns = NameServer::start(&lab, RESOLVER, NAMES)?;
        let servers = churn::serve(&lab, CHURN, &SERVERS)?;
        lab.write_policy("proxied", &policy::tcp_proxied("proxied.example.com", 7000))?;
        lab.write_policy("direct", &policy::tcp("direct.example.com", 7001))?;
        let web = policy::tcp("web.example.com", 80)
            .replace("name: tcp", "name: http")
            .replace("protocol: TCP", "protocol: HTTP");
        lab.write_policy("web", &web)?;
        let settings = [("EGRESS_DRAIN_DEADLINE", "10s")];
        let systemd = Systemd::start(&lab, &settings)?;
        systemd.systemctl(&["start", UNIT])?;
        Ok(Some(Self {
            systemd,
            _servers: servers,
            _dns: dns,
            lab,
        }))
    }

    fn load(&self) -> Result<churn::Churn> {
        let rate = if lab::long() { 500 } else { 60 };
        churn::start(&self.lab, CHURN, rate, &TARGETS)
    }
}

#[test]
fn restarts_of_the_unit_lose_nothing() -> Result<()> {
    let Some(scene) = Scene::new()? else {
        return Ok(());
    };
    let times = if lab::long() { 100 } else { 3 };
    let first = scene.systemd.property("MainPID")?;
    let load = scene.load()?;
    for _ in 0..times {
        std::thread::sleep(Duration::from_millis(300));
        scene.systemd.systemctl(&["restart", UNIT])?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let seen = load.finish()?;
    ensure!(first != scene.systemd.property("MainPID")?, "another agent");
    ensure!(
        seen.failures.is_empty(),
        "{:#?}\n{}",
        seen.failures,
        scene.systemd.log()?
    );
    ensure!(seen.good.values().all(|good| *good > 10), "{seen:?}");
    println!("{times} restarts; {} good, 0 failed", seen.total());
    // What is kept does not add up.
    let kept: usize = scene.systemd.property("NFileDescriptorStore")?.parse()?;
    ensure!((1..64).contains(&kept), "{kept} descriptors are kept");
    Ok(())
}

/// The unit's agent is killed: connections wait for the next one, or are refused
/// by their policy once the heartbeat is stale, and systemd starts the next one.
#[test]
fn a_killed_agent_is_started_again_and_stays_closed_meanwhile() -> Result<()> {
    let Some(scene) = Scene::new()? else {
        return Ok(());
    };
    let load = scene.load()?;
    std::thread::sleep(Duration::from_secs(1));
    let killed = now();
    scene.systemd.systemctl(&["kill", "--signal=KILL", UNIT])?;
    scene.systemd.wait_for("NRestarts", "1")?;
    scene.systemd.wait_for("ActiveState", "active")?;
    let ready = now();
    std::thread::sleep(Duration::from_secs(1));
    let seen = load.finish()?;
    let unexplained: Vec<_> = seen
        .failures
        .iter()
        .filter(|failure| {
            let in_hand = failure.began <= killed && failure.ended >= killed;
            let between = (killed..ready).contains(&failure.began);
            let direct = failure.target.host == "direct.example.com" && failure.step != "lookup";
            direct || !(in_hand || between && failure.step == "connect")
        })
        .collect();
    ensure!(
        unexplained.is_empty(),
        "killed {killed}, ready {ready}\n{unexplained:#?}\n{}",
        scene.systemd.log()?
    );
    Ok(())
}

/// A stopped unit leaves what is declared in force, at once: systemd lets go of
/// the sockets, and the kernel programs see it.
#[test]
fn a_stopped_unit_leaves_what_is_declared_in_force() -> Result<()> {
    let Some(scene) = Scene::new()? else {
        return Ok(());
    };
    let script = r#"
import socket, sys
address = {n: socket.gethostbyname(n + ".example.com") for n in ("direct", "proxied")}
assert all(a.startswith("240.240.") for a in address.values()), address
print("known", flush=True)
for line in sys.stdin:
    out = []
    for n, port in (("direct", 7001), ("proxied", 7000)):
        try:
            with socket.create_connection((address[n], port), 3) as s:
                s.sendall(b"hello")
                out.append(n + "=" + s.recv(5).decode())
        except OSError as error:
            out.append(n + "=" + type(error).__name__)
    out.append("dns=" + socket.gethostbyname("proxied.example.com"))
    print(*out, flush=True)
"#;
    let mut client = scene.lab.python(script).interactive().start()?;
    client.expect_line("known")?;
    scene.systemd.systemctl(&["stop", UNIT])?;
    client.send_line("stopped")?;
    client.expect_line("direct=hello proxied=ConnectionRefusedError dns=203.0.113.20")?;
    scene.systemd.systemctl(&["start", UNIT])?;
    client.send_line("started")?;
    client.expect_line_beginning("direct=hello proxied=hello dns=240.240.")?;
    Ok(())
}
