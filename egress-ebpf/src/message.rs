//! `cgroup/sendmsg4/6`, `recvmsg4/6` and `getpeername4/6`: datagrams without a
//! connection, and the addresses that the application is shown.

use egress_common::{
    SOCKET_BYPASS, SOCKET_DIRECT, SOCKET_DNS, SOCKET_PUBLISHED, SOCKET_REDIRECTED, counter,
};

use crate::connect::refuse_udp;
use crate::maps::count;
use crate::outbound::unregistered;
use crate::socket::{ALLOW, Ip, SockAddr, Transport};
use crate::{dns, lookup};

/// A datagram with a destination of its own.
#[inline(always)]
pub fn send(address: &SockAddr<'_>) -> i32 {
    if address
        .state()
        .is_some_and(|state| state.kind == SOCKET_BYPASS)
    {
        return ALLOW;
    }
    let Some(config) = lookup::config() else {
        return ALLOW;
    };
    let (ip, port) = (address.ip(), address.port());
    let scope = lookup::scope(config);
    if port == dns::PORT && config.dns != 0 {
        if let Some(listeners) = lookup::listeners(config, address.netns()) {
            let found = dns::listener(listeners, scope, ip, port);
            if let Some((to, to_port)) =
                found.filter(|(to, to_port)| address.listens(Transport::Udp, *to, *to_port))
            {
                // `udp_sendmsg` has read the device by now, so this datagram
                // would leave by it to an address of loopback: the next one
                // goes well.
                if address.has_device() {
                    address.leave_device();
                    return address.refuse(Transport::Udp);
                }
                address.set(to, to_port);
                count(counter::DNS);
                return ALLOW;
            }
        }
        return unregistered(address, config, scope, Transport::Udp, ip, port);
    }
    match lookup::service(config, scope, ip, port) {
        Some(found) => refuse_udp(address, config, found),
        None => unregistered(address, config, scope, Transport::Udp, ip, port),
    }
}

/// An answer of the agent is shown as one of the resolver that was asked.
#[inline(always)]
pub fn receive(address: &SockAddr<'_>) -> i32 {
    if let Some(resolver) = dns::resolver(address.ip(), address.port(), || address.netns()) {
        address.set(Ip::from_bytes(&resolver.address), resolver.port);
    }
    ALLOW
}

/// The peer of a redirected socket is what it dialled.
#[inline(always)]
pub fn peer_name(address: &SockAddr<'_>) -> i32 {
    if let Some(state) = address.state() {
        if matches!(
            state.kind,
            SOCKET_REDIRECTED | SOCKET_PUBLISHED | SOCKET_DNS | SOCKET_DIRECT
        ) {
            address.set(Ip::from_bytes(&state.original), state.port);
        }
    }
    ALLOW
}
