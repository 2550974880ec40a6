//! The direct path seen from the agent: plans for the kernel program, and what
//! it counts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::RingBuf;
use egress_common::direct::{self as layout, DirectService, Places, Slot, SlotKey};

use super::direct_reports::DirectReports;
use super::error::CaptureError;
use super::kernel::Kernel;
use super::origins::{address, ip};
use super::sys::{self, Table};
use crate::policy::snapshot::ServiceId;

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

/// The maps of the direct path.
#[derive(Debug)]
pub(super) struct DirectMaps {
    pub(super) services: Table<u32, DirectService>,
    pub(super) slots: Table<SlotKey, Slot>,
    pub(super) places: Table<u32, Places>,
    pub(super) endpoints: Table<u64, u64>,
}

/// What the agent knows to be in those maps.
#[derive(Debug, Default)]
pub(super) struct DirectControl {
    plans: HashMap<u32, Written>,
    /// Services without a plan whose last connections are still open.
    leaving: Vec<u32>,
    /// How many services use an endpoint; 0: its counter goes once it is zero.
    users: HashMap<u64, usize>,
}

#[derive(Debug)]
struct Written {
    plan: DirectPlan,
    generation: u32,
    /// Number of slots of the generation before, which a connection that is
    /// being made may still look at.
    before: u32,
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
        self.direct.make_places(number)?;
        control.leaving.retain(|leaving| *leaving != number);
        let (four, six): (Vec<&DirectSlot>, Vec<&DirectSlot>) =
            plan.slots.iter().partition(|slot| slot.address.is_ipv4());
        for (index, slot) in (0_u32..).zip(four.iter().chain(&six)) {
            self.direct.make_endpoint(slot.endpoint)?;
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
            self.direct
                .slots
                .set(&key, &value)
                .map_err(|error| CaptureError::map("SLOTS", error))?;
        }
        self.direct
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
            self.direct
                .remove_slots(number, old.generation.wrapping_sub(1), old.before)?;
            control.forget_users(&old.plan);
        }
        self.direct.collect(control)?;
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
        self.direct
            .services
            .remove(&number)
            .map_err(|error| CaptureError::map("DIRECT", error))?;
        if let Some(old) = control.plans.remove(&number) {
            self.direct
                .remove_slots(number, old.generation, count(&old.plan))?;
            self.direct
                .remove_slots(number, old.generation.wrapping_sub(1), old.before)?;
            control.forget_users(&old.plan);
            control.leaving.push(number);
        }
        self.direct.collect(control)
    }

    /// Frees the counters of services and endpoints that have no plan any more
    /// and whose last connection has ended. Called now and then.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn collect_direct(&self) -> Result<(), CaptureError> {
        self.direct.collect(&mut self.control().direct)
    }

    /// Open direct connections of a service.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn direct_connections(&self, service: ServiceId) -> Result<u64, CaptureError> {
        self.direct.active(service.0)
    }

    /// Open direct connections of all services.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn all_direct_connections(&self) -> Result<u64, CaptureError> {
        let entries = self.direct.places.entries();
        let places = entries.map_err(|error| CaptureError::map("PLACES", error))?;
        Ok(places.values().map(|places| places.active).sum())
    }

    /// Open direct connections of an endpoint.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn direct_connections_of(&self, endpoint: u64) -> Result<u64, CaptureError> {
        self.direct.load(endpoint)
    }

    /// The reader of the reports; `None` when it was taken before.
    pub fn take_direct_reports(&self) -> Option<DirectReports> {
        let map = self.ebpf().take_map("EVENTS")?;
        RingBuf::try_from(map).ok().map(DirectReports::new)
    }
}

fn count(plan: &DirectPlan) -> u32 {
    u32::try_from(plan.slots.len()).unwrap_or(u32::MAX)
}

fn value(plan: &DirectPlan, generation: u32, four: usize) -> DirectService {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let keepalive = plan.keepalive.unwrap_or_default();
    DirectService {
        generation,
        slots: count(plan),
        slots4: u32::try_from(four).unwrap_or(u32::MAX),
        max_connections: plan.max_connections.unwrap_or(u32::MAX),
        connect_timeout_ms: plan.connect_timeout.map_or(0, |time| {
            u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1)
        }),
        keepalive_idle_s: seconds(keepalive.idle),
        keepalive_interval_s: seconds(keepalive.interval),
        keepalive_probes: keepalive.probes,
        keepalive: u8::from(plan.keepalive.is_some()),
        balance: match plan.balance {
            DirectBalance::RoundRobin => layout::BALANCE_ROUND_ROBIN,
            DirectBalance::Random => layout::BALANCE_RANDOM,
            DirectBalance::LeastConnections => layout::BALANCE_LEAST_CONNECTIONS,
        },
        reserved: [0; 6],
    }
}

impl DirectControl {
    /// All plans in force.
    pub(super) fn all(&self) -> Vec<(ServiceId, DirectPlan)> {
        let plans = self.plans.iter();
        plans
            .map(|(service, written)| (ServiceId(*service), written.plan.clone()))
            .collect()
    }

    fn forget_users(&mut self, plan: &DirectPlan) {
        for slot in &plan.slots {
            if let Some(users) = self.users.get_mut(&slot.endpoint) {
                *users = users.saturating_sub(1);
            }
        }
    }
}

/// The plan that the maps hold for a service.
fn plan(service: &DirectService, slots: Vec<Slot>) -> DirectPlan {
    let seconds = |time: u32| Duration::from_secs(u64::from(time));
    let timeout = service.connect_timeout_ms;
    DirectPlan {
        balance: match service.balance {
            layout::BALANCE_RANDOM => DirectBalance::Random,
            layout::BALANCE_LEAST_CONNECTIONS => DirectBalance::LeastConnections,
            _ => DirectBalance::RoundRobin,
        },
        max_connections: (service.max_connections != u32::MAX).then_some(service.max_connections),
        connect_timeout: (timeout != 0).then(|| Duration::from_millis(u64::from(timeout))),
        keepalive: (service.keepalive != 0).then(|| DirectKeepalive {
            idle: seconds(service.keepalive_idle_s),
            interval: seconds(service.keepalive_interval_s),
            probes: service.keepalive_probes,
        }),
        slots: slots
            .into_iter()
            .map(|slot| DirectSlot {
                endpoint: slot.endpoint,
                address: SocketAddr::new(ip(&slot.address), slot.port),
            })
            .collect(),
    }
}

impl DirectMaps {
    /// What an agent before left: its plans, with the slots of older
    /// generations removed, and counters of connections that are still open.
    pub(super) fn adopt(&self) -> Result<DirectControl, CaptureError> {
        let read = |map| move |error| CaptureError::map(map, error);
        let services = self.services.entries().map_err(read("DIRECT"))?;
        let mut slots: HashMap<u32, Vec<(u32, Slot)>> = HashMap::new();
        for (key, slot) in self.slots.entries().map_err(read("SLOTS"))? {
            let current = services
                .get(&key.service)
                .is_some_and(|service| service.generation == key.generation);
            if current {
                slots
                    .entry(key.service)
                    .or_default()
                    .push((key.index, slot));
            } else {
                self.slots.remove(&key).map_err(read("SLOTS"))?;
            }
        }
        let mut control = DirectControl::default();
        for (number, service) in &services {
            let mut slots = slots.remove(number).unwrap_or_default();
            slots.sort_by_key(|(index, _)| *index);
            let slots = slots.into_iter().map(|(_, slot)| slot).collect();
            let written = Written {
                plan: plan(service, slots),
                generation: service.generation,
                before: 0,
            };
            for slot in &written.plan.slots {
                *control.users.entry(slot.endpoint).or_default() += 1;
            }
            control.plans.insert(*number, written);
        }
        for service in self.places.keys().map_err(read("PLACES"))? {
            if !services.contains_key(&service) {
                control.leaving.push(service);
            }
        }
        for endpoint in self.endpoints.keys().map_err(read("ENDPOINTS"))? {
            control.users.entry(endpoint).or_default();
        }
        Ok(control)
    }

    /// Makes the counter of a service, unless it is there.
    fn make_places(&self, service: u32) -> Result<(), CaptureError> {
        self.places
            .make(&service, &sys::zeroed())
            .map_err(|error| CaptureError::map("PLACES", error))
    }

    fn make_endpoint(&self, endpoint: u64) -> Result<(), CaptureError> {
        self.endpoints
            .make(&endpoint, &0)
            .map_err(|error| CaptureError::map("ENDPOINTS", error))
    }

    fn remove_slots(&self, service: u32, generation: u32, count: u32) -> Result<(), CaptureError> {
        for index in 0..count {
            self.slots
                .remove(&SlotKey {
                    service,
                    generation,
                    index,
                })
                .map_err(|error| CaptureError::map("SLOTS", error))?;
        }
        Ok(())
    }

    fn active(&self, service: u32) -> Result<u64, CaptureError> {
        self.places
            .get(&service)
            .map(|places| places.map_or(0, |places| places.active))
            .map_err(|error| CaptureError::map("PLACES", error))
    }

    fn load(&self, endpoint: u64) -> Result<u64, CaptureError> {
        self.endpoints
            .get(&endpoint)
            .map(Option::unwrap_or_default)
            .map_err(|error| CaptureError::map("ENDPOINTS", error))
    }

    /// A counter must outlive the last connection that it counts: giving a
    /// place back to a newer counter would be wrong for ever.
    fn collect(&self, control: &mut DirectControl) -> Result<(), CaptureError> {
        let mut kept = Vec::new();
        for service in std::mem::take(&mut control.leaving) {
            if self.active(service)? != 0 {
                kept.push(service);
            } else {
                self.places
                    .remove(&service)
                    .map_err(|error| CaptureError::map("PLACES", error))?;
            }
        }
        control.leaving = kept;
        let idle: Vec<u64> = control
            .users
            .iter()
            .filter(|(_, users)| **users == 0)
            .map(|(endpoint, _)| *endpoint)
            .collect();
        for endpoint in idle {
            if self.load(endpoint)? == 0 {
                self.endpoints
                    .remove(&endpoint)
                    .map_err(|error| CaptureError::map("ENDPOINTS", error))?;
                control.users.remove(&endpoint);
            }
        }
        Ok(())
    }
}
