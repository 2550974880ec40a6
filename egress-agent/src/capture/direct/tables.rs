//! What the maps of the direct path hold, and what an agent before left there.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use egress_common::direct::{self as layout, DirectService, Places, Slot, SlotKey};

use super::{DirectBalance, DirectKeepalive, DirectPlan, DirectSlot};
use crate::capture::error::CaptureError;
use crate::capture::origins::ip;
use crate::capture::sys::{self, Table};
use crate::policy::snapshot::ServiceId;

/// The maps of the direct path.
#[derive(Debug)]
pub(in crate::capture) struct DirectMaps {
    pub(in crate::capture) services: Table<u32, DirectService>,
    pub(in crate::capture) slots: Table<SlotKey, Slot>,
    pub(in crate::capture) places: Table<u32, Places>,
    pub(in crate::capture) endpoints: Table<u64, u64>,
}

/// What the agent knows to be in those maps.
#[derive(Debug, Default)]
pub(in crate::capture) struct DirectControl {
    pub(super) plans: HashMap<u32, Written>,
    /// Services without a plan whose last connections are still open.
    pub(super) leaving: Vec<u32>,
    /// How many services use an endpoint; 0: its counter goes once it is zero.
    pub(super) users: HashMap<u64, usize>,
}

#[derive(Debug)]
pub(super) struct Written {
    pub(super) plan: DirectPlan,
    pub(super) generation: u32,
    /// Number of slots of the generation before, which a connection that is
    /// being made may still look at.
    pub(super) before: u32,
}

pub(super) fn count(plan: &DirectPlan) -> u32 {
    u32::try_from(plan.slots.len()).unwrap_or(u32::MAX)
}

pub(super) fn value(plan: &DirectPlan, generation: u32, four: usize) -> DirectService {
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
    pub(in crate::capture) fn all(&self) -> Vec<(ServiceId, DirectPlan)> {
        let plans = self.plans.iter();
        plans
            .map(|(service, written)| (ServiceId(*service), written.plan.clone()))
            .collect()
    }

    pub(super) fn forget_users(&mut self, plan: &DirectPlan) {
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
    pub(in crate::capture) fn adopt(&self) -> Result<DirectControl, CaptureError> {
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
    pub(super) fn make_places(&self, service: u32) -> Result<(), CaptureError> {
        self.places
            .make(&service, &sys::zeroed())
            .map_err(|error| CaptureError::map("PLACES", error))
    }

    pub(super) fn make_endpoint(&self, endpoint: u64) -> Result<(), CaptureError> {
        self.endpoints
            .make(&endpoint, &0)
            .map_err(|error| CaptureError::map("ENDPOINTS", error))
    }

    pub(super) fn remove_slots(
        &self,
        service: u32,
        generation: u32,
        count: u32,
    ) -> Result<(), CaptureError> {
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

    pub(super) fn active(&self, service: u32) -> Result<u64, CaptureError> {
        self.places
            .get(&service)
            .map(|places| places.map_or(0, |places| places.active))
            .map_err(|error| CaptureError::map("PLACES", error))
    }

    pub(super) fn load(&self, endpoint: u64) -> Result<u64, CaptureError> {
        self.endpoints
            .get(&endpoint)
            .map(Option::unwrap_or_default)
            .map_err(|error| CaptureError::map("ENDPOINTS", error))
    }

    /// A counter must outlive the last connection that it counts: giving a
    /// place back to a newer counter would be wrong for ever.
    pub(super) fn collect(&self, control: &mut DirectControl) -> Result<(), CaptureError> {
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
