//! A client and a server for soak tests.
//!
//! `churn serve ADDRESS...` answers on each address: HTTP to what begins as a
//! GET, and the bytes themselves to everything else.
//!
//! `churn RATE KIND:HOST:PORT...` makes RATE connections a second, each service
//! in its turn and each with a lookup of its own, until its input ends. KIND is
//! `tcp`, `http` or `dns` (the lookup alone). It prints `running`, a line for
//! each failure (see `lab::churn::Failure`), and at the end
//! `done SERVICE COUNT` for each service.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use lab::churn::{Failure, Target};
use lab::load::now;
use lab::{Context, Result, bail, ensure};
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

/// Longest time for each step of a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections under way past which none is begun.
const MOST: usize = 4_000;
/// The message whose echo a client waits for.
const HELLO: &[u8] = b"hello";
/// The message after which the server closes first.
const BYE: &[u8] = b"bye!!";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        match words.as_slice() {
            ["serve", addresses @ ..] => serve(addresses).await,
            [rate, targets @ ..] if !targets.is_empty() => {
                let targets = targets.iter().map(|one| one.parse());
                client(rate.parse()?, &targets.collect::<Result<Vec<_>>>()?).await
            }
            _ => bail!("churn serve ADDRESS..., or churn RATE KIND:HOST:PORT..."),
        }
    })
}

async fn serve(addresses: &[&str]) -> Result<()> {
    for address in addresses {
        let listener = TcpListener::bind(address).await.context("listen")?;
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that goes away is not the server's concern.
                spawn_local(async { drop(answer(stream).await) });
            }
        });
    }
    println!("serving");
    std::future::pending().await
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = timeout(Duration::from_mins(2), stream.read(&mut buffer)).await??;
        let got = &buffer[..count];
        if count == 0 || got == BYE {
            return Ok(());
        }
        if got.starts_with(b"GET ") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
                .await?;
        } else {
            stream.write_all(got).await?;
        }
    }
}

#[derive(Default)]
struct Tally {
    begun: usize,
    ended: usize,
    good: Vec<u64>,
}

async fn client(rate: u32, targets: &[Target]) -> Result<()> {
    let resolver = resolver()?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // The end of the input or a line: both mean the same.
        let _ = std::io::stdin().read_line(&mut String::new());
        let _ = stop.send(());
    });
    let tally = Rc::new(RefCell::new(Tally {
        good: vec![0; targets.len()],
        ..Tally::default()
    }));
    println!("running");
    let beginning = async {
        let start = Instant::now();
        for number in 0_u32.. {
            let at = Duration::from_secs(1) * number / rate.max(1);
            tokio::time::sleep(at.saturating_sub(start.elapsed())).await;
            let index = usize::try_from(number).unwrap_or(0) % targets.len();
            let Some(target) = targets.get(index).cloned() else {
                return;
            };
            {
                let mut tally = tally.borrow_mut();
                if tally.begun - tally.ended >= MOST {
                    tell(&target, now(), "begin", "too many are under way");
                    continue;
                }
                tally.begun += 1;
            }
            let tally = Rc::clone(&tally);
            spawn_local(async move {
                let began = now();
                let mut step = "lookup";
                let result = once(&target, resolver, number, &mut step).await;
                let mut tally = tally.borrow_mut();
                tally.ended += 1;
                match result {
                    Ok(()) => {
                        if let Some(good) = tally.good.get_mut(index) {
                            *good += 1;
                        }
                    }
                    Err(error) => tell(&target, began, step, &format!("{error:#}")),
                }
            });
        }
    };
    tokio::select! {
        () = beginning => {}
        _ = stopped => {}
    }
    while tally.borrow().ended < tally.borrow().begun {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (target, good) in targets.iter().zip(&tally.borrow().good) {
        println!("done {target} {good}");
    }
    Ok(())
}

fn tell(target: &Target, began: u64, step: &str, error: &str) {
    let failure = Failure {
        began,
        ended: now(),
        target: target.clone(),
        step: step.to_owned(),
        error: error.to_owned(),
    };
    println!("{failure}");
}

/// One lookup and one connection; `step` says how far it has come.
async fn once(
    target: &Target,
    resolver: SocketAddr,
    number: u32,
    step: &mut &'static str,
) -> Result<()> {
    let address = timeout(PATIENCE, look_up(&target.host, resolver, number))
        .await
        .context("no answer")??;
    if target.kind == "dns" {
        return Ok(());
    }
    *step = "connect";
    let address = SocketAddr::new(address.into(), target.port);
    let mut stream = timeout(PATIENCE, TcpStream::connect(address))
        .await
        .context("timed out")??;
    *step = "peer";
    ensure!(stream.peer_addr()? == address, "{:?}", stream.peer_addr());
    *step = "exchange";
    timeout(PATIENCE, exchange(target, &mut stream, number))
        .await
        .context("timed out")?
}

async fn exchange(target: &Target, stream: &mut TcpStream, number: u32) -> Result<()> {
    if target.kind == "http" {
        let head = format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            target.host
        );
        stream.write_all(head.as_bytes()).await?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await?;
        let text = String::from_utf8_lossy(&text);
        ensure!(
            text.starts_with("HTTP/1.1 200 ") && text.ends_with("hello"),
            "{text:?}"
        );
        return Ok(());
    }
    stream.write_all(HELLO).await?;
    let mut echo = [0; HELLO.len()];
    stream.read_exact(&mut echo).await?;
    ensure!(echo == HELLO, "{echo:?}");
    // Every way in which a connection may end.
    match number % 7 {
        0 => set_socket_linger(&*stream, Some(Duration::ZERO))?,
        1 | 2 => {
            stream.write_all(BYE).await?;
            let end = stream.read(&mut echo).await?;
            ensure!(end == 0, "more than the echo");
        }
        3 => {
            // Some are open for a while, so that others end beside them.
            let while_open = Duration::from_millis(u64::from(number % 500));
            tokio::time::sleep(while_open).await;
            stream.write_all(HELLO).await?;
            stream.read_exact(&mut echo).await?;
        }
        _ => {}
    }
    Ok(())
}

/// A query for the IPv4 address, sent once: a lost answer is a failure.
async fn look_up(host: &str, resolver: SocketAddr, number: u32) -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(resolver).await?;
    let id = number.to_be_bytes();
    // RFC 1035 section 4.1: a header with "recursion desired", one question.
    let mut query = vec![id[2], id[3], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in host.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send(&query).await?;
    let mut answer = [0; 512];
    let count = socket.recv(&mut answer).await?;
    let answer = &answer[..count];
    ensure!(answer.get(..2) == query.get(..2), "another answer");
    ensure!(
        answer.get(3).is_some_and(|flags| flags % 16 == 0),
        "an error: {answer:?}"
    );
    let records = answer.get(query.len()..).unwrap_or_default();
    // The first A record: type, class, time to live, length, address.
    records
        .windows(14)
        .find(|bytes| bytes.starts_with(&[0, 1, 0, 1]) && bytes.get(8..10) == Some(&[0, 4]))
        .and_then(|bytes| <[u8; 4]>::try_from(bytes.get(10..14)?).ok())
        .map(Ipv4Addr::from)
        .with_context(|| format!("no address: {answer:?}"))
}

fn resolver() -> Result<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf")?;
    let address: IpAddr = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver "))
        .context("no resolver")?
        .trim()
        .parse()?;
    Ok(SocketAddr::new(address, 53))
}
