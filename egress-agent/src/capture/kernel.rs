//! Loads and attaches the kernel programs, and holds them attached.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{Map, MapData};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SockOps};
use aya::{Ebpf, EbpfLoader, Pod};
use aya_log::EbpfLogger;
use egress_common::{
    Config, LAYOUT_VERSION, Listeners, RESOLVER_SLOTS, Resolver, Resolvers6, ServiceValue, counter,
};

use super::Captured;
use super::bypass::Bypass;
use super::error::CaptureError;
use super::origins::{self, Origins};
use super::services::{Changes, KernelStore, MapKey, Services};
use super::sys::{self, PerCpu, Table};
use super::system;

/// The object that the build script made; empty when it was told to skip it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.bpf.o"));

/// Our programs by name, in the order in which they are attached: what shows
/// addresses and answers comes before what changes them.
const PROGRAMS: [&str; 9] = [
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
    /// Emit the kernel programs' log lines (see [`Kernel::take_logger`]).
    pub log: bool,
}

/// What the kernel programs go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelSettings {
    /// Scope of callers whose cgroup has none.
    pub default_scope: u32,
    /// Age of the heartbeat past which the agent counts as down.
    pub heartbeat_limit: Duration,
    /// Refuse what is not registered.
    pub registry_only: bool,
    /// Capture DNS.
    pub dns: bool,
    /// Emit log lines.
    pub log: bool,
}

/// The kernel's counters since the programs were loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Connections handed to the agent.
    pub proxied: u64,
    /// Connections whose endpoint the kernel picked.
    pub direct: u64,
    /// Unregistered connections that passed.
    pub passed: u64,
    /// Registered connections refused, since the agent could not take them.
    pub refused_agent_down: u64,
    /// Connections refused by policy.
    pub refused_policy: u64,
    /// UDP to a registered address, refused.
    pub refused_udp: u64,
    /// DNS datagrams and connections captured.
    pub dns: u64,
    /// Connections of the agent itself.
    pub bypassed: u64,
    /// Records that could not be stored.
    pub lost: u64,
    /// Connections let through while the agent was down.
    pub opened_agent_down: u64,
}

/// Number of entries in each map that connections can leave something in, and
/// in those that the agent fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// `SERVICES`.
    pub services: usize,
    /// `NETWORKS`.
    pub networks: usize,
    /// `ORIGINS`: redirected connections that are not accepted yet.
    pub origins: usize,
    /// `NAMESPACES`.
    pub namespaces: usize,
    /// `CGROUPS`.
    pub cgroups: usize,
    /// `RESOLVER_SLOTS`: IPv4 resolvers that were asked.
    pub resolvers: usize,
}

/// The kernel programs, attached, and their maps. All is detached when this is
/// dropped or the process ends.
#[derive(Debug)]
pub struct Kernel {
    cgroup: PathBuf,
    cgroup_fd: OwnedFd,
    config: Table<u32, Config>,
    heartbeat: Table<u32, u64>,
    cgroups: Table<u64, u32>,
    namespaces: Table<u64, Listeners>,
    store: KernelStore,
    origins: Origins,
    resolvers: Table<u32, Resolver>,
    resolver_slots: Table<Resolver, u32>,
    resolvers6: Table<u32, Resolvers6>,
    counters: PerCpu,
    bypass: Bypass,
    /// What the control side knows to be in the maps.
    control: Mutex<Control>,
    /// Holds the links.
    ebpf: Mutex<Ebpf>,
}

#[derive(Debug)]
struct Control {
    config: Config,
    services: Services,
    scopes: HashMap<u64, u32>,
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
        let has_set_retval = u8::from(system::has_set_retval());
        let mut ebpf = EbpfLoader::new()
            .override_global("HAS_SET_RETVAL", &has_set_retval, true)
            .load(OBJECT)
            .map_err(|error| CaptureError::Load(Box::new(error)))?;

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
            resolvers: table(&mut ebpf, "RESOLVERS")?,
            resolver_slots: table(&mut ebpf, "RESOLVER_SLOTS")?,
            resolvers6: table(&mut ebpf, "RESOLVERS6")?,
            counters: PerCpu::new(map_fd(&mut ebpf, "COUNTERS")?, system::cpus()?),
            bypass: Bypass::new(map_fd(&mut ebpf, "SOCKETS")?),
            control: Mutex::new(Control {
                config: sys::zeroed(),
                services: Services::default(),
                scopes: HashMap::new(),
            }),
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
        for name in PROGRAMS {
            let program = ebpf
                .program_mut(name)
                .ok_or(CaptureError::Missing { name })?;
            load(program).map_err(|error| CaptureError::Program {
                name,
                error: Box::new(error),
            })?;
        }
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

    pub(super) const fn cgroup_fd(&self) -> &OwnedFd {
        &self.cgroup_fd
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

    /// Makes the entries of the policy equal to `desired`.
    ///
    /// # Errors
    /// When a map is full or cannot be written; the call can be repeated.
    pub fn sync_services(
        &self,
        desired: &HashMap<MapKey, ServiceValue>,
    ) -> Result<Changes, CaptureError> {
        let control = &mut *self.control();
        let networks = desired.keys().any(|key| matches!(key, MapKey::Network(_)));
        self.announce_networks(control, networks)?;
        let changes = control.services.sync(&self.store, desired)?;
        let networks = control.services.has_networks();
        self.write_config(control, |config| config.networks = u8::from(networks))?;
        Ok(changes)
    }

    /// Adds an entry for an address that was found at run time. It stands below
    /// an entry of the policy with the same key.
    ///
    /// # Errors
    /// When a map is full or cannot be written.
    pub fn add_service_key(&self, key: MapKey, value: ServiceValue) -> Result<(), CaptureError> {
        let control = &mut *self.control();
        self.announce_networks(control, matches!(key, MapKey::Network(_)))?;
        control.services.add(&self.store, key, value)
    }

    /// Removes an entry that [`Self::add_service_key`] made; false when there
    /// was none.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_service_key(&self, key: &MapKey) -> Result<bool, CaptureError> {
        self.control().services.remove(&self.store, key)
    }

    /// The programs look at `NETWORKS` only when told that it has entries.
    fn announce_networks(&self, control: &mut Control, any: bool) -> Result<(), CaptureError> {
        if any {
            self.write_config(control, |config| config.networks = 1)?;
        }
        Ok(())
    }

    /// Names the agent's listeners in the namespace with this cookie.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn set_listeners(&self, cookie: u64, listeners: &Listeners) -> Result<(), CaptureError> {
        self.namespaces
            .set(&cookie, listeners)
            .map_err(|error| CaptureError::map("NAMESPACES", error))
    }

    /// Forgets the listeners in a namespace; false when there were none.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_listeners(&self, cookie: u64) -> Result<bool, CaptureError> {
        self.namespaces
            .remove(&cookie)
            .map_err(|error| CaptureError::map("NAMESPACES", error))
    }

    /// Makes the scopes of cgroups (by cgroup id) equal to `desired`.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn sync_scopes(&self, desired: &HashMap<u64, u32>) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::map("CGROUPS", error);
        let control = &mut *self.control();
        if !desired.is_empty() {
            self.write_config(control, |config| config.scopes = 1)?;
        }
        for (cgroup, scope) in desired {
            if control.scopes.get(cgroup) != Some(scope) {
                self.cgroups.set(cgroup, scope).map_err(failed)?;
                control.scopes.insert(*cgroup, *scope);
            }
        }
        let gone: Vec<u64> = control
            .scopes
            .keys()
            .filter(|cgroup| !desired.contains_key(cgroup))
            .copied()
            .collect();
        for cgroup in gone {
            self.cgroups.remove(&cgroup).map_err(failed)?;
            control.scopes.remove(&cgroup);
        }
        let any = !control.scopes.is_empty();
        self.write_config(control, |config| config.scopes = u8::from(any))
    }

    /// The IPv4 resolver behind a slot, as the application addressed it.
    /// `None`: nobody asked through this slot.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn resolver(&self, slot: u32) -> Result<Option<SocketAddr>, CaptureError> {
        if slot >= RESOLVER_SLOTS {
            return Ok(None);
        }
        let found = self
            .resolvers
            .get(&slot)
            .map_err(|error| CaptureError::map("RESOLVERS", error))?;
        Ok(found.and_then(|found| socket_address(&found)))
    }

    /// The IPv6 resolver behind the listener `dns6[slot]`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn resolver6(&self, slot: usize) -> Result<Option<SocketAddr>, CaptureError> {
        let table = self
            .resolvers6
            .get(&0)
            .map_err(|error| CaptureError::map("RESOLVERS6", error))?;
        Ok(table
            .and_then(|table| table.resolvers.get(slot).copied())
            .and_then(|found| socket_address(&found)))
    }

    /// Tells the programs what to go by. Until this is called they let
    /// everything pass.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn configure(&self, settings: &KernelSettings) -> Result<(), CaptureError> {
        let control = &mut *self.control();
        self.write_config(control, |config| {
            config.layout = LAYOUT_VERSION;
            config.default_scope = settings.default_scope;
            config.heartbeat_limit_ns =
                u64::try_from(settings.heartbeat_limit.as_nanos()).unwrap_or(u64::MAX);
            config.outbound = if settings.registry_only {
                egress_common::OUTBOUND_REGISTRY_ONLY
            } else {
                egress_common::OUTBOUND_ALLOW_ANY
            };
            config.dns = u8::from(settings.dns);
            config.log = u8::from(settings.log);
        })
    }

    fn write_config(
        &self,
        control: &mut Control,
        change: impl FnOnce(&mut Config),
    ) -> Result<(), CaptureError> {
        let mut wanted = control.config;
        change(&mut wanted);
        if wanted != control.config {
            self.config
                .set(&0, &wanted)
                .map_err(|error| CaptureError::map("CONFIG", error))?;
            control.config = wanted;
        }
        Ok(())
    }

    /// Says that the agent is alive.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn heartbeat(&self) -> Result<(), CaptureError> {
        self.write_heartbeat(super::monotonic_ns())
    }

    /// Says that the agent is not there to take connections, from now on until
    /// the next [`Self::heartbeat`].
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn stop_heartbeat(&self) -> Result<(), CaptureError> {
        self.write_heartbeat(0)
    }

    fn write_heartbeat(&self, at: u64) -> Result<(), CaptureError> {
        self.heartbeat
            .set(&0, &at)
            .map_err(|error| CaptureError::map("HEARTBEAT", error))
    }

    /// The kernel's counters.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters, CaptureError> {
        const COUNT: usize = counter::COUNT as usize;
        let sums = self
            .counters
            .sums::<COUNT>()
            .map_err(|error| CaptureError::map("COUNTERS", error))?;
        let at = |index: u32| sums.get(index as usize).copied().unwrap_or(0);
        Ok(Counters {
            proxied: at(counter::PROXIED),
            direct: at(counter::DIRECT),
            passed: at(counter::PASSED),
            refused_agent_down: at(counter::REFUSED_AGENT_DOWN),
            refused_policy: at(counter::REFUSED_POLICY),
            refused_udp: at(counter::REFUSED_UDP),
            dns: at(counter::DNS),
            bypassed: at(counter::BYPASSED),
            lost: at(counter::LOST),
            opened_agent_down: at(counter::OPENED_AGENT_DOWN),
        })
    }

    /// Counts the entries of the maps, by walking them: for status and tests.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn usage(&self) -> Result<Usage, CaptureError> {
        fn count<K: Pod, V: Pod>(
            name: &'static str,
            table: &Table<K, V>,
        ) -> Result<usize, CaptureError> {
            table
                .keys()
                .map(|keys| keys.len())
                .map_err(|error| CaptureError::map(name, error))
        }
        Ok(Usage {
            services: count("SERVICES", &self.store.exact)?,
            networks: count("NETWORKS", &self.store.networks)?,
            origins: self
                .origins
                .len()
                .map_err(|error| CaptureError::map("ORIGINS", error))?,
            namespaces: count("NAMESPACES", &self.namespaces)?,
            cgroups: count("CGROUPS", &self.cgroups)?,
            resolvers: count("RESOLVER_SLOTS", &self.resolver_slots)?,
        })
    }

    /// The reader of the programs' log lines, which hands them to the `log`
    /// crate; the caller waits on its descriptor and calls `flush`. `None` when
    /// it was taken before.
    pub fn take_logger(&self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        EbpfLogger::init(&mut ebpf).ok()
    }

    pub(super) fn program_ids(&self) -> Vec<(u32, &'static str)> {
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        PROGRAMS
            .iter()
            .filter_map(|name| {
                let info = match ebpf.program(name)? {
                    Program::CgroupSockAddr(program) => program.info(),
                    Program::SockOps(program) => program.info(),
                    _ => return None,
                };
                info.ok().map(|info| (info.id(), *name))
            })
            .collect()
    }

    fn control(&self) -> std::sync::MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach(program: &mut Program, cgroup: &OwnedFd) -> Result<(), ProgramError> {
    // `Single` means flags 0, which for links allows any number beside it.
    let mode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSockAddr(program) => {
            let program: &mut CgroupSockAddr = program;
            program.attach(cgroup, mode).map(drop)
        }
        Program::SockOps(program) => {
            let program: &mut SockOps = program;
            program.attach(cgroup, mode).map(drop)
        }
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
        | Map::LpmTrie(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data),
        _ => None,
    }
}

fn socket_address(resolver: &Resolver) -> Option<SocketAddr> {
    (resolver.port != 0).then(|| SocketAddr::new(origins::ip(&resolver.address), resolver.port))
}
