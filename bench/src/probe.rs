//! A client that does one small measurement for each line that it reads, so
//! that several of them can take turns many times a second:
//!
//! - `connect COUNT HOST:PORT...` takes that many connections, one after the
//!   other, to each in its turn; median of `connect` alone, in microseconds;
//! - `life COUNT HOST:PORT...` the same, from `socket` to `close`;
//! - `echo COUNT HOST:PORT` sends a byte there and back on one connection;
//!   median in microseconds;
//! - `bulk BYTES HOST:PORT` reads so much; gigabytes a second;
//! - `eject MILLISECONDS HOST:PORT...` dials each until it is refused, and goes on
//!   for so long; the longest time between a first refusal and the last one, in
//!   milliseconds;
//! - `resolve HOST:PORT...` only looks the names up.
//!
//! Each answer is one number on a line.

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::set_socket_linger;

/// Answers lines until its input ends.
pub(crate) fn run() -> Result<()> {
    let mut probe = Probe::default();
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        println!("{}", probe.answer(&line?)?);
    }
    Ok(())
}

#[derive(Default)]
struct Probe {
    known: HashMap<String, SocketAddr>,
    /// Connections that stay open, by what was dialled.
    kept: HashMap<SocketAddr, TcpStream>,
}

impl Probe {
    fn answer(&mut self, line: &str) -> Result<f64> {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        if what == "resolve" {
            for name in words {
                self.resolve(name)?;
            }
            return Ok(0.0);
        }
        let count: usize = words.next().context("how many")?.parse()?;
        let targets = words
            .map(|name| self.resolve(name))
            .collect::<Result<Vec<_>>>()?;
        let first = *targets.first().context("where to")?;
        match what {
            "connect" => connects(count, &targets, false),
            "life" => connects(count, &targets, true),
            "eject" => eject(Duration::from_millis(count.try_into()?), &targets),
            "echo" => self.echo(count, first),
            "bulk" => self.bulk(count, first),
            other => bail!("{other}: no such measurement"),
        }
    }

    fn resolve(&mut self, name: &str) -> Result<SocketAddr> {
        if let Some(address) = self.known.get(name) {
            return Ok(*address);
        }
        let address = name
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {name}"))?
            .find(SocketAddr::is_ipv4)
            .with_context(|| format!("{name} has no IPv4 address"))?;
        self.known.insert(name.to_owned(), address);
        Ok(address)
    }

    fn kept(&mut self, address: SocketAddr) -> Result<&mut TcpStream> {
        if let std::collections::hash_map::Entry::Vacant(place) = self.kept.entry(address) {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            place.insert(stream);
        }
        self.kept.get_mut(&address).context("it was just kept")
    }

    fn echo(&mut self, count: usize, address: SocketAddr) -> Result<f64> {
        let stream = self.kept(address)?;
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            stream.write_all(&[1])?;
            stream.read_exact(&mut [0])?;
            samples.push(start.elapsed());
        }
        Ok(median(samples))
    }

    fn bulk(&mut self, bytes: usize, address: SocketAddr) -> Result<f64> {
        let stream = self.kept(address)?;
        let mut buffer = vec![0; 256 * 1024];
        let start = Instant::now();
        stream.write_all(&u64::try_from(bytes)?.to_be_bytes())?;
        let mut left = bytes;
        while left > 0 {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "closed with {left} bytes to come");
            left = left.saturating_sub(count);
        }
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let bytes = bytes as f64;
        Ok(bytes / 1e9 / start.elapsed().as_secs_f64())
    }
}

/// Connections that one service has to refuse one of.
const TRIES: usize = 10;

fn eject(patience: Duration, targets: &[SocketAddr]) -> Result<f64> {
    let refused = |address: &SocketAddr| TcpStream::connect(address).is_err();
    let mut longest = Duration::ZERO;
    for address in targets {
        ensure!(
            (0..TRIES).any(|_| refused(address)),
            "{address} refused nothing"
        );
        let first = Instant::now();
        while first.elapsed() < patience {
            if refused(address) {
                longest = longest.max(first.elapsed());
            }
        }
    }
    Ok(longest.as_secs_f64() * 1e3)
}

fn connects(count: usize, targets: &[SocketAddr], whole: bool) -> Result<f64> {
    use rustix::net::{AddressFamily, SocketType, connect, socket};
    let mut samples = Vec::with_capacity(count);
    for address in targets.iter().cycle().take(count) {
        let start = Instant::now();
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        let made = Instant::now();
        connect(&socket, address)?;
        let connected = made.elapsed();
        // No port is left in TIME-WAIT.
        set_socket_linger(&socket, Some(Duration::ZERO))?;
        drop(socket);
        samples.push(if whole { start.elapsed() } else { connected });
    }
    Ok(median(samples))
}

/// In microseconds.
fn median(mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    let middle = samples.get(samples.len() / 2).copied();
    middle.unwrap_or_default().as_secs_f64() * 1e6
}
