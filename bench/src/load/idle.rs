//! Connections that do nothing, for what each costs in memory.

use std::io::Read as _;
use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http1::{self, Connection};
use super::{Done, Kind, Load, Tally};

/// Opens them, prints `open`, and holds them to the end of standard input.
pub(super) async fn run(load: &Load, address: SocketAddr) -> Done {
    let mut held = Vec::with_capacity(load.connections);
    let request = http1::request(load);
    for _ in 0..load.connections {
        held.push(open(load, address, &request).await?);
    }
    println!("open");
    // They do nothing: this may block.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let tally = Tally {
        done: load.connections as u64,
        connections: load.connections as u64,
        ..Tally::default()
    };
    drop(held);
    Ok((tally, None))
}

async fn open(load: &Load, address: SocketAddr, request: &[u8]) -> Result<tokio::net::TcpStream> {
    let mut connection = Connection::open(address).await?;
    if load.kind == Kind::IdleHttp1 {
        connection.exchange(request, load.size).await?;
        return Ok(connection.into_stream());
    }
    let mut stream = connection.into_stream();
    stream.write_all(&[1]).await?;
    stream.read_exact(&mut [0]).await?;
    Ok(stream)
}
