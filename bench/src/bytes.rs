//! What no proxy can cost less than: one that reads what either side sends and
//! writes it to the other, without a look at it. Two system calls for each
//! message, and one for all that have come: HTTP, policy and records come on
//! top.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseport;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, listen, recv, send,
    socket_with,
};

use crate::bare::Bare;

/// Most bytes read at once.
const READ: usize = 64 * 1024;
/// Most events taken at once.
const EVENTS: usize = 256;
/// The listener's event; a descriptor is never so large.
const LISTENER: u64 = u64::MAX;

/// One side of a connection, which writes to the other one.
struct Side {
    stream: TcpStream,
    other: RawFd,
}

/// Relays in this thread until the process is ended.
pub(crate) fn worker(bare: Bare) -> Result<()> {
    let listener = listener(bare.listen).context("listening")?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let data = EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, data, EventFlags::IN)?;
    let mut sides = HashMap::new();
    let mut events = Vec::with_capacity(EVENTS);
    let mut buffer = vec![0; READ];
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Err(Errno::INTR) => continue,
            waited => waited?,
        };
        for event in &events {
            match event.data.u64() {
                LISTENER => open(&epoll, &listener, bare.upstream, &mut sides)?,
                side => pass_on(&mut sides, RawFd::try_from(side)?, &mut buffer),
            }
        }
    }
}

/// One of several threads that listen on the same address.
fn listener(address: SocketAddr) -> Result<TcpListener> {
    let family = AddressFamily::INET;
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseport(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, 8192)?;
    Ok(socket.into())
}

/// Takes a client, with a connection to the service of its own.
fn open(
    epoll: &OwnedFd,
    listener: &TcpListener,
    upstream: SocketAddr,
    sides: &mut HashMap<RawFd, Side>,
) -> Result<()> {
    let (client, _) = listener.accept()?;
    let service = TcpStream::connect(upstream)?;
    let (one, two) = (client.as_raw_fd(), service.as_raw_fd());
    for (stream, other) in [(client, two), (service, one)] {
        stream.set_nodelay(true)?;
        let descriptor = stream.as_raw_fd();
        let data = EventData::new_u64(u64::try_from(descriptor)?);
        // Once for what has come: all of it is read at once.
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(epoll, &stream, data, flags)?;
        sides.insert(descriptor, Side { stream, other });
    }
    Ok(())
}

/// Moves what one side has sent. The load never has more under way than fits
/// into the buffers; whatever else happens ends both sides.
fn pass_on(sides: &mut HashMap<RawFd, Side>, from: RawFd, buffer: &mut [u8]) {
    let Some(side) = sides.get(&from) else {
        return;
    };
    let (stream, other) = (&side.stream, side.other);
    let passed = match recv(stream, &mut *buffer, RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN) => return,
        Ok((1.., read)) => sides.get(&other).is_some_and(|to| {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            send(&to.stream, &buffer[..read], flags) == Ok(read)
        }),
        _ => false,
    };
    if !passed {
        sides.remove(&from);
        sides.remove(&other);
    }
}
