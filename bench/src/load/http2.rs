//! HTTP/2 over cleartext with prior knowledge.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Answered, Done, Load, Pace, Tally, begin};

/// Requests at the same time on one connection.
const STREAMS: usize = 4;

pub(super) async fn run(load: &Load, address: SocketAddr) -> Done {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let uri = format!("http://{}/{}", load.target, load.size);
    let mut senders = Vec::new();
    for _ in 0..load.connections.div_ceil(STREAMS) {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake::<_, Bytes>(stream)
            .await?;
        tokio::task::spawn_local(async move {
            // The requests report what ends the connection.
            let _ = connection.await;
        });
        let mut sender = sender.ready().await?;
        exchange(&mut sender, &uri, load.size).await?;
        tally.borrow_mut().connections += 1;
        senders.push(sender);
    }
    begin()?;
    let pace = Pace::start(load.work, load.rate)?;
    let mut tasks = JoinSet::new();
    for task in 0..load.connections {
        let Some(sender) = senders.get(task / STREAMS) else {
            break;
        };
        let mut sender = sender.clone();
        let (pace, tally) = (Rc::clone(&pace), Rc::clone(&tally));
        let (uri, size) = (uri.clone(), load.size);
        tasks.spawn_local(async move {
            while let Some(due) = pace.next().await {
                let result = exchange(&mut sender, &uri, size).await;
                let mut tally = tally.borrow_mut();
                match result {
                    Ok(()) => {
                        tally.done += 1;
                        tally.answered.push(Answered::since(due));
                    }
                    Err(error) => {
                        tally.failed(&error);
                        return;
                    }
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok((tally.take(), Some(pace.started())))
}

async fn exchange(sender: &mut SendRequest<Bytes>, uri: &str, size: usize) -> Result<()> {
    let request = http::Request::get(uri)
        .header("user-agent", "bench/1")
        .header("accept", "*/*")
        .body(())?;
    let (response, _) = sender.send_request(request, true)?;
    let response = response.await?;
    ensure!(response.status() == 200, "answer: {}", response.status());
    let mut body = response.into_body();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        received += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    ensure!(received == size, "{received} bytes came instead of {size}");
    Ok(())
}
