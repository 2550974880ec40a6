//! Clients in network namespaces of their own, as containers are.
#![allow(clippy::panic, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::netns::{Namespace, address, link_name};
use lab::process::{Process, Spawn, wait_for};
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, kernel, policy};

const HOST: &str = "echo.example.com";
const REAL: &str = "203.0.113.20";
const PORT: u16 = 7000;

/// A service that says who connects.
struct Service {
    _server: Server,
    dns: NameServer,
    lab: Lab,
}

impl Service {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
        let server = Server::start(&lab, &format!("{REAL}:{PORT}"), Behaviour::TellPeer)?;
        Ok(Self {
            _server: server,
            dns,
            lab,
        })
    }

    fn agent(&self) -> Result<Agent> {
        self.lab
            .agent()
            .policy("echo", &policy::tcp_proxied(HOST, PORT))?
            .start()
    }

    fn client(&self, pod: &Namespace, script: &str) -> Spawn {
        self.client_in(pod, &self.lab.client_cgroup(), script)
    }

    fn client_in(&self, pod: &Namespace, cgroup: &Path, script: &str) -> Spawn {
        self.lab
            .spawn_in(pod, cgroup, "/usr/bin/python3")
            .args(["-I", "-c"])
            .arg(format!("{CLIENT}\n{script}"))
    }

    /// Links of client namespaces that the world still has.
    fn links(&self) -> Result<usize> {
        let text = self
            .lab
            .world()
            .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let name = link_name(0);
        let start = name.trim_end_matches('0');
        Ok(text
            .lines()
            .filter(|line| line.trim_start().starts_with(start))
            .count())
    }
}

/// `forward()` asks the resolver for a name that is not registered, through the
/// agent; `virtual()` waits until the name resolves to a virtual address, as a client
/// of a namespace that was made this moment must; `ask(address)` connects and
/// returns who the service says it is.
const CLIENT: &str = r#"
import errno, socket, sys, time
HOST, PORT = "echo.example.com", 7000

def virtual(family=socket.AF_INET):
    start = "240.240." if family == socket.AF_INET else "2001:2:"
    for attempt in range(200):
        try:
            address = socket.getaddrinfo(HOST, PORT, family, socket.SOCK_STREAM)[0][4]
            if address[0].startswith(start):
                return address
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit("never a virtual address")

def forward():
    try:
        socket.gethostbyname("nobody.example.net")
    except socket.gaierror:
        pass

def ask(address):
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as s:
        s.settimeout(10)
        s.connect(address)
        assert s.getpeername()[:2] == address[:2]
        line = b""
        while not line.endswith(b"\n"):
            part = s.recv(100)
            assert part
            line += part
        return line.decode().strip()
"#;

#[test]
fn a_namespace_has_its_own_listeners_and_source_address() -> Result<()> {
    let service = Service::new()?;
    let lab = &service.lab;
    // One that is there before the agent, with a process in it, and one that
    // comes later.
    let early = lab.pod(1)?;
    let mut sleeper = service
        .client(
            &early,
            "print('here', flush=True)\nsys.stdin.readline()\nprint(ask(virtual()), flush=True)\nsys.stdin.readline()",
        )
        .interactive()
        .start()?;
    sleeper.expect_line("here")?;
    let agent = service.agent()?;
    // Its listeners stood when the agent was ready: the first query and the
    // first connection are captured.
    let first = service
        .client(
            &early,
            "a = socket.getaddrinfo(HOST, PORT, socket.AF_INET)[0][4]\n\
             assert a[0].startswith('240.240.'), a\nprint(ask(a))",
        )
        .text()?;
    assert_eq!(first.trim(), address(1));
    sleeper.send_line("go")?;
    sleeper.expect_line(&address(1))?;
    let late = lab.pod(2)?;
    let text = service
        .client(
            &late,
            "print(ask(virtual()))\nprint(ask(virtual(socket.AF_INET6)))",
        )
        .text()?;
    assert_eq!(text, format!("{0}\n{0}\n", address(2)));
    // And the agent's own namespace goes on.
    assert_eq!(
        service
            .client(lab.app(), "print(ask(virtual()))")
            .text()?
            .trim(),
        lab::CLIENT
    );
    let records = agent.wait_records(5)?;
    let namespaces: std::collections::BTreeSet<u64> =
        records.iter().map(lab::record::Record::netns).collect();
    assert_eq!(namespaces.len(), 3, "{records:?}");
    agent.stop()
}

/// What goes to the agent goes through loopback, whatever device the socket was
/// bound to.
#[test]
fn a_socket_bound_to_a_device_reaches_the_service() -> Result<()> {
    let service = Service::new()?;
    let pod = service.lab.pod(1)?;
    let agent = service.agent()?;
    let text = service
        .client(
            &pod,
            r#"
address = virtual()
with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    s.settimeout(5)
    s.connect(address)
    assert s.getpeername() == address
    print(s.makefile().readline().strip())
# A resolver that binds its sockets, asked with and without connect.
name = b"".join(bytes([len(p)]) + p for p in HOST.encode().split(b".")) + b"\0"
query = b"\0\7\1\0\0\1\0\0\0\0\0\0" + name + b"\0\1\0\1"
for connected in (True, False):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        s.settimeout(5)
        if connected:
            s.connect(("203.0.113.53", 53))
            s.send(query)
        else:
            # The kernel has looked at the device by then: the first is refused.
            try:
                s.sendto(query, ("203.0.113.53", 53))
                raise SystemExit("sent by the device")
            except ConnectionRefusedError:
                s.sendto(query, ("203.0.113.53", 53))
        reply, source = s.recvfrom(1000)
        assert source == ("203.0.113.53", 53), source
        assert socket.inet_ntoa(reply[-4:]).startswith("240.240."), reply
"#,
        )
        .text()?;
    assert_eq!(text.trim(), address(1));
    agent.wait_records(1)?;
    agent.stop()
}

#[test]
fn dns_over_tcp_and_forwarded_queries_leave_from_the_namespace() -> Result<()> {
    let service = Service::new()?;
    let pod = service.lab.pod(1)?;
    let agent = service.agent()?;
    // The name server logs who asks.
    service
        .client(
            &pod,
            "virtual()\ntry:\n    socket.getaddrinfo('unregistered.example.com', 80)\nexcept OSError:\n    pass",
        )
        .text()?;
    let asked = service.dns.askers("unregistered.example.com")?;
    assert!(
        !asked.is_empty() && asked.iter().all(|who| *who == address(1)),
        "{asked:?}"
    );
    // Over TCP, with the bare protocol.
    let answer = service
        .client(
            &pod,
            r#"
import struct
name = b"".join(bytes([len(p)]) + p for p in HOST.encode().split(b".")) + b"\0"
query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
s = socket.create_connection(("203.0.113.53", 53), 5)
s.sendall(struct.pack(">H", len(query)) + query)
length = struct.unpack(">H", s.recv(2, socket.MSG_WAITALL))[0]
reply = s.recv(length, socket.MSG_WAITALL)
print(socket.inet_ntoa(reply[-4:]))
"#,
        )
        .text()?;
    assert!(answer.starts_with("240.240."), "{answer}");
    agent.stop()
}

/// What is declared for a connection that comes before the listeners stand:
/// the service's `on-agent-failure`. Without loopback they cannot be opened.
#[test]
fn without_listeners_the_failure_policy_holds() -> Result<()> {
    const OPEN: &str = "open.example.com";
    let service = Service::new()?;
    let lab = &service.lab;
    service
        .dns
        .set(&format!("{REAL} {HOST}\n203.0.113.21 {OPEN}\n"))?;
    let _open = Server::start(lab, &format!("203.0.113.21:{PORT}"), Behaviour::TellPeer)?;
    let open = policy::tcp_proxied(OPEN, PORT).replacen(
        "  namespace: default\n",
        "  namespace: default\n  annotations:\n    egress-agent.dev/on-agent-failure: open\n",
        1,
    );
    let agent = lab
        .agent()
        .policy("echo", &policy::tcp_proxied(HOST, PORT))?
        .policy("open", &open)?
        .start()?;
    // Until both hosts are resolved, their real addresses are no keys.
    lab.python(&format!(
        "import socket, time\n\
         for host in ('{HOST}', '{OPEN}'):\n    \
             socket.create_connection((host, {PORT}), 5).recv(1)\n"
    ))
    .text()?;
    let pod = lab.pod_without_loopback(1)?;
    let script = format!(
        r#"
s = socket.socket()
code = s.connect_ex(("{REAL}", PORT))
assert code == errno.ECONNREFUSED, code
print(ask(("203.0.113.21", PORT)), flush=True)
sys.stdin.readline()
for attempt in range(100):
    try:
        print(ask(("{REAL}", PORT)), flush=True)
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
sys.stdin.readline()
"#
    );
    // One for each host, once both connections have ended.
    let before = agent.wait_records(2)?.len();
    let mut client = service.client(&pod, &script).interactive().start()?;
    client.expect_line(&address(1))?;
    // The kernel carried that one; the agent only tells of it.
    agent.record("the connection that passed", |record| {
        record.field("via") == "direct"
    })?;
    assert_eq!(agent.records()?.len(), before + 1, "{:?}", agent.records()?);
    pod.ip("link set lo up\n")?;
    client.send_line("go")?;
    client.expect_line(&address(1))?;
    client.send_line("end")?;
    agent.wait_records(before + 2)?;
    agent.stop()
}

#[test]
fn namespaces_come_and_go_and_leave_nothing() -> Result<()> {
    let count: u16 = if lab::long() { 200 } else { 40 };
    let service = Service::new()?;
    let lab = &service.lab;
    let agent = service.agent()?;
    service.client(lab.app(), "print(ask(virtual()))").text()?;
    let rest = kernel::descriptors_at_rest(agent.id())?;
    let entries = |map: &str| -> Result<usize> {
        let maps = kernel::maps(&lab.client_cgroup())?;
        maps.iter()
            .find(|(name, _)| *name == map)
            .map_or(Ok(0), |(_, id)| kernel::entries(*id))
    };
    assert_eq!(entries("NAMESPACES")?, 1);
    let memory = kernel::resident(agent.id())?;
    let rounds = 2;
    for round in 0..rounds {
        let mut pods = Vec::new();
        let mut clients: Vec<Process> = Vec::new();
        for number in 1..=count {
            let pod = lab.pod(number)?;
            // Half of them end by themselves, half in mid-connection.
            let end = if number % 2 == 0 {
                "me = ask(virtual())\nforward()\nprint(me, flush=True)"
            } else {
                "s = socket.create_connection(virtual()[:2], 10)\n\
                 assert s.recv(1)\nforward()\nprint('open', flush=True)\ntime.sleep(60)"
            };
            clients.push(service.client(&pod, end).interactive().start()?);
            pods.push(pod);
        }
        for (number, client) in (1..=count).zip(&mut clients) {
            if number % 2 == 0 {
                client.expect_line(&address(number))?;
            } else {
                client.expect_line("open")?;
            }
        }
        assert_eq!(entries("NAMESPACES")?, usize::from(count) + 1);
        assert_eq!(service.links()?, usize::from(count));
        // Kills what still runs.
        drop(clients);
        for pod in pods {
            pod.delete()?;
        }
        let mut last = String::new();
        wait_for("the namespaces to go", Duration::from_secs(30), || {
            let (links, held) = (service.links()?, entries("NAMESPACES")?);
            let descriptors = kernel::descriptors(agent.id())?;
            last = format!("round {round}: {links} links, {held} entries, {descriptors} descriptors, at first {rest}");
            std::thread::sleep(Duration::from_millis(100));
            Ok((links == 0 && held == 1 && descriptors <= rest).then_some(()))
        })
        .map_err(|error| error.context(last))?;
        assert_eq!(entries("ORIGINS")?, 0);
    }
    // What the allocator keeps does not grow with each round; a leak of one
    // buffer of a DNS socket for each namespace would be 17 x 64 kB.
    let grown = kernel::resident(agent.id())?.saturating_sub(memory);
    assert!(grown < 48 << 20, "{grown} bytes more than at rest");
    agent.stop()
}

/// A name keeps a namespace: its listeners stay, for the next command in it.
#[test]
fn a_named_namespace_keeps_its_listeners() -> Result<()> {
    let service = Service::new()?;
    let pod = service.lab.pod(1)?;
    let agent = service.agent()?;
    service.client(&pod, "ask(virtual())").text()?;
    // Longer than the agent needs to let go of one that nobody uses.
    std::thread::sleep(Duration::from_secs(6));
    let text = service
        .client(
            &pod,
            "a = socket.getaddrinfo(HOST, PORT, socket.AF_INET)[0][4]\nprint(a[0], ask(a))",
        )
        .text()?;
    assert!(
        text.starts_with("240.240.") && text.trim().ends_with(&address(1)),
        "{text}"
    );
    agent.stop()
}
