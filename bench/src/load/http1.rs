//! HTTP/1.1 by hand: the request is the same bytes every time, and of the
//! answer only its end is looked for, so that the generator costs little
//! beside what is measured.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Answered, Done, Kind, Load, Pace, Tally, begin};

pub(super) async fn run(load: &Load, address: SocketAddr) -> Done {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let request: Rc<[u8]> = request(load).into();
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        let mut connection = Connection::open(address).await?;
        tally.borrow_mut().connections += 1;
        // Pools of the proxy fill before the clock starts.
        connection.exchange(&request, load.size).await?;
        connections.push(connection);
    }
    begin()?;
    let pace = Pace::start(load.work, load.rate)?;
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let (pace, tally) = (Rc::clone(&pace), Rc::clone(&tally));
        let (request, size) = (Rc::clone(&request), load.size);
        tasks.spawn_local(async move {
            while let Some(due) = pace.next().await {
                let result = connection.exchange(&request, size).await;
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

/// The request of a load.
pub(super) fn request(load: &Load) -> Vec<u8> {
    let host = load.target.rsplit_once(':').map_or("", |(host, _)| host);
    let path = if load.kind == Kind::Http1UpstreamCloses {
        "/close"
    } else {
        ""
    };
    format!(
        "GET {path}/{} HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench/1\r\naccept: */*\r\n\r\n",
        load.size
    )
    .into_bytes()
}

pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; 128 * 1024],
        })
    }

    /// One request and its whole answer, which must be `200` with a body of
    /// `size` bytes.
    pub(super) async fn exchange(&mut self, request: &[u8], size: usize) -> Result<()> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let mut end = None;
        loop {
            let space = self.buffer.get_mut(filled..).unwrap_or_default();
            let count = self.stream.read(space).await?;
            if count == 0 {
                bail!("closed in the middle of an answer");
            }
            filled += count;
            if end.is_none() {
                end = whole(self.buffer.get(..filled).unwrap_or_default(), size)?;
            }
            match end {
                Some(end) if filled == end => return Ok(()),
                Some(end) if filled > end => bail!("more than an answer came"),
                _ => {}
            }
        }
    }

    /// Keeps the socket alone.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// Length of head and body once the head is there.
fn whole(bytes: &[u8], size: usize) -> Result<Option<usize>> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    if !bytes.starts_with(b"HTTP/1.1 200") {
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or(bytes);
        bail!("answer: {}", String::from_utf8_lossy(line));
    }
    Ok(Some(head + 4 + size))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_answer_ends_with_its_body() {
        assert_eq!(whole(b"HTTP/1.1 200 OK\r\na: b\r\n", 3).unwrap(), None);
        let head = b"HTTP/1.1 200 OK\r\na: b\r\n\r\n";
        assert_eq!(whole(head, 3).unwrap(), Some(head.len() + 3));
        assert!(whole(b"HTTP/1.1 503 No\r\n\r\n", 3).is_err());
    }
}
