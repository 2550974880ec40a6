//! The map `ORIGINS`: what a redirected connection really dialled.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use egress_common::{Address, ENTRY_NAME_DECIDES, Origin, OriginKey};

use super::sys::Table;
use super::{Caller, Captured, Comm};
use crate::policy::snapshot::ServiceId;

/// Looks up and deletes the records of redirected connections. Cheap to clone,
/// one for each worker.
#[derive(Clone, Debug)]
pub struct Origins {
    table: Arc<Table<OriginKey, Origin>>,
}

impl Origins {
    pub(super) fn new(table: Table<OriginKey, Origin>) -> Self {
        Self {
            table: Arc::new(table),
        }
    }

    /// The record of a connection that a listener on port `listener` in the
    /// namespace with the cookie `netns` accepted from `peer`. The record is
    /// deleted. `None`: the connection was not redirected by the kernel
    /// programs and must be refused.
    ///
    /// # Errors
    /// When the kernel map cannot be read.
    pub fn take(
        &self,
        netns: u64,
        peer: SocketAddr,
        listener: u16,
    ) -> io::Result<Option<Captured>> {
        let key = OriginKey {
            netns,
            address: address(peer.ip()),
            port: peer.port(),
            listener,
            reserved: [0; 4],
        };
        Ok(self
            .table
            .take(&key)?
            .map(|origin| captured(unmap(peer), &origin)))
    }

    /// Deletes the records that are older than `age`, and returns how many:
    /// those of connections that no agent accepted, because it was killed.
    ///
    /// # Errors
    /// When the kernel map cannot be read.
    pub fn sweep(&self, age: Duration) -> io::Result<usize> {
        let limit = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let now = super::monotonic_ns();
        let mut swept = 0;
        for key in self.table.keys()? {
            let old = self
                .table
                .get(&key)?
                .is_some_and(|origin| now.saturating_sub(origin.connected_ns) > limit);
            if old && self.table.remove(&key)? {
                swept += 1;
            }
        }
        Ok(swept)
    }

    pub(super) fn len(&self) -> io::Result<usize> {
        Ok(self.table.keys()?.len())
    }
}

fn captured(peer: SocketAddr, origin: &Origin) -> Captured {
    Captured {
        peer,
        original: SocketAddr::new(ip(&origin.original), origin.port),
        service: ServiceId(origin.service),
        name_decides: origin.flags & ENTRY_NAME_DECIDES != 0,
        caller: caller(&origin.caller),
    }
}

pub(super) const fn caller(caller: &egress_common::Caller) -> Caller {
    Caller {
        cgroup: caller.cgroup,
        netns: caller.netns,
        pid: caller.pid,
        uid: caller.uid,
        comm: Comm(caller.comm),
    }
}

/// An address as the maps have it: IPv4 in mapped form.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address of a map; mapped ones become IPv4.
pub fn ip(address: &Address) -> IpAddr {
    Ipv6Addr::from(*address).to_canonical()
}

fn unmap(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_and_plain_addresses_are_one() {
        let plain = IpAddr::from([192, 0, 2, 7]);
        let mapped: IpAddr = std::net::Ipv4Addr::new(192, 0, 2, 7)
            .to_ipv6_mapped()
            .into();
        assert_eq!(address(plain), address(mapped));
        assert_eq!(ip(&address(mapped)), plain);
        let six = IpAddr::from([0x2001, 2, 0, 0, 0, 0, 0, 1]);
        assert_eq!(ip(&address(six)), six);
        assert_eq!(unmap(SocketAddr::new(mapped, 9)), SocketAddr::new(plain, 9));
    }
}
