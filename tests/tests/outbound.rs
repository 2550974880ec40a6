//! `registry-only`: nothing gets out that is not registered, whatever kind of
//! socket is tried; and what `observe` tells of unregistered destinations.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::time::Duration;

use lab::agent::{Agent, Builder};
use lab::dns::NameServer;
use lab::process::wait_for;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, policy};

const HOST: &str = "echo.example.com";
const OTHER: &str = "other.example.com";

/// A registered service at 203.0.113.20:7000, and an unregistered one at
/// 203.0.113.30, ports 7001 and 7002, which is also reached over IPv6.
struct Scene {
    _servers: Vec<Server>,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let dns = NameServer::start(
            &lab,
            RESOLVER,
            &format!("203.0.113.20 {HOST}\n203.0.113.30 {OTHER}\n"),
        )?;
        let servers = [
            "203.0.113.20:7000",
            "203.0.113.30:7001",
            "203.0.113.30:7002",
            "[2001:db8:1::30]:7001",
        ]
        .into_iter()
        .map(|address| Server::start(&lab, address, Behaviour::Echo))
        .collect::<Result<_>>()?;
        Ok(Self {
            _servers: servers,
            _dns: dns,
            lab,
        })
    }

    fn agent(&self) -> Result<Builder<'_>> {
        self.lab
            .agent()
            .policy("echo", &policy::tcp_proxied(HOST, 7000))
    }

    fn registry_only(&self) -> Result<Agent> {
        self.agent()?.setting("--outbound", "registry-only").start()
    }

    /// Runs a client in a cgroup below the captured one.
    fn run_in(&self, cgroup: &str, script: &str) -> Result<String> {
        let cgroup = self.lab.cgroup(cgroup)?;
        self.lab
            .spawn_in(self.lab.app(), &cgroup, "/usr/bin/python3")
            .args(["-I", "-c"])
            .arg(format!("{CLIENT}\n{script}"))
            .text()
    }

    fn run(&self, script: &str) -> Result<String> {
        self.run_in(".", script)
    }

    fn refusals(&self) -> Result<u64> {
        let text = self.lab.egressctl(&["status", "-o", "json"])?.text()?;
        let status: serde_json::Value = serde_json::from_str(&text)?;
        Ok(status["capture"]["counters"]["refused-unregistered"]
            .as_u64()
            .unwrap_or_default())
    }
}

const CLIENT: &str = r#"
import ctypes, errno, mmap, os, socket, struct, sys, time
V4, V6 = "203.0.113.30", "2001:db8:1::30"
MAPPED = "::ffff:" + V4
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

def refused(attempt, code=errno.ECONNREFUSED):
    try:
        result = attempt()
    except OSError as error:
        assert error.errno == code, error
    else:
        raise SystemExit(f"it went through: {result}")

def echo(address):
    with socket.create_connection(address, 5) as s:
        s.sendall(b"ping")
        assert s.recv(4) == b"ping"
"#;

#[test]
fn registry_only_refuses_every_kind_of_socket() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.registry_only()?;
    let text = scene.run(
        r#"
tried = 0
for family, host in ((socket.AF_INET, V4), (socket.AF_INET6, V6), (socket.AF_INET6, MAPPED)):
    # connect, blocking and not; the same port as a registered one does not help
    for port in (7001, 7000, 443):
        with socket.socket(family, TCP) as s:
            refused(lambda: s.connect((host, port)))
            tried += 1
    with socket.socket(family, TCP) as s:
        s.setblocking(False)
        refused(lambda: s.connect((host, 7001)))
        tried += 1
    # data with the SYN, both ways
    with socket.socket(family, TCP) as s:
        refused(lambda: s.sendto(b"x", socket.MSG_FASTOPEN, (host, 7001)))
        tried += 1
    with socket.socket(family, TCP) as s:
        s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
        refused(lambda: s.connect((host, 7001)))
        tried += 1
    # bound to an address and a device first
    with socket.socket(family, TCP) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        refused(lambda: s.connect((host, 7001)))
        tried += 1
    # datagrams: connected, sendto without connect, sendmsg; QUIC is one
    for port in (7001, 443):
        with socket.socket(family, UDP) as s:
            refused(lambda: s.connect((host, port)))
            refused(lambda: s.sendto(b"x", (host, port)))
            refused(lambda: s.sendmsg([b"x"], [], 0, (host, port)))
            tried += 3
    # Protocols whose connect the kernel has no hook for cannot even be made.
    refused(lambda: socket.socket(family, UDP, 136), errno.EPERM)
    tried += 1
print(tried)
"#,
    )?;
    let tried: u64 = text.trim().parse()?;
    assert_eq!(scene.refusals()?, tried);
    // The same by workload, but for the three sockets that could not be made.
    wait_for("the metric", Duration::from_secs(10), || {
        let metrics = agent.metrics(&scene.lab)?;
        let of = |transport: &str| -> u64 {
            let label = format!("transport=\"{transport}\"");
            metrics
                .lines()
                .filter(|line| line.starts_with("egress_refused_unregistered_total{"))
                .filter(|line| line.contains(&label))
                .filter(|line| line.contains("source_workload_namespace=\"default\""))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .sum()
        };
        let (tcp, udp) = (of("tcp"), of("udp"));
        Ok((tcp + udp == tried - 3 && udp == 3 * 6).then_some(()))
    })?;
    let metrics = agent.metrics(&scene.lab)?;
    let all =
        format!("egress_capture_decisions_total{{decision=\"refused-unregistered\"}} {tried}\n");
    assert!(metrics.contains(&all), "{metrics}");
    // What is registered works, by its virtual and its real address; loopback
    // too.
    scene.run(
        r#"
address = socket.getaddrinfo("echo.example.com", 7000, socket.AF_INET)[0][4]
assert address[0].startswith("240.240."), address
echo(address)
echo(("203.0.113.20", 7000))
for host in ("127.0.0.1", "::1"):
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        socket.create_connection(s.getsockname()[:2], 5).close()
"#,
    )?;
    assert_eq!(scene.refusals()?, tried);
    // Programs outside of the cgroup go on as ever.
    scene
        .lab
        .python_in(
            lab::Group::Outside,
            "import socket\nsocket.create_connection(('203.0.113.30', 7001), 5)\n",
        )
        .text()?;
    agent.stop()
}

#[test]
fn registry_only_refuses_io_uring_and_mptcp() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.registry_only()?;
    let text = scene.run(
        r#"
libc = ctypes.CDLL(None, use_errno=True)
disabled = "/proc/sys/kernel/io_uring_disabled"
usable = not os.path.exists(disabled) or open(disabled).read().strip() == "0"
params = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 4, params) if usable else -1
if ring < 0:
    print("io_uring: SKIPPED, the kernel has none")
else:
    words = struct.unpack("30I", params.raw)
    entries, features = words[0], words[5]
    sq, cq = words[10:20], words[20:30]
    assert features & 1, "IORING_FEAT_SINGLE_MMAP"
    size = max(sq[6] + entries * 4, cq[5] + words[1] * 16)
    rings = mmap.mmap(ring, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
    sqes = mmap.mmap(ring, entries * 64, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0x10000000)
    def uring_connect(s, host, port):
        name = ctypes.create_string_buffer(struct.pack("=H2s4s8x", socket.AF_INET, struct.pack(">H", port), socket.inet_aton(host)), 16)
        # IORING_OP_CONNECT: fd, addr, off = addrlen
        sqes[0:64] = struct.pack("=BBHiQQIIQ24x", 16, 0, 0, s.fileno(), 16, ctypes.addressof(name), 0, 0, 7)
        tail = struct.unpack_from("I", rings, sq[1])[0]
        struct.pack_into("I", rings, sq[6] + 4 * (tail & (entries - 1)), 0)
        struct.pack_into("I", rings, sq[1], tail + 1)
        assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1, ctypes.get_errno()
        head = struct.unpack_from("I", rings, cq[0])[0]
        user, result, flags = struct.unpack_from("=QiI", rings, cq[5] + 16 * (head & (words[1] - 1)))
        struct.pack_into("I", rings, cq[0], head + 1)
        assert user == 7
        return result
    with socket.socket() as s:
        assert uring_connect(s, V4, 7001) == -errno.ECONNREFUSED
    address = socket.getaddrinfo("echo.example.com", 7000, socket.AF_INET)[0][4]
    with socket.socket() as s:
        code = uring_connect(s, *address)
        assert code == 0, code
        s.sendall(b"ping")
        assert s.recv(4) == b"ping"
    print("io_uring: refused")
try:
    s = socket.socket(socket.AF_INET, TCP, 262)
except OSError as error:
    print("MPTCP: SKIPPED,", error)
else:
    with s:
        refused(lambda: s.connect((V4, 7001)))
    with socket.socket(socket.AF_INET6, TCP, 262) as s:
        refused(lambda: s.connect((V6, 7001)))
    address = socket.getaddrinfo("echo.example.com", 7000, socket.AF_INET)[0][4]
    with socket.socket(socket.AF_INET, TCP, 262) as s:
        s.settimeout(5)
        s.connect(address)
        s.sendall(b"ping")
        assert s.recv(4) == b"ping"
    print("MPTCP: refused")
"#,
    )?;
    print!("{text}");
    agent.stop()
}

#[test]
fn a_process_stays_captured_below_and_the_socket_decides() -> Result<()> {
    let scene = Scene::new()?;
    let below = scene.lab.cgroup("deep/deeper")?;
    let agent = scene.registry_only()?;
    // One that moves below the captured cgroup, before and after it made its
    // socket.
    scene.run(&format!(
        r#"
early = socket.socket()
with open("{}/cgroup.procs", "w") as f:
    f.write("0")
refused(lambda: early.connect((V4, 7001)))
refused(lambda: socket.socket().connect((V4, 7001)))
# In the kernel a socket belongs to the cgroup that it was made in, so one that
# is handed to a child is captured like its own.
pid = os.fork()
if pid == 0:
    inherited = socket.socket(fileno=os.dup(early.fileno()))
    refused(lambda: inherited.connect((V4, 7001)))
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"#,
        below.display()
    ))?;
    // Not covered, and said so: a socket that was made outside of the captured
    // cgroup, whoever connects it.
    let clients = scene.lab.client_cgroup();
    let script = format!(
        r#"
import socket
outside = socket.socket()
with open("{}/cgroup.procs", "w") as f:
    f.write("0")
outside.settimeout(5)
outside.connect(("203.0.113.30", 7001))
try:
    socket.create_connection(("203.0.113.30", 7001), 5)
except ConnectionRefusedError:
    print("refused")
"#,
        clients.display()
    );
    let text = scene.lab.python_in(lab::Group::Outside, &script).text()?;
    assert_eq!(text, "refused\n");
    agent.stop()
}

#[test]
fn errno_allow_list_and_namespaces_are_settings() -> Result<()> {
    let scene = Scene::new()?;
    scene.lab.cgroup("free.slice")?;
    let agent = scene
        .agent()?
        .setting("--outbound", "registry-only")
        .setting("--outbound-errno", "EHOSTUNREACH")
        .setting("--outbound-in", "free=allow-any")
        .setting("--outbound-in", "strict=registry-only")
        .setting("--workload", "free.slice=free")
        .setting("--outbound-allow", "203.0.113.0/24:7002")
        .setting("--outbound-allow", "2001:db8:1::30")
        .start()?;
    scene.run(
        r#"
refused(lambda: socket.socket().connect((V4, 7001)), errno.EHOSTUNREACH)
refused(lambda: socket.socket(socket.AF_INET, UDP).sendto(b"x", (V4, 7001)), errno.EHOSTUNREACH)
echo((V4, 7002))
echo((V6, 7001))
"#,
    )?;
    scene.run_in("free.slice", "echo((V4, 7001))")?;
    // Below it, too; and a cgroup that is made later.
    scene.run_in("free.slice/job.service", "echo((V4, 7001))")?;
    // Each refusal is told with caller and destination.
    wait_for("the refusal in the log", Duration::from_secs(5), || {
        let log = agent.log()?;
        Ok(log
            .lines()
            .any(|line| {
                line.contains("refused: not registered")
                    && line.contains("203.0.113.30:7001")
                    && line.contains("comm=python3")
                    && line.contains("transport=tcp")
            })
            .then_some(()))
    })?;
    agent.stop()
}

#[test]
fn dns_goes_through_the_agent_or_not_at_all() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.registry_only()?;
    // Names that nothing registers are still answered by their resolver.
    let text = scene.run("print(socket.gethostbyname('other.example.com'))")?;
    assert_eq!(text.trim(), "203.0.113.30");
    // Something else than DNS on its port reaches the agent, not the outside.
    scene.run(
        r#"
s = socket.create_connection((V4, 53), 5)
s.sendall(b"GET / HTTP/1.1\r\n\r\n")
s.settimeout(5)
try:
    assert s.recv(100) == b""
except OSError:
    pass
"#,
    )?;
    agent.stop()
}

#[test]
fn observe_lists_destinations_and_suggests_documents() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    lab.cgroup("shop.slice")?;
    let agent = scene
        .agent()?
        .setting("--workload", "shop.slice=shop")
        .start()?;
    let work = "s = socket.create_connection(('other.example.com', 7001), 5)\n\
                echo((V4, 7002))\necho((V6, 7001))\n";
    scene.run_in("shop.slice", work)?;
    scene.run_in("shop.slice", work)?;
    scene.run("socket.socket(socket.AF_INET, UDP).sendto(b'x', (V4, 443))")?;
    let text = lab.egressctl(&["observe", "-o", "json"])?.text()?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let find = |destination: &str| {
        rows.iter()
            .find(|row| row["destination"] == destination && row["transport"] == "tcp")
            .unwrap_or_else(|| panic!("no {destination} in {text}"))
    };
    let named = find("203.0.113.30:7001");
    assert_eq!(named["namespace"], "shop", "{text}");
    assert_eq!(named["names"][0], OTHER, "{text}");
    assert_eq!(named["count"], 2, "{text}");
    assert_eq!(named["comm"], "python3", "{text}");
    assert_eq!(named["refused"], false, "{text}");
    assert!(
        named["cgroup"]
            .as_str()
            .is_some_and(|path| path.ends_with("/shop.slice")),
        "{text}"
    );
    find("[2001:db8:1::30]:7001");
    assert!(
        rows.iter()
            .any(|row| row["destination"] == "203.0.113.30:443"
                && row["transport"] == "udp"
                && row["namespace"] == "default"),
        "{text}"
    );
    // The table names the same.
    let table = lab.egressctl(&["observe", "-n", "shop"])?.text()?;
    assert!(table.contains(OTHER) && !table.contains(":443"), "{table}");

    // What is suggested is valid, and registers them.
    let suggested = lab
        .egressctl(&["observe", "--suggest", "-n", "shop"])?
        .text()?;
    let file = lab.write("suggested.yaml", &suggested)?;
    let file = file.display().to_string();
    lab.egressctl(&["validate", &file])?.text()?;
    lab.egressctl(&["apply", "-f", &file])?.text()?;
    let address = scene.run_in(
        "shop.slice",
        "a = socket.getaddrinfo('other.example.com', 7001, socket.AF_INET)[0][4]\n\
         echo(a)\necho((V6, 7001))\nprint(a[0])",
    )?;
    assert!(address.starts_with("240.240."), "{address}");
    // Its namespace alone.
    let address = scene.run("print(socket.gethostbyname('other.example.com'))")?;
    assert_eq!(address.trim(), "203.0.113.30");

    lab.egressctl(&["observe", "--clear"])?.text()?;
    let none = lab.egressctl(&["observe", "-o", "json"])?.text()?;
    assert_eq!(none.trim(), "[]");
    let _ = fs::remove_file(file);
    agent.stop()
}
