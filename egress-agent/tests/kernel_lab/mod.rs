//! The lab of the kernel tests: each test runs again as a child of itself in a
//! network namespace of its own, with the programs attached to a cgroup that
//! only it is in.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use egress_agent::capture::sockets::NetNs;
use egress_agent::capture::{
    Captured, Kernel, KernelSettings, MapKey, Options, address, cgroup_root,
};
use egress_common::{DNS6_PORTS, ExactKey, Listeners, SCOPE_ALL, ServiceValue};

const CGROUP_VARIABLE: &str = "EGRESS_KERNEL_TEST_CGROUP";
const DEADLINE: Duration = Duration::from_secs(60);

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
    let mut child = Command::new("unshare")
        .arg("--net")
        .arg("--")
        .arg(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CGROUP_VARIABLE, &cgroup.path)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name} did not end within {DEADLINE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{name} failed inside the lab: {status}");
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
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        eprintln!("cannot remove {}", self.path.display());
    }
}

/// Moves this process.
pub(crate) fn enter_cgroup(path: &Path) {
    fs::write(path.join("cgroup.procs"), "0").unwrap();
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
    pub(crate) dns4: UdpSocket,
    pub(crate) dns6: Vec<UdpSocket>,
}

pub(crate) const SETTINGS: KernelSettings = KernelSettings {
    default_scope: SCOPE_ALL,
    heartbeat_limit: Duration::from_secs(60),
    registry_only: false,
    dns: true,
    log: false,
};

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(SETTINGS)
    }

    pub(crate) fn with(settings: KernelSettings) -> Self {
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let cgroup = PathBuf::from(env::var_os(CGROUP_VARIABLE).unwrap());
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
            dns4: UdpSocket::bind("0.0.0.0:0").unwrap(),
            dns6: (0..DNS6_PORTS)
                .map(|_| UdpSocket::bind("[::1]:0").unwrap())
                .collect(),
            cgroup,
        };
        for socket in lab.dns6.iter().chain([&lab.dns4]) {
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
            dns4: port(self.dns4.local_addr()),
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

    /// Accepts on the IPv4 listener and takes the record.
    pub(crate) fn accept4(&self) -> (TcpStream, SocketAddr, Option<Captured>) {
        self.accept(&self.tcp4)
    }

    pub(crate) fn accept(
        &self,
        listener: &TcpListener,
    ) -> (TcpStream, SocketAddr, Option<Captured>) {
        let (stream, peer) = listener.accept().unwrap();
        let port = listener.local_addr().unwrap().port();
        let captured = self.kernel.take_origin(self.netns, peer, port).unwrap();
        (stream, peer, captured)
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

#[allow(dead_code, reason = "kept for tests that need the type")]
pub(crate) fn localhost() -> Ipv4Addr {
    Ipv4Addr::LOCALHOST
}
