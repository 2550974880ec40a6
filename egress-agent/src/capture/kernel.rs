//! Loads and attaches the kernel programs, and holds them attached.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, Pod};
use aya_log::EbpfLogger;
use egress_common::{Config, Listeners, Resolver, Resolvers6};

use super::Captured;
use super::bypass::Bypass;
use super::control::Control;
use super::direct::DirectMaps;
use super::error::CaptureError;
use super::origins::Origins;
use super::outbound::OutboundMaps;
use super::pins::Pins;
use super::services::KernelStore;
use super::sys::{self, PerCpu, Table};
use super::system;
use crate::numbers::Fingerprint;

/// The object that the build script made; empty when it was told to skip it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.bpf.o"));

/// Our programs with the names of their hooks (as `bpftool cgroup` has them)
/// and the kernel's numbers for those (`enum bpf_attach_type`), in the order in
/// which they are attached: what shows addresses and answers comes before what
/// changes them.
pub(super) const PROGRAMS: [(&str, &str, u32); 11] = [
    ("egress_release", "sock_release", 34),
    ("egress_create", "sock_create", 2),
    ("egress_sock_ops", "sock_ops", 3),
    ("egress_peername4", "getpeername4", 29),
    ("egress_peername6", "getpeername6", 30),
    ("egress_recvmsg4", "recvmsg4", 19),
    ("egress_recvmsg6", "recvmsg6", 20),
    ("egress_sendmsg4", "sendmsg4", 14),
    ("egress_sendmsg6", "sendmsg6", 15),
    ("egress_connect4", "connect4", 10),
    ("egress_connect6", "connect6", 11),
];

/// The maps that are pinned: all but the programs' constants and the ring of
/// their log lines, which belong to one load of the programs.
const PINNED: [&str; 26] = [
    "ALLOWED",
    "CGROUPS",
    "CONFIG",
    "COUNTERS",
    "DESTINATIONS",
    "DIRECT",
    "DIRECT_SOCKETS",
    "ENDPOINTS",
    "EVENTS",
    "HEARTBEAT",
    "NAMESPACES",
    "NAMESPACES_ASKED",
    "NAMESPACE_EVENTS",
    "NETWORKS",
    "NUMBERS",
    "ORIGINS",
    "OUTBOUND",
    "PLACES",
    "REFUSALS",
    "RESOLVERS",
    "RESOLVERS6",
    "RESOLVER_NEXT",
    "RESOLVER_SLOTS",
    "SERVICES",
    "SLOTS",
    "SOCKETS",
];

/// How to attach.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The cgroup whose processes are captured; `None` for all: the root of
    /// the unified hierarchy.
    pub cgroup: Option<PathBuf>,
    /// A directory for pins, on a bpf file system or where one can be mounted;
    /// `None` for no pins.
    pub bpffs: Option<PathBuf>,
    /// The lock of that directory, from an agent that hands over to this one.
    pub pins_lock: Option<Arc<OwnedFd>>,
}

/// The kernel programs, attached, and their maps.
///
/// Without pins all is detached when this is dropped or the process ends.
/// With pins everything stays, and the next agent goes on with it:
/// [`super::clean_up`] removes it.
#[derive(Debug)]
pub struct Kernel {
    pub(super) cgroup: PathBuf,
    pub(super) cgroup_fd: OwnedFd,
    pub(super) config: Table<u32, Config>,
    pub(super) heartbeat: Table<u32, u64>,
    pub(super) cgroups: Table<u64, u32>,
    pub(super) namespaces: Table<u64, Listeners>,
    pub(super) store: KernelStore,
    pub(super) origins: Origins,
    pub(super) direct: DirectMaps,
    pub(super) resolvers: Table<u32, Resolver>,
    pub(super) resolver_slots: Table<Resolver, u32>,
    pub(super) resolvers6: Table<u32, Resolvers6>,
    pub(super) outbound: OutboundMaps,
    pub(super) counters: PerCpu,
    pub(super) numbers: Table<Fingerprint, u64>,
    /// The storage of direct connections on their sockets.
    pub(super) direct_sockets: OwnedFd,
    bypass: Bypass,
    /// What the control side knows to be in the maps.
    pub(super) control: Mutex<Control>,
    pub(super) ebpf: Mutex<Ebpf>,
    pub(super) pins: Option<Mutex<Pins>>,
    /// Whether the maps are those of an agent before.
    adopted: bool,
    _links: Vec<OwnedFd>,
}

impl Kernel {
    /// Checks the host, loads the programs and attaches them to the cgroup,
    /// beside whatever is attached there. New maps let everything pass until
    /// [`Self::configure`] is called; pinned ones go on as they are.
    ///
    /// # Errors
    /// What the host lacks, or what the kernel refused.
    pub fn attach(options: &Options) -> Result<Self, CaptureError> {
        system::check()?;
        let cgroup = match &options.cgroup {
            Some(path) => path.clone(),
            None => system::cgroup_root()?,
        };
        let cgroup_fd = system::open_cgroup(&cgroup)?;
        if OBJECT.is_empty() {
            return Err(CaptureError::NotBuilt);
        }
        let cgroup_id = system::cgroup_id(&cgroup_fd, &cgroup)?;
        let mut pins = options
            .bpffs
            .as_deref()
            .map(|root| Pins::open(root, cgroup_id, options.pins_lock.clone()))
            .transpose()?;
        let mut adopted = pins.as_ref().is_some_and(|pins| pins.holds("CONFIG"));
        let opened = open(pins.as_ref());
        let (mut ebpf, maps) = match (opened, &mut pins) {
            (Err(CaptureError::Misfit { map }), Some(pins)) => {
                tracing::warn!(map, "a pinned map has another form; all will be replaced");
                pins.set_aside()?;
                adopted = false;
                open(Some(pins))?
            }
            (opened, _) => opened?,
        };
        let links = attach_programs(&mut ebpf, &cgroup_fd, pins.as_ref())?;
        let kernel = Self {
            config: maps.config,
            heartbeat: maps.heartbeat,
            cgroups: maps.cgroups,
            namespaces: maps.namespaces,
            store: maps.store,
            origins: maps.origins,
            direct: maps.direct,
            resolvers: maps.resolvers,
            resolver_slots: maps.resolver_slots,
            resolvers6: maps.resolvers6,
            outbound: maps.outbound,
            counters: maps.counters,
            numbers: maps.numbers,
            direct_sockets: maps.direct_sockets,
            bypass: maps.bypass,
            control: Mutex::new(Control::new()),
            ebpf: Mutex::new(ebpf),
            pins: pins.map(Mutex::new),
            adopted,
            _links: links,
            cgroup,
            cgroup_fd,
        };
        if adopted {
            kernel.adopt()?;
        }
        Ok(kernel)
    }

    /// Whether the maps are those of an agent before, and in force.
    pub const fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Removes pinned programs of another layout, once ours are in force: until
    /// then both are attached. Returns how many sets there were.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_obsolete(&self) -> Result<usize, CaptureError> {
        let Some(pins) = &self.pins else { return Ok(0) };
        let mut pins = pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.remove_obsolete().map_err(|error| CaptureError::Pins {
            path: pins.path("..").clone(),
            error,
        })
    }

    /// Takes back the pins of an agent that did not get ready, so that nothing of
    /// it stays in force. What an agent before had pinned is left as it is.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn withdraw(&self) -> Result<(), CaptureError> {
        let Some(pins) = self.pins.as_ref().filter(|_| !self.adopted) else {
            return Ok(());
        };
        let pins = pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.withdraw()
            .map(drop)
            .map_err(|error| CaptureError::Pins {
                path: pins.path(""),
                error,
            })
    }

    /// The lock of the directory of pins, to hand over; `None` without pins.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pins_lock(&self) -> std::io::Result<Option<OwnedFd>> {
        let Some(pins) = &self.pins else {
            return Ok(None);
        };
        let pins = pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.lock().try_clone_to_owned().map(Some)
    }

    /// The cgroup that the programs are attached to.
    pub fn cgroup(&self) -> &std::path::Path {
        &self.cgroup
    }

    /// Marks the agent's own sockets.
    pub fn bypass(&self) -> Bypass {
        self.bypass.clone()
    }

    /// A handle that looks up the records of redirected connections.
    pub fn origins(&self) -> Origins {
        self.origins.clone()
    }

    /// See [`Origins::take`].
    ///
    /// # Errors
    /// When the kernel map cannot be read.
    pub fn take_origin(
        &self,
        netns: u64,
        peer: SocketAddr,
        listener: u16,
    ) -> Result<Option<Captured>, CaptureError> {
        self.origins
            .take(netns, peer, listener)
            .map_err(|error| CaptureError::map("ORIGINS", error))
    }

    /// See [`Origins::sweep`].
    ///
    /// # Errors
    /// When the kernel map cannot be read.
    pub fn sweep_origins(&self, older_than: Duration) -> Result<usize, CaptureError> {
        self.origins
            .sweep(older_than)
            .map_err(|error| CaptureError::map("ORIGINS", error))
    }

    /// The reader of the programs' log lines, which hands them to the `log`
    /// crate; the caller waits on its descriptor and calls `flush`. `None` when
    /// it was taken before.
    pub fn take_logger(&self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.ebpf()).ok()
    }

    pub(super) fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The typed faces of all maps.
struct Maps {
    config: Table<u32, Config>,
    heartbeat: Table<u32, u64>,
    cgroups: Table<u64, u32>,
    namespaces: Table<u64, Listeners>,
    store: KernelStore,
    origins: Origins,
    direct: DirectMaps,
    resolvers: Table<u32, Resolver>,
    resolver_slots: Table<Resolver, u32>,
    resolvers6: Table<u32, Resolvers6>,
    outbound: OutboundMaps,
    counters: PerCpu,
    numbers: Table<Fingerprint, u64>,
    direct_sockets: OwnedFd,
    bypass: Bypass,
}

fn open(pins: Option<&Pins>) -> Result<(Ebpf, Maps), CaptureError> {
    let mut ebpf = open_object(system::has_set_retval(), pins)?;
    let maps = Maps {
        config: table(&mut ebpf, "CONFIG")?,
        heartbeat: table(&mut ebpf, "HEARTBEAT")?,
        cgroups: table(&mut ebpf, "CGROUPS")?,
        namespaces: table(&mut ebpf, "NAMESPACES")?,
        store: KernelStore {
            exact: table(&mut ebpf, "SERVICES")?,
            networks: table(&mut ebpf, "NETWORKS")?,
        },
        origins: Origins::new(table(&mut ebpf, "ORIGINS")?),
        direct: DirectMaps {
            services: table(&mut ebpf, "DIRECT")?,
            slots: table(&mut ebpf, "SLOTS")?,
            places: table(&mut ebpf, "PLACES")?,
            endpoints: table(&mut ebpf, "ENDPOINTS")?,
        },
        resolvers: table(&mut ebpf, "RESOLVERS")?,
        resolver_slots: table(&mut ebpf, "RESOLVER_SLOTS")?,
        resolvers6: table(&mut ebpf, "RESOLVERS6")?,
        outbound: OutboundMaps {
            modes: table(&mut ebpf, "OUTBOUND")?,
            allowed: table(&mut ebpf, "ALLOWED")?,
            destinations: table(&mut ebpf, "DESTINATIONS")?,
        },
        counters: PerCpu::new(map_fd(&mut ebpf, "COUNTERS")?, system::cpus()?),
        numbers: table(&mut ebpf, "NUMBERS")?,
        direct_sockets: map_fd(&mut ebpf, "DIRECT_SOCKETS")?,
        bypass: Bypass::new(map_fd(&mut ebpf, "SOCKETS")?),
    };
    Ok((ebpf, maps))
}

/// Makes the maps or finds them pinned, and prepares the programs for a kernel
/// that has `bpf_set_retval` or not.
fn open_object(has_set_retval: bool, pins: Option<&Pins>) -> Result<Ebpf, CaptureError> {
    let has_set_retval = u8::from(has_set_retval);
    let mut loader = EbpfLoader::new();
    loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
    if let Some(pins) = pins {
        for name in PINNED {
            loader.map_pin_path(name, pins.path(name));
        }
    }
    loader
        .load(OBJECT)
        .map_err(|error| CaptureError::Load(Box::new(error)))
}

/// Has the kernel verify all programs.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    for (name, ..) in PROGRAMS {
        let program = ebpf
            .program_mut(name)
            .ok_or(CaptureError::Missing { name })?;
        load(program).map_err(|error| CaptureError::Program {
            name,
            error: Box::new(error),
        })?;
    }
    Ok(())
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches the programs, or puts them behind the links that are pinned.
fn attach_programs(
    ebpf: &mut Ebpf,
    cgroup: &OwnedFd,
    pins: Option<&Pins>,
) -> Result<Vec<OwnedFd>, CaptureError> {
    // Load all before the first is attached: a kernel that refuses one must
    // not capture half.
    load_programs(ebpf)?;
    let mut links = Vec::with_capacity(PROGRAMS.len());
    for (name, _, attach_type) in PROGRAMS {
        let failed = |error| CaptureError::Link { name, error };
        let program = ebpf
            .program(name)
            .and_then(|program| program.fd().ok())
            .ok_or(CaptureError::Missing { name })?;
        let path = pins.map(|pins| pins.path(name));
        let live = match &path {
            Some(path) => sys::pinned(path).map_err(failed)?,
            None => None,
        };
        let link = if let Some(link) = live {
            sys::replace_program(link.as_fd(), program.as_fd()).map_err(failed)?;
            link
        } else {
            let link = sys::link(program.as_fd(), cgroup.as_fd(), attach_type).map_err(failed)?;
            if let Some(path) = &path {
                sys::pin(link.as_fd(), path).map_err(failed)?;
            }
            link
        };
        links.push(link);
    }
    Ok(links)
}

fn table<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Table<K, V>, CaptureError> {
    let fd = map_fd(ebpf, name)?;
    let sizes = sys::map_sizes(fd.as_fd()).map_err(|error| CaptureError::map(name, error))?;
    if sizes != (size_of::<K>(), size_of::<V>()) {
        return Err(CaptureError::Misfit { map: name });
    }
    Ok(Table::new(fd))
}

fn map_fd(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, CaptureError> {
    let map = ebpf.map(name).ok_or(CaptureError::Missing { name })?;
    data(map)
        .ok_or(CaptureError::Missing { name })?
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| CaptureError::map(name, error))
}

const fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Kernels before 5.18 lack `bpf_set_retval`: a program that calls it only
    /// in a branch which the loader closed must still be accepted.
    #[test]
    fn programs_load_without_bpf_set_retval() {
        if std::env::var_os("EGRESS_SKIP_KERNEL_TESTS").is_some_and(|value| value == "1") {
            println!("skipped: EGRESS_SKIP_KERNEL_TESTS=1");
            return;
        }
        let mut ebpf = open_object(false, None).unwrap();
        load_programs(&mut ebpf).unwrap();
        // What those programs do instead of choosing an errno.
        let error = std::net::TcpStream::connect("127.0.0.1:0").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let error = std::net::TcpStream::connect("[::1]:0").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}
