//! What the kernel programs do with destinations that nothing registers, and
//! what they saw of them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use egress_common::caller::{Destination, DestinationKey, Refusal, TRANSPORT_TCP};
use egress_common::{
    ANY_PORT, NetworkKey, NetworkPrefix, OUTBOUND_ALLOW_ANY, OUTBOUND_REGISTRY_ONLY, SCOPE_ALL,
};
use ipnet::IpNet;

use super::error::CaptureError;
use super::kernel::Kernel;
use super::origins::{self, address};
use super::reports::Reports;
use super::sys::Table;
use super::{Caller, Comm};

/// The maps of this file.
#[derive(Debug)]
pub(super) struct OutboundMaps {
    pub(super) modes: Table<u32, u32>,
    pub(super) allowed: Table<NetworkPrefix, u32>,
    pub(super) destinations: Table<DestinationKey, Destination>,
}

/// A network that callers may reach although nothing registers it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AllowedNetwork {
    /// Addresses.
    pub network: IpNet,
    /// Port; `None`: any.
    pub port: Option<u16>,
}

/// What the programs are told about unregistered destinations, beyond
/// [`KernelSettings`](super::KernelSettings).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OutboundControl {
    /// Scopes with a mode of their own: whether only what is registered may
    /// be reached.
    pub registry_only: HashMap<u32, bool>,
    /// What is allowed all the same.
    pub allowed: HashSet<AllowedNetwork>,
}

/// TCP or UDP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP or UDP-Lite.
    Udp,
}

impl Transport {
    /// `tcp` or `udp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A destination that nothing registers, and who went there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unregistered {
    /// The first who did; others of the same cgroup count with it.
    pub caller: Caller,
    /// Where to.
    pub destination: SocketAddr,
    /// By what.
    pub transport: Transport,
    /// Whether it was refused; else it passed.
    pub refused: bool,
    /// Connections, and datagrams with a destination of their own.
    pub count: u64,
    /// Time since the first.
    pub first: Duration,
    /// Time since the last.
    pub last: Duration,
}

/// A refusal that is reported.
pub type Refused = Unregistered;

/// Reads reports of refusals: the first of each caller and destination, and
/// again every ten seconds while they go on.
#[derive(Debug)]
pub struct Refusals(Reports<Refusal>);

impl Refusals {
    /// A report in our terms.
    pub fn read(report: &Refusal) -> Refused {
        unregistered(&report.key, &report.value, super::monotonic_ns())
    }

    /// Registers it with the runtime of the calling task.
    ///
    /// # Errors
    /// When the descriptor cannot be registered.
    pub fn watched(self) -> std::io::Result<tokio::io::unix::AsyncFd<Reports<Refusal>>> {
        self.0.watched()
    }
}

fn unregistered(key: &DestinationKey, value: &Destination, now: u64) -> Unregistered {
    let since = |then: u64| Duration::from_nanos(now.saturating_sub(then));
    Unregistered {
        caller: Caller {
            cgroup: key.cgroup,
            netns: value.netns,
            pid: value.pid,
            uid: value.uid,
            comm: Comm(value.comm),
        },
        destination: SocketAddr::new(origins::ip(&key.address), key.port),
        transport: if key.transport == TRANSPORT_TCP {
            Transport::Tcp
        } else {
            Transport::Udp
        },
        refused: key.refused != 0,
        count: value.count,
        first: since(value.first_ns),
        last: since(value.last_ns),
    }
}

fn prefix(allowed: &AllowedNetwork) -> NetworkPrefix {
    let net = allowed.network;
    let mapped = if net.network().is_ipv4() { 96 } else { 0 };
    NetworkPrefix {
        bits: NetworkKey::FIXED_BITS + mapped + u32::from(net.prefix_len()),
        data: NetworkKey {
            scope: SCOPE_ALL.to_be_bytes(),
            port: allowed.port.unwrap_or(ANY_PORT).to_be_bytes(),
            reserved: [0; 2],
            address: address(net.network()),
        },
    }
}

impl Kernel {
    /// Makes modes and allowed networks equal to `wanted`.
    ///
    /// # Errors
    /// When a map is full or cannot be written; the call can be repeated.
    pub fn sync_outbound(&self, wanted: &OutboundControl) -> Result<(), CaptureError> {
        let mode = |only: bool| {
            u32::from(if only {
                OUTBOUND_REGISTRY_ONLY
            } else {
                OUTBOUND_ALLOW_ANY
            })
        };
        let failed = |error| CaptureError::map("ALLOWED", error);
        let allowed = &self.maps.outbound.allowed;
        let keys: HashSet<NetworkPrefix> = wanted.allowed.iter().map(prefix).collect();
        // What is allowed is added before a mode refuses, and removed after.
        for key in &keys {
            allowed.set(key, &1).map_err(failed)?;
        }
        let failed_mode = |error| CaptureError::map("OUTBOUND", error);
        let modes = &self.maps.outbound.modes;
        for (scope, &only) in &wanted.registry_only {
            modes.set(scope, &mode(only)).map_err(failed_mode)?;
        }
        for scope in modes.keys().map_err(failed_mode)? {
            if !wanted.registry_only.contains_key(&scope) {
                modes.remove(&scope).map_err(failed_mode)?;
            }
        }
        for key in allowed.keys().map_err(failed)? {
            if !keys.contains(&key) {
                allowed.remove(&key).map_err(failed)?;
            }
        }
        let any = !wanted.registry_only.is_empty();
        let control = &mut *self.control();
        self.write_config(control, |config| config.outbound_scopes = u8::from(any))
    }

    /// The unregistered destinations that the programs remember: the 16384
    /// that were used last, by caller.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn unregistered(&self) -> Result<Vec<Unregistered>, CaptureError> {
        let failed = |error| CaptureError::map("DESTINATIONS", error);
        let table = &self.maps.outbound.destinations;
        let now = super::monotonic_ns();
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for key in table.keys().map_err(failed)? {
            // A walk over a map that changes may meet a key twice.
            if seen.insert(key)
                && let Some(value) = table.get(&key).map_err(failed)?
            {
                found.push(unregistered(&key, &value, now));
            }
        }
        Ok(found)
    }

    /// How often a caller was refused a destination; `None`: that is forgotten.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn refusals_of(&self, key: &DestinationKey) -> Result<Option<u64>, CaptureError> {
        let value = self.maps.outbound.destinations.get(key);
        let value = value.map_err(|error| CaptureError::map("DESTINATIONS", error))?;
        Ok(value.map(|value| value.count))
    }

    /// Forgets them.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn forget_unregistered(&self) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::map("DESTINATIONS", error);
        let table = &self.maps.outbound.destinations;
        for key in table.keys().map_err(failed)? {
            table.remove(&key).map_err(failed)?;
        }
        Ok(())
    }

    /// The reader of reports on refusals; `None` when it was taken before.
    pub fn take_refusals(&self) -> Option<Refusals> {
        Reports::take(self, "REFUSALS").map(Refusals)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn allowed_networks_of_both_families_have_distinct_keys() {
        let key = |network: &str, port| {
            prefix(&AllowedNetwork {
                network: network.parse().unwrap(),
                port,
            })
        };
        let v4 = key("192.0.2.0/24", Some(53));
        assert_eq!(v4.bits, 64 + 96 + 24);
        assert_eq!(v4.data.port, 53_u16.to_be_bytes());
        assert_eq!(v4.data.address[10..14], [0xff, 0xff, 192, 0]);
        let v6 = key("2001:db8::/32", None);
        assert_eq!(v6.bits, 64 + 32);
        assert_eq!(v6.data.port, [0; 2]);
        // Host bits do not make another key.
        assert_eq!(key("192.0.2.7/24", Some(53)), v4);
    }
}
