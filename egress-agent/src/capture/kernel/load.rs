//! Makes or finds the maps, has the kernel verify the programs, and attaches
//! them.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, Pod};
use egress_common::{Config, Listeners, Resolver, Resolvers6};

use crate::capture::bypass::Bypass;
use crate::capture::direct::DirectMaps;
use crate::capture::error::CaptureError;
use crate::capture::origins::Origins;
use crate::capture::outbound::OutboundMaps;
use crate::capture::pins::Pins;
use crate::capture::services::KernelStore;
use crate::capture::sys::{self, PerCpu, Table};
use crate::capture::system;
use crate::numbers::Fingerprint;

/// The object that the build script made; empty when it was told to skip it.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.bpf.o"));

/// Our programs with the names of their hooks (as `bpftool cgroup` has them)
/// and the kernel's numbers for those (`enum bpf_attach_type`), in the order in
/// which they are attached: what shows addresses and answers comes before what
/// changes them.
pub(in crate::capture) const PROGRAMS: [(&str, &str, u32); 11] = [
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

/// The typed faces of all maps.
#[derive(Debug)]
pub(in crate::capture) struct Maps {
    pub(in crate::capture) config: Table<u32, Config>,
    pub(in crate::capture) heartbeat: Table<u32, u64>,
    pub(in crate::capture) cgroups: Table<u64, u32>,
    pub(in crate::capture) namespaces: Table<u64, Listeners>,
    pub(in crate::capture) store: KernelStore,
    pub(in crate::capture) origins: Origins,
    pub(in crate::capture) direct: DirectMaps,
    pub(in crate::capture) resolvers: Table<u32, Resolver>,
    pub(in crate::capture) resolver_slots: Table<Resolver, u32>,
    pub(in crate::capture) resolvers6: Table<u32, Resolvers6>,
    pub(in crate::capture) outbound: OutboundMaps,
    pub(in crate::capture) counters: PerCpu,
    pub(in crate::capture) numbers: Table<Fingerprint, u64>,
    /// The storage of direct connections on their sockets.
    pub(in crate::capture) direct_sockets: OwnedFd,
    pub(in crate::capture) bypass: Bypass,
}

pub(super) fn open(pins: Option<&Pins>) -> Result<(Ebpf, Maps), CaptureError> {
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
pub(super) fn attach_programs(
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
