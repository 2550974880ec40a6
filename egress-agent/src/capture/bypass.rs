//! The mark that lets the agent's own sockets pass.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use egress_common::{SOCKET_BYPASS, SocketState};

use super::sys;

/// Marks sockets through the descriptor of the socket-storage map `SOCKETS`. A
/// workload cannot forge the mark, since it does not have the descriptor.
#[derive(Clone, Debug)]
pub struct Bypass {
    map: Arc<OwnedFd>,
}

impl Bypass {
    /// Takes the descriptor of the map `SOCKETS`.
    pub fn new(map: OwnedFd) -> Self {
        Self { map: Arc::new(map) }
    }

    /// Marks one socket.
    ///
    /// # Errors
    /// What `bpf(2)` answers: no memory, or a descriptor that is no socket.
    pub fn mark(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut state: SocketState = sys::zeroed();
        state.kind = SOCKET_BYPASS;
        sys::mark_socket(self.map.as_fd(), socket, &state)
    }
}
