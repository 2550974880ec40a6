//! What an idle connection that the agent carries costs it in memory.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::time::Duration;

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply};
use lab::tcp::{Behaviour, Server};
use lab::{Context, Lab, RESOLVER, Result, policy};

const HOST: &str = "echo.example.com";
const REAL: &str = "203.0.113.20";

/// Opens connections, uses each once, and holds them.
const HOLD: &str = r#"
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
held = []
def use(s):
    s.sendall(SAY)
    heard = b""
    while not heard.endswith(HEAR):
        part = s.recv(4096)
        assert part, heard
        heard += part
def more(count):
    for _ in range(count):
        s = socket.create_connection((HOST, PORT), timeout=30)
        use(s)
        held.append(s)
    print("open", len(held), flush=True)
    sys.stdin.readline()
more(WARM)
more(COUNT)
for s in held:
    use(s)
print("still", len(held), flush=True)
sys.stdin.readline()
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

/// What an idle connection costs, when each says `say` once and hears what
/// ends with `hear`. The bounds of callers are generous, since programs that
/// are not optimized have larger futures; the figure itself is printed.
fn idle(lab: &Lab, policy: &str, port: u16, [say, hear]: [&str; 2]) -> Result<u64> {
    let (warm, count) = if lab::long() {
        (500, 5_000)
    } else {
        (100, 600)
    };
    let _dns = NameServer::start(lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
    let agent = lab
        .agent()
        .policy("idle", policy)?
        .setting("--access-log", "off")
        .log_filter("warn")
        .start()?;
    let script = format!(
        "HOST, PORT, WARM, COUNT = '{HOST}', {port}, {warm}, {count}\n\
         SAY, HEAR = b'{say}', b'{hear}'\n{HOLD}"
    );
    let mut client = lab
        .python(&script)
        .deadline(Duration::from_mins(2))
        .interactive()
        .start()?;
    client.expect_line(&format!("open {warm}"))?;
    let before = memory(&agent)?;
    client.send_line("more")?;
    client.expect_line(&format!("open {}", warm + count))?;
    let after = memory(&agent)?;
    client.send_line("again")?;
    client.expect_line(&format!("still {}", warm + count))?;
    let again = memory(&agent)?;
    client.send_line("end")?;
    let count = u64::try_from(count).context("a count")?;
    let each = after.saturating_sub(before) / count;
    let later = again.saturating_sub(before) / count;
    println!("{each} bytes for each of {count} idle connections, {later} after a second use");
    agent.stop()?;
    Ok(each)
}

#[test]
fn an_idle_connection_holds_no_buffer() -> Result<()> {
    let lab = Lab::new()?;
    let _server = Server::start(&lab, &format!("{REAL}:7000"), Behaviour::Echo)?;
    let each = idle(&lab, &policy::tcp_proxied(HOST, 7000), 7000, ["x", "x"])?;
    assert!(each < 16 * 1024, "{each} bytes for each idle connection");
    Ok(())
}

#[test]
fn an_idle_http_client_holds_little() -> Result<()> {
    let lab = Lab::new()?;
    let _server = HttpServer::start(&lab, &format!("{REAL}:80"), |_| Reply::ok("the end"))?;
    let request = format!("GET / HTTP/1.1\\r\\nhost: {HOST}\\r\\n\\r\\n");
    let service = policy::http(HOST, REAL, 80, false, false);
    let each = idle(&lab, &service, 80, [&request, "the end"])?;
    assert!(each < 32 * 1024, "{each} bytes for each idle connection");
    Ok(())
}
