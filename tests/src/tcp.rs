//! Small TCP servers in the world, each on threads of this process, for
//! behaviours that real servers do not show on request.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use crate::{Context, Lab, Result};

/// How long a server waits for its client before it gives up.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a server does with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// Sends back what comes, until the client ends its side; then ends its own.
    Echo,
    /// Reads to the client's end of stream first, then answers how many bytes
    /// came: needs half-close.
    CountAtEnd,
    /// Sends `hello\n` at once, without having read anything, then echoes.
    SpeakFirst,
    /// Reads once, then resets the connection.
    ResetAfterRead,
    /// Resets the connection as soon as it is there.
    ResetAtOnce,
    /// Closes as soon as it is there.
    CloseAtOnce,
    /// Reads and never answers.
    Silent,
    /// Says the client's address, then echoes.
    TellPeer,
}

/// A running server; its listener is closed on drop.
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Server {
    /// Starts one on `address` in the world.
    pub fn start(lab: &Lab, address: &str, behaviour: Behaviour) -> Result<Self> {
        let wanted: SocketAddr = address.parse().context("listen address")?;
        let listener = lab
            .world()
            .run(|| TcpListener::bind(wanted))?
            .with_context(|| format!("cannot listen on {wanted}"))?;
        let received = Arc::new(Mutex::new(Vec::new()));
        let server = Self {
            address: listener.local_addr()?,
            listener: listener.try_clone()?,
            received: Arc::clone(&received),
        };
        thread::spawn(move || {
            // Ends when the listener is shut down.
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                let received = Arc::clone(&received);
                thread::spawn(move || {
                    let number = {
                        let mut all = received.lock().unwrap_or_else(PoisonError::into_inner);
                        all.push(Vec::new());
                        all.len() - 1
                    };
                    let record = |bytes: &[u8]| {
                        let mut all = received.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(entry) = all.get_mut(number) {
                            entry.extend_from_slice(bytes);
                        }
                    };
                    // A client that goes away is not this server's concern.
                    let _ = serve(stream, behaviour, record);
                });
            }
        });
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bytes that each connection so far has brought.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn serve(mut stream: TcpStream, behaviour: Behaviour, record: impl Fn(&[u8])) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match behaviour {
        Behaviour::Echo => echo(&mut stream, &record),
        Behaviour::SpeakFirst => {
            stream.write_all(b"hello\n")?;
            echo(&mut stream, &record)
        }
        Behaviour::TellPeer => {
            let line = format!("{}\n", stream.peer_addr()?.ip().to_canonical());
            stream.write_all(line.as_bytes())?;
            echo(&mut stream, &record)
        }
        Behaviour::CountAtEnd => {
            let mut count = 0;
            read(&mut stream, |bytes, _| {
                record(bytes);
                count += bytes.len();
                Ok(())
            })?;
            stream.write_all(format!("{count}\n").as_bytes())?;
            stream.shutdown(Shutdown::Write)
        }
        Behaviour::ResetAfterRead => {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer)?;
            record(&buffer[..count]);
            reset(&stream)
        }
        Behaviour::ResetAtOnce => reset(&stream),
        Behaviour::CloseAtOnce => Ok(()),
        Behaviour::Silent => read(&mut stream, |bytes, _| {
            record(bytes);
            Ok(())
        }),
    }
}

fn echo(stream: &mut TcpStream, record: &impl Fn(&[u8])) -> io::Result<()> {
    read(stream, |bytes, stream| {
        record(bytes);
        stream.write_all(bytes)
    })?;
    stream.shutdown(Shutdown::Write)
}

/// Hands on what comes until the end of the stream.
fn read(
    stream: &mut TcpStream,
    mut each: impl FnMut(&[u8], &mut TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; 16_384];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => each(&buffer[..count], stream)?,
        }
    }
}

/// Makes the coming close a reset.
fn reset(stream: &TcpStream) -> io::Result<()> {
    set_socket_linger(stream, Some(Duration::ZERO))?;
    Ok(())
}

/// Whether something listens on `address` of the world.
pub(crate) fn answers(lab: &Lab, address: SocketAddr) -> Result<Option<()>> {
    let connected = lab
        .world()
        .run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)))?;
    Ok(connected.is_ok().then_some(()))
}
