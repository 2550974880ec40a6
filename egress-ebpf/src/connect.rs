//! `cgroup/connect4` and `connect6`: the decision on each connection, before
//! its first packet.

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid,
};
use aya_log_ebpf::debug;
use egress_common::{
    Config, FAILURE_OPEN, SERVICE_DNS, SOCKET_BYPASS, SOCKET_DIRECT, SOCKET_DNS, SOCKET_NONE,
    SOCKET_REDIRECTED, ServiceValue, VERDICT_DIRECT, VERDICT_PASS, VERDICT_REFUSE, counter,
};

use crate::maps::count;
use crate::outbound::unregistered;
use crate::socket::{ALLOW, Ip, SockAddr, Transport};
use crate::{direct, dns, lookup};

/// What the record of a redirected connection says.
pub struct Record {
    pub service: u32,
    pub flags: u8,
    pub kind: u8,
}

#[inline(always)]
pub fn connect(address: &SockAddr<'_>) -> i32 {
    let Some(transport) = address.transport() else {
        return ALLOW;
    };
    if let Some(state) = address.state() {
        if state.kind == SOCKET_BYPASS {
            count(counter::BYPASSED);
            return ALLOW;
        }
        // The socket is connected anew: what it was before is over.
        if state.kind == SOCKET_DIRECT {
            direct::abandoned(address);
        }
        state.kind = SOCKET_NONE;
    }
    let Some(config) = lookup::config() else {
        return ALLOW;
    };
    let (ip, port) = (address.ip(), address.port());
    let scope = lookup::scope(config);
    if port == dns::PORT && config.dns != 0 {
        return capture_dns(address, config, scope, transport, ip, port);
    }
    let Some(found) = lookup::service(config, scope, ip, port) else {
        return unregistered(address, config, scope, transport, ip, port);
    };
    match transport {
        Transport::Tcp => registered(address, config, found, ip, port),
        Transport::Udp => refuse_udp(address, config, found),
    }
}

/// DNS goes to the agent while it lives and has listeners here; else it is a
/// destination like any other.
#[inline(always)]
fn capture_dns(
    address: &SockAddr<'_>,
    config: &Config,
    scope: u32,
    transport: Transport,
    ip: Ip,
    port: u16,
) -> i32 {
    let netns = address.netns();
    let Some(listeners) = lookup::listeners(config, netns) else {
        return unregistered(address, config, scope, transport, ip, port);
    };
    let (target, kind) = match transport {
        Transport::Udp => (dns::listener(listeners, scope, ip, port), SOCKET_DNS),
        Transport::Tcp if ip.is_v4() => {
            (Some((Ip::LOOPBACK4, listeners.dns_tcp4)), SOCKET_REDIRECTED)
        }
        Transport::Tcp => (Some((Ip::LOOPBACK6, listeners.dns_tcp6)), SOCKET_REDIRECTED),
    };
    let Some((to, to_port)) = target.filter(|(_, port)| *port != 0) else {
        return unregistered(address, config, scope, transport, ip, port);
    };
    let record = Record {
        service: SERVICE_DNS,
        flags: 0,
        kind,
    };
    // A DNS socket that cannot go through loopback goes where it wanted to, and
    // so does one whose query nobody would answer.
    if !address.listens(transport, to, to_port) || !address.leave_device() {
        return unregistered(address, config, scope, transport, ip, port);
    }
    if remember(address, &record, netns, ip, port) {
        address.set(to, to_port);
        count(counter::DNS);
    }
    ALLOW
}

/// A TCP connection to a registered address.
#[inline(always)]
fn registered(
    address: &SockAddr<'_>,
    config: &Config,
    found: ServiceValue,
    ip: Ip,
    port: u16,
) -> i32 {
    if found.verdict == VERDICT_PASS {
        count(counter::PASSED);
        return ALLOW;
    }
    if found.verdict == VERDICT_REFUSE {
        count(counter::REFUSED_POLICY);
        if config.log != 0 {
            debug!(address.context(), "refused by policy, port {}", port);
        }
        return address.refuse(Transport::Tcp);
    }
    if found.verdict == VERDICT_DIRECT
        && let Some(answer) = direct::connect(address, found, ip, port)
    {
        return answer;
    }
    let netns = address.netns();
    if let Some(listeners) = lookup::listeners(config, netns) {
        let (to, to_port) = if ip.is_v4() {
            (Ip::LOOPBACK4, listeners.tcp4)
        } else {
            (Ip::LOOPBACK6, listeners.tcp6)
        };
        let record = Record {
            service: found.service,
            flags: found.flags,
            kind: SOCKET_REDIRECTED,
        };
        // An agent that has just died has left its heartbeat, but no listener.
        if to_port != 0
            && address.listens(Transport::Tcp, to, to_port)
            && address.leave_device()
            && remember(address, &record, netns, ip, port)
        {
            address.set(to, to_port);
            count(counter::PROXIED);
            if config.log != 0 {
                debug!(
                    address.context(),
                    "service {}: to the agent, port {}", found.service, to_port
                );
            }
            return ALLOW;
        }
    }
    agent_down(address, config, found, ip, port)
}

/// What the entry says for the time when the agent cannot take a connection.
#[inline(always)]
fn agent_down(
    address: &SockAddr<'_>,
    config: &Config,
    found: ServiceValue,
    ip: Ip,
    port: u16,
) -> i32 {
    if found.on_failure == FAILURE_OPEN {
        // A direct service was tried before.
        if found.verdict != VERDICT_DIRECT
            && let Some(answer) = direct::connect(address, found, ip, port)
        {
            count(counter::OPENED_AGENT_DOWN);
            return answer;
        }
        // A virtual address leads nowhere, so there is nothing to open.
        if !ip.is_virtual() {
            count(counter::OPENED_AGENT_DOWN);
            return ALLOW;
        }
    }
    count(counter::REFUSED_AGENT_DOWN);
    if config.log != 0 {
        debug!(
            address.context(),
            "service {}: refused, the agent is down", found.service
        );
    }
    address.refuse(Transport::Tcp)
}

/// UDP to a registered address (QUIC) is refused, so that clients use TCP.
#[inline(always)]
pub fn refuse_udp(address: &SockAddr<'_>, config: &Config, found: ServiceValue) -> i32 {
    if found.verdict == VERDICT_PASS {
        count(counter::PASSED);
        return ALLOW;
    }
    count(counter::REFUSED_UDP);
    if config.log != 0 {
        debug!(address.context(), "service {}: refused UDP", found.service);
    }
    address.refuse(Transport::Udp)
}

/// Keeps what was dialled, and by whom, on the socket. False without memory.
#[inline(always)]
pub fn remember(address: &SockAddr<'_>, record: &Record, netns: u64, ip: Ip, port: u16) -> bool {
    let Some(state) = address.state_or_new() else {
        count(counter::LOST);
        return false;
    };
    // SAFETY: the helpers take nothing, or memory of the size given.
    unsafe {
        state.caller.cgroup = bpf_get_current_cgroup_id();
        state.caller.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        state.caller.uid = bpf_get_current_uid_gid() as u32;
        bpf_get_current_comm((&raw mut state.caller.comm).cast(), 16);
    }
    state.caller.netns = netns;
    state.original = ip.bytes();
    state.connected_ns = lookup::now();
    state.service = record.service;
    state.port = port;
    state.kind = record.kind;
    state.flags = record.flags;
    true
}
