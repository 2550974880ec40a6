//! Loads and attaches the kernel programs, and holds them attached.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::{Map, MapData};
use aya::programs::{CgroupAttachMode, Program, ProgramError};
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
use super::services::KernelStore;
use super::sys::{PerCpu, Table};
use super::system;

/// The object that the build script made; empty when it was told to skip it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.bpf.o"));

/// Our programs by name, in the order in which they are attached: what shows
/// addresses and answers comes before what changes them.
pub(super) const PROGRAMS: [&str; 11] = [
    "egress_release",
    "egress_create",
    "egress_sock_ops",
    "egress_peername4",
    "egress_peername6",
    "egress_recvmsg4",
    "egress_recvmsg6",
    "egress_sendmsg4",
    "egress_sendmsg6",
    "egress_connect4",
    "egress_connect6",
];

/// How to attach.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The cgroup whose processes are captured; `None` for all: the root of
    /// the unified hierarchy.
    pub cgroup: Option<PathBuf>,
    /// A directory on a bpf file system for pins; `None` for no pins.
    pub bpffs: Option<PathBuf>,
}

/// The kernel programs, attached, and their maps. All is detached when this is
/// dropped or the process ends.
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
    bypass: Bypass,
    /// What the control side knows to be in the maps.
    pub(super) control: Mutex<Control>,
    /// Holds the links.
    pub(super) ebpf: Mutex<Ebpf>,
}

impl Kernel {
    /// Checks the host, loads the programs and attaches them to the cgroup,
    /// beside whatever is attached there. They let everything pass until
    /// [`Self::configure`] is called.
    ///
    /// # Errors
    /// What the host lacks, or what the kernel refused.
    pub fn attach(options: &Options) -> Result<Self, CaptureError> {
        system::check(options.bpffs.as_deref())?;
        let cgroup = match &options.cgroup {
            Some(path) => path.clone(),
            None => system::cgroup_root()?,
        };
        let cgroup_fd = system::open_cgroup(&cgroup)?;
        if OBJECT.is_empty() {
            return Err(CaptureError::NotBuilt);
        }
        let mut ebpf = open_object(system::has_set_retval())?;

        let mut kernel = Self {
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
            bypass: Bypass::new(map_fd(&mut ebpf, "SOCKETS")?),
            control: Mutex::new(Control::new()),
            ebpf: Mutex::new(ebpf),
            cgroup,
            cgroup_fd,
        };
        kernel.attach_programs()?;
        Ok(kernel)
    }

    fn attach_programs(&mut self) -> Result<(), CaptureError> {
        let ebpf = self.ebpf.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Load all before the first is attached: a kernel that refuses one must
        // not capture half.
        load_programs(ebpf)?;
        for name in PROGRAMS {
            let program = ebpf
                .program_mut(name)
                .ok_or(CaptureError::Missing { name })?;
            attach(program, &self.cgroup_fd).map_err(|error| CaptureError::Program {
                name,
                error: Box::new(error),
            })?;
        }
        Ok(())
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

/// Makes the maps, and prepares the programs for a kernel that has
/// `bpf_set_retval` or not.
fn open_object(has_set_retval: bool) -> Result<Ebpf, CaptureError> {
    let has_set_retval = u8::from(has_set_retval);
    EbpfLoader::new()
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .load(OBJECT)
        .map_err(|error| CaptureError::Load(Box::new(error)))
}

/// Has the kernel verify all programs.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    for name in PROGRAMS {
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

fn attach(program: &mut Program, cgroup: &OwnedFd) -> Result<(), ProgramError> {
    // `Single` means flags 0, which for links allows any number beside it.
    let mode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSockAddr(program) => program.attach(cgroup, mode).map(drop),
        Program::CgroupSock(program) => program.attach(cgroup, mode).map(drop),
        Program::SockOps(program) => program.attach(cgroup, mode).map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn table<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Table<K, V>, CaptureError> {
    Ok(Table::new(map_fd(ebpf, name)?))
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
        let mut ebpf = open_object(false).unwrap();
        load_programs(&mut ebpf).unwrap();
        // What those programs do instead of choosing an errno.
        let error = std::net::TcpStream::connect("127.0.0.1:0").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let error = std::net::TcpStream::connect("[::1]:0").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}
