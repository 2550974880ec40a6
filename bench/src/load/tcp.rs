//! TCP: bulk, request and response, and connections that live for one.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Answered, Done, Kind, Load, Pace, Tally, begin};

pub(super) async fn run(load: &Load, address: SocketAddr) -> Done {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let mut opened = Vec::new();
    if load.kind != Kind::Connect {
        for _ in 0..load.connections {
            let mut stream = open(address).await?;
            // One byte of each: the proxy has reached the service by then.
            let warm: &[u8] = if load.kind == Kind::Bulk {
                &[0; 8]
            } else {
                &[1]
            };
            stream.write_all(warm).await?;
            stream.read_exact(&mut [0]).await?;
            tally.borrow_mut().connections += 1;
            opened.push(stream);
        }
    }
    begin()?;
    let pace = Pace::start(load.work, load.rate)?;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..load.connections {
        let (pace, tally, load) = (Rc::clone(&pace), Rc::clone(&tally), load.clone());
        let stream = opened.pop();
        tasks.spawn_local(async move {
            let result = match (load.kind, stream) {
                (Kind::Bulk, Some(stream)) => bulk(stream, load.work, &tally).await,
                (_, Some(stream)) => echo(stream, load.size, &pace, &tally).await,
                (_, None) => {
                    connect(address, load.size, &pace, &tally).await;
                    Ok(())
                }
            };
            if let Err(error) = result {
                tally.borrow_mut().failed(&error);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok((tally.take(), Some(started)))
}

async fn open(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks for `work` bytes and reads them.
async fn bulk(mut stream: TcpStream, work: u64, tally: &RefCell<Tally>) -> Result<()> {
    stream.write_all(&work.to_be_bytes()).await?;
    let mut buffer = vec![0; 256 * 1024];
    let mut left = work;
    while left > 0 {
        let count = stream.read(&mut buffer).await?;
        ensure!(count > 0, "closed with {left} bytes to come");
        left = left.saturating_sub(count as u64);
        tally.borrow_mut().done += count as u64;
    }
    Ok(())
}

async fn echo(
    mut stream: TcpStream,
    size: usize,
    pace: &Pace,
    tally: &RefCell<Tally>,
) -> Result<()> {
    let (message, mut answer) = (vec![1; size], vec![0; size]);
    while let Some(due) = pace.next().await {
        stream.write_all(&message).await?;
        stream.read_exact(&mut answer).await?;
        let mut tally = tally.borrow_mut();
        tally.done += 1;
        tally.answered.push(Answered::since(due));
    }
    Ok(())
}

/// One connection after another; those that fail are counted.
async fn connect(address: SocketAddr, size: usize, pace: &Pace, tally: &RefCell<Tally>) {
    let (message, mut answer) = (vec![1; size], vec![0; size]);
    while let Some(due) = pace.next().await {
        tally.borrow_mut().connections += 1;
        let result = carry(address, &message, &mut answer).await;
        let mut tally = tally.borrow_mut();
        match result {
            Ok(()) => {
                tally.done += 1;
                tally.answered.push(Answered::since(due));
            }
            Err(error) => tally.failed(&error),
        }
    }
}

async fn carry(address: SocketAddr, message: &[u8], answer: &mut [u8]) -> Result<()> {
    let mut stream = open(address).await?;
    stream.write_all(message).await?;
    stream.read_exact(answer).await?;
    Ok(())
}
