//! What an idle connection that the agent carries costs it in memory.
#![allow(clippy::panic, reason = "tests")]

use std::fs;

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::tcp::{Behaviour, Server};
use lab::{Context, Lab, RESOLVER, Result, policy};

const HOST: &str = "echo.example.com";

/// Opens connections, says one byte on each, and holds them.
const HOLD: &str = r#"
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
held = []
def more(count):
    for _ in range(count):
        s = socket.create_connection((HOST, 7000), timeout=30)
        s.sendall(b"x")
        assert s.recv(1) == b"x"
        held.append(s)
    print("open", len(held), flush=True)
    sys.stdin.readline()
more(WARM)
more(COUNT)
"#;

/// Memory of its own, in bytes.
fn memory(agent: &Agent) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", agent.id()))?;
    let sum: u64 = text
        .lines()
        .filter(|line| line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    Ok(sum * 1024)
}

/// The bound is generous, since programs that are not optimized have larger
/// futures; the figure itself is printed.
#[test]
fn an_idle_connection_holds_no_buffer() -> Result<()> {
    let (warm, count) = if lab::long() { (500, 5_000) } else { (100, 600) };
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, &format!("203.0.113.20 {HOST}\n"))?;
    let _server = Server::start(&lab, "203.0.113.20:7000", Behaviour::Echo)?;
    let agent = lab
        .agent()
        .policy("echo", &policy::tcp_proxied(HOST, 7000))?
        .setting("--access-log", "off")
        .log_filter("warn")
        .start()?;
    let script = format!("HOST, WARM, COUNT = '{HOST}', {warm}, {count}\n{HOLD}");
    let mut client = lab.python(&script).interactive().start()?;
    client.expect_line(&format!("open {warm}"))?;
    let before = memory(&agent)?;
    client.send_line("more")?;
    client.expect_line(&format!("open {}", warm + count))?;
    let after = memory(&agent)?;
    client.send_line("end")?;
    let each = after.saturating_sub(before) / u64::try_from(count).context("a count")?;
    println!("{each} bytes for each of {count} idle connections");
    assert!(each < 16 * 1024, "{each} bytes for each idle connection");
    agent.stop()
}
