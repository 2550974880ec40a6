//! The direct path seen from the agent: plans for the kernel program, and what
//! it counts.

use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::RingBuf;
use egress_common::direct::{Slot, SlotKey};

use super::direct_reports::DirectReports;
use super::error::CaptureError;
use super::kernel::Kernel;
use super::origins::address;
use crate::policy::snapshot::ServiceId;

mod tables;

pub(super) use self::tables::{DirectControl, DirectMaps};
use self::tables::{Written, count, value};

/// How the kernel serves one service without a proxy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DirectPlan {
    /// Which slot a connection gets.
    pub balance: DirectBalance,
    /// `connectionPool.tcp.maxConnections`; `None`: any number.
    pub max_connections: Option<u32>,
    /// `connectionPool.tcp.connectTimeout`; `None`: the kernel's patience.
    pub connect_timeout: Option<Duration>,
    /// `connectionPool.tcp.tcpKeepalive`.
    pub keepalive: Option<DirectKeepalive>,
    /// Shares of the endpoints that may be used, in the order in which round
    /// robin goes through them: an endpoint of weight two stands here twice.
    /// Empty: every connection is refused (`UH`).
    pub slots: Vec<DirectSlot>,
}

/// One share of an endpoint's weight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectSlot {
    /// Number of the endpoint, which reports carry; not 0.
    pub endpoint: u64,
    /// Where to connect to.
    pub address: SocketAddr,
}

/// `trafficPolicy.loadBalancer.simple`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DirectBalance {
    /// `ROUND_ROBIN`.
    #[default]
    RoundRobin,
    /// `RANDOM`.
    Random,
    /// `LEAST_REQUEST`: the better of two random ones, by open connections.
    LeastConnections,
}

/// `tcpKeepalive`; a zero is the kernel's default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirectKeepalive {
    /// `time`, in whole seconds.
    pub idle: Duration,
    /// `interval`, in whole seconds.
    pub interval: Duration,
    /// `probes`.
    pub probes: u32,
}

impl Kernel {
    /// Gives the kernel a plan for a service whose entries have the verdict
    /// direct (or proxy with `on-agent-failure: open`), replacing the one
    /// before. It is in force for the next connection when this returns. False
    /// when it was the plan already.
    ///
    /// # Errors
    /// When a map is full or cannot be written; the plan before stays.
    pub fn set_direct(&self, service: ServiceId, plan: &DirectPlan) -> Result<bool, CaptureError> {
        let control = &mut self.control().direct;
        let number = service.0;
        let (generation, before) = match control.plans.get(&number) {
            Some(written) if written.plan == *plan => return Ok(false),
            Some(written) => (written.generation, count(&written.plan)),
            None => (0, 0),
        };
        let next = generation.wrapping_add(1);
        self.maps.direct.make_places(number)?;
        control.leaving.retain(|leaving| *leaving != number);
        let (four, six): (Vec<&DirectSlot>, Vec<&DirectSlot>) =
            plan.slots.iter().partition(|slot| slot.address.is_ipv4());
        for (index, slot) in (0_u32..).zip(four.iter().chain(&six)) {
            self.maps.direct.make_endpoint(slot.endpoint)?;
            let key = SlotKey {
                service: number,
                generation: next,
                index,
            };
            let value = Slot {
                endpoint: slot.endpoint,
                address: address(slot.address.ip()),
                port: slot.address.port(),
                reserved: [0; 6],
            };
            self.maps
                .direct
                .slots
                .set(&key, &value)
                .map_err(|error| CaptureError::map("SLOTS", error))?;
        }
        self.maps
            .direct
            .services
            .set(&number, &value(plan, next, four.len()))
            .map_err(|error| CaptureError::map("DIRECT", error))?;

        for slot in &plan.slots {
            *control.users.entry(slot.endpoint).or_default() += 1;
        }
        let written = Written {
            plan: plan.clone(),
            generation: next,
            before,
        };
        if let Some(old) = control.plans.insert(number, written) {
            self.maps
                .direct
                .remove_slots(number, old.generation.wrapping_sub(1), old.before)?;
            control.forget_users(&old.plan);
        }
        self.maps.direct.collect(control)?;
        Ok(true)
    }

    /// Takes the plan of a service away: its connections go to the agent, and
    /// those that are open go on.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn remove_direct(&self, service: ServiceId) -> Result<(), CaptureError> {
        let control = &mut self.control().direct;
        let number = service.0;
        self.maps
            .direct
            .services
            .remove(&number)
            .map_err(|error| CaptureError::map("DIRECT", error))?;
        if let Some(old) = control.plans.remove(&number) {
            self.maps
                .direct
                .remove_slots(number, old.generation, count(&old.plan))?;
            self.maps
                .direct
                .remove_slots(number, old.generation.wrapping_sub(1), old.before)?;
            control.forget_users(&old.plan);
            control.leaving.push(number);
        }
        self.maps.direct.collect(control)
    }

    /// Frees the counters of services and endpoints that have no plan any more
    /// and whose last connection has ended. Called now and then.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn collect_direct(&self) -> Result<(), CaptureError> {
        self.maps.direct.collect(&mut self.control().direct)
    }

    /// Open direct connections of a service.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn direct_connections(&self, service: ServiceId) -> Result<u64, CaptureError> {
        self.maps.direct.active(service.0)
    }

    /// Open direct connections of all services.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn all_direct_connections(&self) -> Result<u64, CaptureError> {
        let entries = self.maps.direct.places.entries();
        let places = entries.map_err(|error| CaptureError::map("PLACES", error))?;
        Ok(places.values().map(|places| places.active).sum())
    }

    /// Open direct connections of an endpoint.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn direct_connections_of(&self, endpoint: u64) -> Result<u64, CaptureError> {
        self.maps.direct.load(endpoint)
    }

    /// The reader of the reports; `None` when it was taken before.
    pub fn take_direct_reports(&self) -> Option<DirectReports> {
        let map = self.ebpf().take_map("EVENTS")?;
        RingBuf::try_from(map).ok().map(DirectReports::new)
    }
}
