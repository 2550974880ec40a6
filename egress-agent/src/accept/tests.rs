#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::capture::{Caller, Comm};
use crate::policy::snapshot::ServiceId;

struct Fake(Option<Captured>);

impl Origins for Fake {
    fn take(&self, _: u64, peer: SocketAddr, _: u16) -> io::Result<Option<Captured>> {
        Ok(self.0.clone().map(|captured| Captured { peer, ..captured }))
    }
}

fn captured() -> Captured {
    Captured {
        peer: "127.0.0.1:1".parse().unwrap(),
        original: "127.0.0.9:80".parse().unwrap(),
        service: ServiceId(7),
        name_decides: false,
        caller: Caller {
            cgroup: 1,
            netns: 2,
            pid: 3,
            uid: 4,
            comm: Comm::default(),
        },
    }
}

fn intake(origin: Option<Captured>, limit: usize) -> Intake {
    Intake {
        origins: Arc::new(Fake(origin)),
        admission: Admission::new(limit),
        stats: Arc::default(),
    }
}

/// Connects and reads; the reset may already end the connecting.
async fn refusal(address: SocketAddr) -> io::ErrorKind {
    match TcpStream::connect(address).await {
        Ok(mut client) => client.read(&mut [0; 8]).await.unwrap_err().kind(),
        Err(error) => error.kind(),
    }
}

#[tokio::test]
async fn what_is_accepted_neither_gathers_nor_paces() {
    let listening = Listening::open(&NetNs::current().unwrap(), 1).unwrap();
    let listener = listening.workers[0].v4.try_clone().unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await;
    let (accepted, _) = listener.accept().await.unwrap();
    let socket = socket2::SockRef::from(&accepted);
    assert!(socket.tcp_nodelay().unwrap());
    let algorithm = socket.tcp_congestion().unwrap();
    assert!(algorithm.starts_with(b"reno"), "{algorithm:?}");
}

#[tokio::test]
async fn workers_share_one_port_in_each_family() {
    let listening = Listening::open(&NetNs::current().unwrap(), 3).unwrap();
    assert_eq!(listening.workers.len(), 3);
    for worker in &listening.workers {
        assert_eq!(
            worker.v4.local_addr().unwrap(),
            SocketAddr::from(([127, 0, 0, 1], listening.ports.v4))
        );
        if let Some(v6) = &worker.v6 {
            assert_eq!(v6.local_addr().unwrap().port(), listening.ports.v6);
        }
    }
}

#[tokio::test]
async fn a_stranger_is_reset_and_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let intake = intake(None, 9);
    let stats = intake.stats.clone();
    tokio::select! {
        () = intake.run(listener, NetNs::current().unwrap(), |_| panic!("handed on")) => {}
        kind = refusal(address) => assert_eq!(kind, io::ErrorKind::ConnectionReset),
    }
    assert_eq!(stats.unknown_origin.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_limit_resets_what_is_too_much_and_frees_places() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let intake = intake(Some(captured()), 1);
    let (stats, admission) = (intake.stats.clone(), intake.admission.clone());
    let held = RefCell::new(Vec::new());
    let netns = NetNs::current().unwrap();
    let client = async {
        let first = TcpStream::connect(address).await.unwrap();
        while held.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(refusal(address).await, io::ErrorKind::ConnectionReset);
        assert_eq!(admission.open(), 1);
        held.borrow_mut().clear();
        assert_eq!(admission.open(), 0);
        let third = TcpStream::connect(address).await.unwrap();
        while held.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        drop((first, third));
    };
    tokio::select! {
        () = intake.run(listener, netns, |accepted| held.borrow_mut().push(accepted)) => {}
        () = client => {}
    }
    assert_eq!(stats.over_limit.load(Ordering::Relaxed), 1);
    assert_eq!(stats.accepted.load(Ordering::Relaxed), 2);
    assert_eq!(held.borrow()[0].captured.service, ServiceId(7));
}

#[tokio::test(start_paused = true)]
async fn running_out_of_descriptors_does_not_spin() {
    let calls = Cell::new(0_u32);
    let intake = intake(None, 9);
    let place = intake::Place {
        netns: NetNs::current().unwrap(),
        port: 1,
    };
    let accept = async || {
        calls.set(calls.get() + 1);
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    };
    let minute = tokio::time::timeout(
        Duration::from_mins(1),
        intake.accept_from(accept, &place, |_| {}),
    );
    assert!(minute.await.is_err());
    // 5 ms doubling to 1 s: eight steps, then one a second.
    assert!((60..=70).contains(&calls.get()), "{}", calls.get());
}

#[tokio::test]
async fn unacknowledged_bytes_are_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    assert_eq!(socket::unacknowledged(&client).unwrap(), 0);
    while client.try_write(&[0; 65536]).is_ok() {}
    assert!(socket::unacknowledged(&client).unwrap() > 0);
}
