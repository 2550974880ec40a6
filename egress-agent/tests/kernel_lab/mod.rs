//! The lab of the kernel tests: each test runs again as a child of itself in a
//! network namespace of its own, with the programs attached to a cgroup that
//! only it is in.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{Read, Seek};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use egress_agent::capture::sockets::NetNs;
use egress_agent::capture::{
    Captured, Kernel, KernelSettings, MapKey, Options, address, cgroup_root,
};
use egress_common::{
    DNS6_PORTS, ExactKey, Listeners, NetworkKey, NetworkPrefix, SCOPE_ALL, ServiceValue,
    resolver_address,
};

const CGROUP_VARIABLE: &str = "EGRESS_KERNEL_TEST_CGROUP";
/// For a hang, not for a slow machine: emulated processors take long.
const DEADLINE: Duration = Duration::from_mins(3);

/// Runs `body` in the lab. `name` is the test's own name.
pub(crate) fn in_lab(name: &str, body: impl FnOnce()) {
    if env::var_os(CGROUP_VARIABLE).is_some() {
        return body();
    }
    if env::var_os("EGRESS_SKIP_KERNEL_TESTS").is_some_and(|value| value == "1") {
        eprintln!("skipped {name}: EGRESS_SKIP_KERNEL_TESTS=1");
        return;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "the kernel tests need root (EGRESS_SKIP_KERNEL_TESTS=1 leaves them out)"
    );
    let cgroup = Cgroup::new(name);
    // The child's output goes to a file: its test harness would look like ours
    // to whoever counts results.
    let mut output = tempfile::tempfile().unwrap();
    let mut child = Command::new("unshare")
        .arg("--net")
        .arg("--")
        .arg(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CGROUP_VARIABLE, &cgroup.path)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if start.elapsed() > DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    drop(cgroup);
    let mut text = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut text).unwrap();
    let harness = ["test ", "running ", "failures:"];
    for line in text.lines().filter(|line| !line.is_empty()) {
        if !harness.iter().any(|start| line.starts_with(start)) {
            println!("{line}");
        }
    }
    match status {
        Some(status) => {
            assert!(status.success(), "{name} failed inside the lab: {status}");
            assert!(text.contains("1 passed"), "{name} is no test's name");
        }
        None => panic!("{name} did not end within {DEADLINE:?}"),
    }
}

/// A cgroup that is removed again, with whatever is left in it ended.
struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn new(name: &str) -> Self {
        let short: String = name.chars().take(40).collect();
        let path = cgroup_root()
            .unwrap()
            .join(format!("egress-test-{}-{short}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self { path }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        for _ in 0..200 {
            for below in fs::read_dir(&self.path).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(below.path());
            }
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        eprintln!("cannot remove {}", self.path.display());
    }
}

/// Waits until something is so.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(5), "it never was");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Id of a cgroup: its inode number.
pub(crate) fn cgroup_id(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// Moves this process.
pub(crate) fn enter_cgroup(path: &Path) {
    fs::write(path.join("cgroup.procs"), "0").unwrap();
}

/// The cgroup of a test that attaches by itself.
pub(crate) struct Unattached {
    pub(crate) cgroup: PathBuf,
}

impl Unattached {
    /// Leaves the captured cgroup.
    pub(crate) fn leave(&self) {
        enter_cgroup(self.cgroup.parent().unwrap());
    }
}

/// The agent's side: kernel programs and listeners. The calling process is a
/// captured client from here on.
pub(crate) struct Lab {
    pub(crate) kernel: Kernel,
    pub(crate) cgroup: PathBuf,
    pub(crate) netns: u64,
    pub(crate) tcp4: TcpListener,
    pub(crate) tcp6: TcpListener,
    pub(crate) dns_tcp4: TcpListener,
    pub(crate) dns_tcp6: TcpListener,
    /// One on each of the first addresses that stand for resolvers, all with
    /// one port: what the agent does with `IP_PKTINFO` on one socket.
    pub(crate) dns4: Vec<UdpSocket>,
    pub(crate) dns6: Vec<UdpSocket>,
}

pub(crate) const SETTINGS: KernelSettings = KernelSettings {
    default_scope: SCOPE_ALL,
    heartbeat_limit: Duration::from_mins(1),
    registry_only: false,
    dns: true,
    log: false,
    errno: 0,
    observe: false,
};

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(SETTINGS)
    }

    /// The network of a test, with nothing attached yet.
    pub(crate) fn unattached() -> Unattached {
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        Unattached {
            cgroup: PathBuf::from(env::var_os(CGROUP_VARIABLE).unwrap()),
        }
    }

    pub(crate) fn with(settings: KernelSettings) -> Self {
        let Unattached { cgroup } = Self::unattached();
        let kernel = Kernel::attach(&Options {
            cgroup: Some(cgroup.clone()),
            ..Options::default()
        })
        .unwrap();
        let listen = |ip: &str| TcpListener::bind(format!("{ip}:0")).unwrap();
        let lab = Self {
            kernel,
            netns: NetNs::current().unwrap().cookie,
            tcp4: listen("127.0.0.1"),
            tcp6: listen("[::1]"),
            dns_tcp4: listen("127.0.0.1"),
            dns_tcp6: listen("[::1]"),
            dns4: dns4_sockets(),
            dns6: (0..DNS6_PORTS)
                .map(|_| UdpSocket::bind("[::1]:0").unwrap())
                .collect(),
            cgroup,
        };
        for socket in lab.dns6.iter().chain(&lab.dns4) {
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
        }
        lab.kernel.configure(&settings).unwrap();
        lab.kernel.heartbeat().unwrap();
        lab.kernel
            .set_listeners(lab.netns, &lab.listeners())
            .unwrap();
        enter_cgroup(&lab.cgroup);
        lab
    }

    pub(crate) fn listeners(&self) -> Listeners {
        let port = |address: std::io::Result<SocketAddr>| address.unwrap().port();
        let mut dns6 = [0; DNS6_PORTS];
        for (slot, socket) in dns6.iter_mut().zip(&self.dns6) {
            *slot = port(socket.local_addr());
        }
        Listeners {
            tcp4: port(self.tcp4.local_addr()),
            tcp6: port(self.tcp6.local_addr()),
            dns4: port(self.dns4[0].local_addr()),
            dns_tcp4: port(self.dns_tcp4.local_addr()),
            dns_tcp6: port(self.dns_tcp6.local_addr()),
            reserved: 0,
            dns6,
        }
    }

    pub(crate) fn register(&self, entries: &[(MapKey, ServiceValue)]) {
        let entries: HashMap<MapKey, ServiceValue> = entries.iter().copied().collect();
        self.kernel.sync_services(&entries).unwrap();
    }

    pub(crate) fn accept(
        &self,
        listener: &TcpListener,
    ) -> (TcpStream, SocketAddr, Option<Captured>) {
        let (stream, peer) = listener.accept().unwrap();
        let captured = self.take(listener, peer);
        (stream, peer, captured)
    }

    pub(crate) fn take(&self, listener: &TcpListener, peer: SocketAddr) -> Option<Captured> {
        let port = listener.local_addr().unwrap().port();
        self.kernel.take_origin(self.netns, peer, port).unwrap()
    }

    /// Receives a query at the address that stands for the IPv4 resolver in
    /// `slot`, answers it from there, and tells the resolver that was meant.
    pub(crate) fn answer4(&self, slot: u32, query: &[u8], answer: &[u8]) -> SocketAddr {
        let mut buffer = [0; 64];
        let socket = &self.dns4[slot as usize];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], query);
        socket.send_to(answer, from).unwrap();
        self.kernel.resolver(slot).unwrap().expect("a resolver").0
    }

    /// The same on an IPv6 DNS socket.
    pub(crate) fn answer6(&self, slot: usize, query: &[u8], answer: &[u8]) -> SocketAddr {
        let mut buffer = [0; 64];
        let (length, from) = self.dns6[slot].recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], query);
        self.dns6[slot].send_to(answer, from).unwrap();
        self.kernel.resolver6(slot).unwrap().expect("a resolver").0
    }

    pub(crate) fn cgroup_id(&self) -> u64 {
        cgroup_id(&self.cgroup)
    }

    /// Makes a cgroup below the captured one and moves in.
    pub(crate) fn child_cgroup(&self, name: &str) -> PathBuf {
        let path = self.cgroup.join(name);
        fs::create_dir(&path).unwrap();
        enter_cgroup(&path);
        path
    }

    /// Names of the cgroups below the captured one.
    pub(crate) fn entries(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.cgroup)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Other processes in the captured cgroup.
    pub(crate) fn others(&self) -> Vec<i32> {
        let own = std::process::id().to_string();
        fs::read_to_string(self.cgroup.join("cgroup.procs"))
            .unwrap()
            .lines()
            .filter(|line| *line != own)
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    /// Child processes of this one.
    pub(crate) fn children() -> usize {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        tasks
            .flatten()
            .map(|task| {
                fs::read_to_string(task.path().join("children"))
                    .unwrap()
                    .split_whitespace()
                    .count()
            })
            .sum()
    }

    /// Leaves the captured cgroup.
    pub(crate) fn leave(&self) {
        enter_cgroup(self.cgroup.parent().unwrap());
    }

    /// Goes back into the captured cgroup.
    pub(crate) fn enter(&self) {
        enter_cgroup(&self.cgroup);
    }
}

/// One for each of the first slots, and one for all others, as the agent has.
fn dns4_sockets() -> Vec<UdpSocket> {
    let bound = |address: Ipv4Addr, port: u16| -> UdpSocket {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket
            .bind(&SocketAddr::from((address, port)).into())
            .unwrap();
        socket.into()
    };
    let first = bound(Ipv4Addr::from(resolver_address(0)), 0);
    let port = first.local_addr().unwrap().port();
    let rest = (1..6).map(|slot| bound(Ipv4Addr::from(resolver_address(slot)), port));
    let others = bound(Ipv4Addr::UNSPECIFIED, port);
    [first].into_iter().chain(rest).chain([others]).collect()
}

/// Sets an integer option of TCP that no library has a safe function for.
#[allow(unsafe_code, reason = "setsockopt(2)")]
pub(crate) fn set_tcp_option(socket: &impl AsFd, option: i32, value: i32) {
    // SAFETY: the kernel reads four bytes at `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Lines that go to the `log` crate from here on.
pub(crate) fn capture_log() -> Arc<Mutex<Vec<String>>> {
    struct Logger(Arc<Mutex<Vec<String>>>);
    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
        fn flush(&self) {}
    }
    let lines = Arc::default();
    log::set_boxed_logger(Box::new(Logger(Arc::clone(&lines)))).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    lines
}

/// Key of a single address, for all.
pub(crate) fn exact(ip: impl Into<IpAddr>, port: u16) -> MapKey {
    scoped(SCOPE_ALL, ip, port)
}

/// Key of a single address in one scope.
pub(crate) fn scoped(scope: u32, ip: impl Into<IpAddr>, port: u16) -> MapKey {
    MapKey::Exact(ExactKey {
        scope,
        port,
        reserved: 0,
        address: address(ip.into()),
    })
}

/// Key of a network; `bits` as written in `addresses`.
pub(crate) fn network(scope: u32, ip: IpAddr, bits: u32, port: u16) -> MapKey {
    let mapped = if ip.is_ipv4() { 96 } else { 0 };
    network_key(scope, address(ip), mapped + bits, port)
}

/// Key of a whole port.
pub(crate) fn whole_port(scope: u32, port: u16) -> MapKey {
    network_key(scope, [0; 16], 0, port)
}

fn network_key(scope: u32, address: [u8; 16], bits: u32, port: u16) -> MapKey {
    MapKey::Network(NetworkPrefix {
        bits: NetworkKey::FIXED_BITS + bits,
        data: NetworkKey {
            scope: scope.to_be_bytes(),
            port: port.to_be_bytes(),
            reserved: [0; 2],
            address,
        },
    })
}

/// Bits of the address that a key fixes.
pub(crate) fn specificity(key: &MapKey) -> u8 {
    match key {
        MapKey::Exact(_) => 128,
        MapKey::Network(prefix) => u8::try_from(prefix.bits - NetworkKey::FIXED_BITS).unwrap(),
    }
}

/// An entry for a single address.
pub(crate) fn value(service: u32, verdict: u8) -> ServiceValue {
    ServiceValue {
        service,
        verdict,
        on_failure: egress_common::FAILURE_CLOSED,
        specificity: 128,
        flags: 0,
    }
}
