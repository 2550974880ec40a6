//! What the kernel side tells about itself.

use std::collections::HashMap;
use std::os::fd::AsFd;

use aya::Pod;
use aya::programs::{Program, loaded_programs};
use egress_common::counter;

use super::error::CaptureError;
use super::kernel::{Kernel, PROGRAMS};
use super::sys::{self, Table};

/// A program on one of the hooks that ours are attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachedProgram {
    /// The hook, as `bpftool cgroup` names it, such as `connect4`.
    pub hook: &'static str,
    /// Place in the order in which the programs of the hook run, from 0.
    pub position: usize,
    /// Program id.
    pub id: u32,
    /// Program name, which the kernel cuts to fifteen bytes; empty if unknown.
    pub name: String,
    /// Attached by this agent.
    pub ours: bool,
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
    /// Direct connections refused: no place under `maxConnections`.
    pub refused_overflow: u64,
    /// Direct connections refused: no endpoint may be used.
    pub refused_no_endpoint: u64,
    /// Connections and datagrams refused: not registered.
    pub refused_unregistered: u64,
    /// Reports to the agent that found their ring buffer full.
    pub reports_lost: u64,
}

impl Counters {
    /// Each with its name in `egressctl status` and in metrics.
    pub const fn named(&self) -> [(&'static str, u64); 14] {
        [
            ("proxied", self.proxied),
            ("direct", self.direct),
            ("passed", self.passed),
            ("refused-agent-down", self.refused_agent_down),
            ("refused-policy", self.refused_policy),
            ("refused-udp", self.refused_udp),
            ("refused-unregistered", self.refused_unregistered),
            ("refused-overflow", self.refused_overflow),
            ("refused-no-endpoint", self.refused_no_endpoint),
            ("dns", self.dns),
            ("bypassed", self.bypassed),
            ("lost", self.lost),
            ("opened-agent-down", self.opened_agent_down),
            ("reports-lost", self.reports_lost),
        ]
    }
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
    /// `DIRECT`: services with a plan.
    pub direct_services: usize,
    /// `SLOTS`.
    pub direct_slots: usize,
    /// `PLACES` and `ENDPOINTS`: counters of direct connections.
    pub direct_counters: usize,
}

/// The hooks in the order of their numbers.
fn hooks() -> Vec<(&'static str, u32)> {
    let mut hooks: Vec<_> = PROGRAMS
        .iter()
        .map(|&(_, hook, number)| (hook, number))
        .collect();
    hooks.sort_by_key(|&(_, number)| number);
    hooks
}

impl Kernel {
    /// The kernel's counters.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters, CaptureError> {
        const COUNT: usize = counter::COUNT as usize;
        let sums = self
            .maps
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
            refused_overflow: at(counter::REFUSED_OVERFLOW),
            refused_no_endpoint: at(counter::REFUSED_NO_ENDPOINT),
            refused_unregistered: at(counter::REFUSED_UNREGISTERED),
            reports_lost: at(counter::EVENTS_LOST) + at(counter::REPORTS_LOST),
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
            services: count("SERVICES", &self.maps.store.exact)?,
            networks: count("NETWORKS", &self.maps.store.networks)?,
            origins: self
                .maps
                .origins
                .len()
                .map_err(|error| CaptureError::map("ORIGINS", error))?,
            namespaces: count("NAMESPACES", &self.maps.namespaces)?,
            cgroups: count("CGROUPS", &self.maps.cgroups)?,
            resolvers: count("RESOLVER_SLOTS", &self.maps.resolver_slots)?,
            direct_services: count("DIRECT", &self.maps.direct.services)?,
            direct_slots: count("SLOTS", &self.maps.direct.slots)?,
            direct_counters: count("PLACES", &self.maps.direct.places)?
                + count("ENDPOINTS", &self.maps.direct.endpoints)?,
        })
    }

    /// All programs that run for processes of our cgroup at the hooks that we
    /// use: ours, those of others on the same cgroup, and those of cgroups
    /// above. Programs of cgroups below are not seen from here.
    ///
    /// # Errors
    /// When the kernel does not answer the query.
    pub fn programs(&self) -> Result<Vec<AttachedProgram>, CaptureError> {
        let ours = self.program_ids();
        let mut list = Vec::new();
        for (hook, attach_type) in hooks() {
            let ids = sys::attached(self.cgroup_fd.as_fd(), attach_type)
                .map_err(|error| CaptureError::map("of attached programs", error))?;
            for (position, id) in ids.into_iter().enumerate() {
                list.push(AttachedProgram {
                    hook,
                    position,
                    id,
                    name: ours.get(&id).copied().unwrap_or_default().to_owned(),
                    ours: ours.contains_key(&id),
                });
            }
        }
        if list.iter().any(|program| !program.ours) {
            let names: HashMap<u32, String> = loaded_programs()
                .filter_map(Result::ok)
                .filter_map(|info| Some((info.id(), info.name_as_str()?.to_owned())))
                .collect();
            for program in list.iter_mut().filter(|program| !program.ours) {
                program.name = names.get(&program.id).cloned().unwrap_or_default();
            }
        }
        Ok(list)
    }

    /// Instructions that the verifier walked for each of our programs (since
    /// Linux 5.16; its limit is a million).
    pub fn verified_instructions(&self) -> Vec<(&'static str, Option<u32>)> {
        self.each_program(|name, info| (name, info.verified_instruction_count()))
    }

    fn program_ids(&self) -> HashMap<u32, &'static str> {
        self.each_program(|name, info| (info.id(), name))
            .into_iter()
            .collect()
    }

    fn each_program<T>(
        &self,
        tell: impl Fn(&'static str, &aya::programs::ProgramInfo) -> T,
    ) -> Vec<T> {
        let ebpf = self.ebpf();
        PROGRAMS
            .iter()
            .filter_map(|&(name, ..)| {
                let info = match ebpf.program(name)? {
                    Program::CgroupSockAddr(program) => program.info(),
                    Program::CgroupSock(program) => program.info(),
                    Program::SockOps(program) => program.info(),
                    _ => return None,
                };
                info.ok().map(|info| tell(name, &info))
            })
            .collect()
    }
}
