//! The map `ORIGINS`: what a redirected connection really dialled.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use egress_common::{Address, ENTRY_NAME_DECIDES, Origin, OriginKey, SOCKET_GONE};

use super::sys::Table;
use super::{Caller, Captured, Comm};
use crate::policy::snapshot::ServiceId;

/// Looks up and deletes the records of redirected connections. Cheap to clone,
/// one for each worker.
#[derive(Clone, Debug)]
pub struct Origins {
    table: Arc<Table<OriginKey, Origin>>,
    /// Records whose clients had gone when they were last looked through.
    gone: Arc<Mutex<HashSet<OriginKey>>>,
}

impl Origins {
    pub(super) fn new(table: Table<OriginKey, Origin>) -> Self {
        Self {
            table: Arc::new(table),
            gone: Arc::default(),
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

    /// Deletes the records of connections that nobody will accept any more, and
    /// returns how many: those that are older than `age`, because an agent was
    /// killed or an accept queue overflowed; and those whose clients had gone
    /// by the time of the call before, since what waits in an accept queue is
    /// accepted sooner than that.
    ///
    /// # Errors
    /// When the kernel map cannot be read.
    pub fn sweep(&self, age: Duration) -> io::Result<usize> {
        let limit = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let now = super::monotonic_ns();
        let mut before = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = HashSet::new();
        let mut swept = 0;
        for key in self.table.keys()? {
            let Some(origin) = self.table.get(&key)? else {
                continue;
            };
            let left = origin.kind == SOCKET_GONE;
            let over =
                left && before.contains(&key) || now.saturating_sub(origin.connected_ns) > limit;
            if !over {
                if left {
                    gone.insert(key);
                }
            } else if self.table.remove(&key)? {
                swept += 1;
            }
        }
        *before = gone;
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
