//! The floors: proxies that do less than any that is of use. One on hyper 1 does
//! nothing but pass HTTP/1.1 on, with one runtime a core and upstream
//! connections kept in a plain list: what policy, records and metrics cost is
//! the distance to it. The other passes [`bytes`] on, as they are.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::thread;

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::spawn_local;

use crate::bytes;

/// What one runs on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Bare {
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: SocketAddr,
    pub(crate) threads: usize,
    pub(crate) passes: Passes,
}

/// What it understands of what it passes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Passes {
    /// Requests and responses.
    Http,
    /// Nothing.
    Bytes,
}

type Idle = Rc<RefCell<Vec<client::SendRequest<Incoming>>>>;

/// Serves until the process is ended.
pub(crate) fn run(json: &str) -> Result<()> {
    let bare: Bare = serde_json::from_str(json).context("the proxy's description")?;
    crate::limits::raise_open_files()?;
    let threads: Vec<_> = (0..bare.threads)
        .map(|_| {
            thread::spawn(move || match bare.passes {
                Passes::Http => worker(bare),
                Passes::Bytes => bytes::worker(bare),
            })
        })
        .collect();
    for thread in threads {
        if let Ok(ended) = thread.join() {
            ended?;
        }
    }
    Ok(())
}

fn worker(bare: Bare) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(bare.listen)?;
        accept(socket.listen(8192)?, bare.upstream).await
    })
}

async fn accept(listener: TcpListener, upstream: SocketAddr) -> Result<()> {
    let idle = Idle::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let idle = Rc::clone(&idle);
        spawn_local(async move {
            let service = service_fn(|request| forward(&idle, upstream, request));
            // Whoever broke the connection tells its own side.
            let _ = server::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn forward(
    idle: &Idle,
    upstream: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, Infallible> {
    // One whose response is still under way is not ready.
    let kept = {
        let mut idle = idle.borrow_mut();
        let ready = idle.iter().position(client::SendRequest::is_ready);
        ready.map(|at| idle.swap_remove(at))
    };
    let sender = match kept {
        Some(sender) => Ok(sender),
        None => dial(upstream).await,
    };
    // There is nobody to tell what fails: the load sees no answer.
    let Ok(mut sender) = sender else {
        return std::future::pending().await;
    };
    let Ok(response) = sender.send_request(request).await else {
        return std::future::pending().await;
    };
    idle.borrow_mut().push(sender);
    Ok(response)
}

async fn dial(upstream: SocketAddr) -> Result<client::SendRequest<Incoming>> {
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    spawn_local(connection);
    Ok(sender)
}
