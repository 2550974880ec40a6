//! The `sock_ops` program: publishes the record of a redirected connection once
//! its source port is known, and takes it back when the connection fails.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
};
use egress_common::{OriginKey, SOCKET_PUBLISHED, SOCKET_REDIRECTED, SocketState, counter};

use crate::maps::{ORIGINS, count};
use crate::socket::SockOps;

#[inline(always)]
pub fn socket_event(socket: &SockOps<'_>) {
    match socket.op() {
        // `tcp_connect`: source address and port are chosen, no packet is out.
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if let Some(state) = socket.state() {
                if state.kind == SOCKET_REDIRECTED {
                    publish(socket, state);
                }
            }
        }
        BPF_SOCK_OPS_STATE_CB => {
            let (old, new) = socket.transition();
            // Only a connection that never was can be taken back: one that was
            // established may wait in the agent's accept queue, even when its
            // client has gone.
            if old == BPF_TCP_SYN_SENT && new == BPF_TCP_CLOSE {
                if let Some(state) = socket.state() {
                    if state.kind == SOCKET_PUBLISHED {
                        state.kind = SOCKET_REDIRECTED;
                        let _ = ORIGINS.remove(key(socket, state));
                    }
                }
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
