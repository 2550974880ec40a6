//! Servers of one service, told apart by name, that can be killed, held up and
//! made to fail while a test runs.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::{Context, Lab, Result};

/// How long a server waits for its client before it gives up.
const PATIENCE: Duration = Duration::from_mins(5);

/// What a backend speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaks {
    /// HTTP/1.1 with connections that stay open; answers with its name.
    Http,
    /// Says its name and a line feed at once, then reads to the end.
    Name,
}

/// A running server; it is killed on drop.
pub struct Backend {
    name: String,
    address: SocketAddr,
    speaks: Speaks,
    state: Arc<State>,
    listener: Option<TcpListener>,
}

#[derive(Default)]
struct State {
    /// Status of HTTP answers; 0: 200.
    status: AtomicU16,
    /// Requests (HTTP), connections (else).
    served: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    held: Mutex<bool>,
    released: Condvar,
    open: Mutex<HashMap<usize, TcpStream>>,
}

impl State {
    fn open(&self) -> MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one that is served, while it lives.
    fn begin(&self) -> Begun<'_> {
        self.served.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        Begun(self)
    }

    fn wait_until_released(&self) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.released
                .wait_timeout_while(held, PATIENCE, |held| *held)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

struct Begun<'a>(&'a State);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend {
    /// Starts one on `address` in the world.
    pub fn start(lab: &Lab, name: &str, address: &str, speaks: Speaks) -> Result<Self> {
        let mut backend = Self {
            name: name.to_owned(),
            address: address.parse().context("listen address")?,
            speaks,
            state: Arc::default(),
            listener: None,
        };
        backend.revive(lab)?;
        Ok(backend)
    }

    /// Starts `b1`, `b2`, … at 10.0.0.1, 10.0.0.2, …
    pub fn numbered(lab: &Lab, count: u8, port: u16, speaks: Speaks) -> Result<Vec<Self>> {
        (1..=count)
            .map(|n| Self::start(lab, &format!("b{n}"), &format!("10.0.0.{n}:{port}"), speaks))
            .collect()
    }

    /// Starts it again after [`Self::kill`].
    pub fn revive(&mut self, lab: &Lab) -> Result<()> {
        let address = self.address;
        let listener = lab
            .world()
            .run(|| TcpListener::bind(address))?
            .with_context(|| format!("cannot listen on {address}"))?;
        self.listener = Some(listener.try_clone()?);
        let (state, name, speaks) = (Arc::clone(&self.state), self.name.clone(), self.speaks);
        thread::spawn(move || {
            // Ends when the listener is shut down.
            let streams = listener.incoming().map_while(std::result::Result::ok);
            for (number, stream) in streams.enumerate() {
                let (state, name) = (Arc::clone(&state), name.clone());
                if let Ok(copy) = stream.try_clone() {
                    state.open().insert(number, copy);
                }
                thread::spawn(move || {
                    // A client that goes away is not this server's concern.
                    let _ = match speaks {
                        Speaks::Http => http(&stream, &name, &state),
                        Speaks::Name => say_name(&stream, &name, &state),
                    };
                    state.open().remove(&number);
                });
            }
        });
        Ok(())
    }

    /// Closes the listener and all connections, as the kernel does for a
    /// process that ends.
    pub fn kill(&mut self) {
        if let Some(listener) = self.listener.take() {
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        }
        for (_, stream) in self.state.open().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.release();
    }

    /// Answers with this status from now on.
    pub fn answer(&self, status: u16) {
        self.state.status.store(status, Ordering::SeqCst);
    }

    /// Holds answers back until [`Self::release`].
    pub fn hold(&self) {
        self.set_held(true);
    }

    /// Lets answers go.
    pub fn release(&self) {
        self.set_held(false);
    }

    fn set_held(&self, held: bool) {
        let mut place = self
            .state
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = held;
        self.state.released.notify_all();
    }

    /// Requests (HTTP) or connections served so far.
    pub fn served(&self) -> usize {
        self.state.served.load(Ordering::SeqCst)
    }

    /// Those being served now.
    pub fn now(&self) -> usize {
        self.state.now.load(Ordering::SeqCst)
    }

    /// Most that were served at once.
    pub fn most(&self) -> usize {
        self.state.most.load(Ordering::SeqCst)
    }

    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Drops every packet to it, in silence; see [`Self::unblock`].
    pub fn black_hole(&self, lab: &Lab) -> Result<()> {
        let ip = self.address.ip();
        lab.world()
            .ip(&format!("route add blackhole {ip}/32 table local\n"))
    }

    /// Ends [`Self::black_hole`].
    pub fn unblock(&self, lab: &Lab) -> Result<()> {
        let ip = self.address.ip();
        lab.world()
            .ip(&format!("route del blackhole {ip}/32 table local\n"))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

fn say_name(mut stream: &TcpStream, name: &str, state: &State) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let _begun = state.begin();
    state.wait_until_released();
    stream.write_all(format!("{name}\n").as_bytes())?;
    std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
}

/// Answers requests, whose bodies must be empty.
fn http(mut stream: &TcpStream, name: &str, state: &State) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let begun = state.begin();
        state.wait_until_released();
        // Over before the client knows: its next request may come at once.
        drop(begun);
        let status = match state.status.load(Ordering::SeqCst) {
            0 => 200,
            status => status,
        };
        let length = name.len();
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{name}");
        stream.write_all(answer.as_bytes())?;
    }
}
