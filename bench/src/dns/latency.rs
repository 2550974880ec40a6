//! One query at a time, each for a name of its own, and how long its answer
//! took.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Queries {
    pub(super) server: String,
    pub(super) port: u16,
    pub(super) count: u32,
    /// Zone of the names.
    pub(super) zone: String,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

const TIMEOUT: Duration = Duration::from_secs(5);
/// Queries before those that count.
const WARM: u32 = 50;

/// Asks, and prints how long it took.
pub(crate) fn run(json: &str) -> Result<()> {
    let queries: Queries = serde_json::from_str(json).context("what to ask")?;
    let ip: IpAddr = queries.server.parse().context("the server's address")?;
    let socket = connect(SocketAddr::new(ip, queries.port))?;
    let mut times = Vec::new();
    for number in 0..WARM + queries.count {
        let name = format!("q{number}.{}", queries.zone);
        let begun = Instant::now();
        exchange(&socket, &name, number)?;
        if number >= WARM {
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(0.0);
    let latency = Latency {
        p50: at(50),
        p99: at(99),
    };
    println!("{}", serde_json::to_string(&latency)?);
    Ok(())
}

/// One query with a socket of its own.
pub(super) fn ask(server: SocketAddr, name: &str, id: u32) -> Result<()> {
    exchange(&connect(server)?, name, id)
}

fn connect(server: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

fn exchange(socket: &UdpSocket, name: &str, id: u32) -> Result<()> {
    let [.., high, low] = id.to_be_bytes();
    // One question, recursion desired.
    let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).context("a label is too long")?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send(&query)?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer)?;
    ensure!(
        length > 12 && answer[..2] == [high, low] && answer[3] % 16 == 0 && answer[7] > 0,
        "not an answer with an address: {:?}",
        &answer[..length]
    );
    Ok(())
}
