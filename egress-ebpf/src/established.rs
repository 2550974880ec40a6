//! The `sock_ops` program: publishes the record of a redirected connection once
//! its source port is known, and takes it back when the connection fails; and
//! follows direct connections.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_TCP_CLOSE, BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2, BPF_TCP_SYN_SENT,
};
use egress_common::{
    OriginKey, SOCKET_DIRECT, SOCKET_GONE, SOCKET_PUBLISHED, SOCKET_REDIRECTED, SocketState,
    counter,
};

use crate::direct;
use crate::maps::{ORIGINS, count};
use crate::socket::SockOps;

#[inline(always)]
pub fn socket_event(socket: &SockOps<'_>) {
    match socket.op() {
        // `tcp_connect`: source address and port are chosen, no packet is out.
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            let Some(state) = socket.state() else { return };
            match state.kind {
                SOCKET_REDIRECTED => publish(socket, state),
                SOCKET_DIRECT => direct::connecting(socket),
                _ => {}
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => {
            let Some(state) = socket.state() else { return };
            if state.kind == SOCKET_DIRECT {
                direct::established(socket, state);
            }
        }
        BPF_SOCK_OPS_STATE_CB => {
            let (old, new) = socket.transition();
            if new == BPF_TCP_FIN_WAIT2 {
                direct::half_closed(socket);
            }
            if new != BPF_TCP_CLOSE && new != BPF_TCP_FIN_WAIT1 {
                return;
            }
            let Some(state) = socket.state() else { return };
            if state.kind == SOCKET_DIRECT {
                if new == BPF_TCP_CLOSE {
                    direct::closed(socket, state, old);
                }
            } else if state.kind == SOCKET_PUBLISHED {
                state.kind = SOCKET_REDIRECTED;
                taken_back(socket, state, old);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn publish(socket: &SockOps<'_>, state: &mut SocketState) {
    state.kind = SOCKET_PUBLISHED;
    if ORIGINS.insert(key(socket, state), &*state, 0).is_err() {
        // The agent will refuse the connection, having no record of it.
        count(counter::LOST);
        return;
    }
    socket.watch_state();
}

/// The client has closed its side of a redirected connection. Only one that never was
/// can be taken back: one that was established may wait in the agent's accept
/// queue, with what was sent on it. Its record is marked, so that the agent
/// knows which it need not keep for long.
#[inline(always)]
fn taken_back(socket: &SockOps<'_>, state: &SocketState, old: u32) {
    let key = key(socket, state);
    if old == BPF_TCP_SYN_SENT {
        let _ = ORIGINS.remove(key);
    } else if let Some(origin) = ORIGINS.get_ptr_mut(key) {
        // SAFETY: a byte of a map value, which nobody else writes.
        unsafe { (*origin).kind = SOCKET_GONE };
    }
}

#[inline(always)]
fn key(socket: &SockOps<'_>, state: &SocketState) -> OriginKey {
    OriginKey {
        netns: state.caller.netns,
        address: socket.local_ip().bytes(),
        port: socket.local_port(),
        listener: socket.remote_port(),
        reserved: [0; 4],
    }
}
