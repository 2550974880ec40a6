//! A client for tests of load: `load http|tcp HOST PORT steady RATE MS` or
//! `load http|tcp HOST PORT burst CLIENTS`. Prints a line for each request or
//! connection that has ended (see `lab::load::Try`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::load::{Mode, Try, now, resolve};
use lab::{Context, Result, bail};

/// Longest time for one request.
const PATIENCE: Duration = Duration::from_secs(15);
/// Requests that may be under way at once under steady load.
const THREADS: u32 = 96;

struct Client {
    mode: Mode,
    host: String,
    address: SocketAddr,
    output: Mutex<std::io::Stdout>,
}

type Connection = BufReader<TcpStream>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [mode, host, port, how @ ..] = words.as_slice() else {
        bail!("load http|tcp HOST PORT steady RATE MS, or burst CLIENTS");
    };
    let client = Client {
        mode: match *mode {
            "http" => Mode::Http,
            "tcp" => Mode::Tcp,
            other => bail!("{other}: neither http nor tcp"),
        },
        host: (*host).to_owned(),
        address: resolve(host, port.parse()?)?,
        output: Mutex::new(std::io::stdout()),
    };
    match how {
        ["steady", rate, time] => {
            client.steady(rate.parse()?, Duration::from_millis(time.parse()?));
        }
        ["burst", clients] => client.burst(clients.parse()?),
        _ => bail!("steady RATE MS, or burst CLIENTS"),
    }
    Ok(())
}

impl Client {
    /// Each request at its time, whether earlier ones have ended or not.
    fn steady(&self, rate: u32, time: Duration) {
        let (start, next) = (Instant::now(), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let mut kept = None;
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let at = Duration::from_secs(1) * number / rate.max(1);
                        if at >= time {
                            return;
                        }
                        thread::sleep(at.saturating_sub(start.elapsed()));
                        self.tell(&self.once(&mut kept));
                    }
                });
            }
        });
    }

    fn burst(&self, clients: u32) {
        let barrier = Barrier::new(usize::try_from(clients).unwrap_or(1));
        thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    let mut kept = None;
                    barrier.wait();
                    self.tell(&self.once(&mut kept));
                    // Whoever is served stays until everybody has an answer.
                    barrier.wait();
                    drop(kept);
                });
            }
        });
    }

    fn tell(&self, one: &Try) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // The test that reads it may be gone.
        let _ = writeln!(output, "{}", one.line());
    }

    fn once(&self, kept: &mut Option<Connection>) -> Try {
        let (began, started) = (now(), Instant::now());
        let result = match self.mode {
            Mode::Http => self.request(kept),
            Mode::Tcp => self.greeting(kept),
        };
        Try {
            began,
            took: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            outcome: result.map_err(|error| {
                *kept = None;
                format!("{error:#}")
            }),
        }
    }

    fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }

    /// A line from a new connection, which takes the place of the last one.
    fn greeting(&self, kept: &mut Option<Connection>) -> Result<(u16, String)> {
        *kept = None;
        let mut connection = self.connect()?;
        let mut line = String::new();
        if connection.read_line(&mut line).context("read")? == 0 {
            bail!("read: end of stream");
        }
        *kept = Some(connection);
        Ok((0, line.trim_end().to_owned()))
    }

    fn request(&self, kept: &mut Option<Connection>) -> Result<(u16, String)> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let head = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        connection.get_mut().write_all(head.as_bytes())?;
        let mut line = String::new();
        if connection.read_line(&mut line).context("read")? == 0 {
            bail!("read: end of stream");
        }
        let status = line.split(' ').nth(1).context("no status")?.parse()?;
        let (mut length, mut close) = (0, false);
        loop {
            line.clear();
            connection.read_line(&mut line)?;
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            close |= header == "connection: close";
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body).context("body")?;
        if !close {
            *kept = Some(connection);
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}
