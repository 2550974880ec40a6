//! What the kernel reports of each connection.

use super::*;

#[test]
fn a_connection_goes_to_an_endpoint_and_is_reported() {
    in_lab(
        "direct::reports::a_connection_goes_to_an_endpoint_and_is_reported",
        || {
            let mut direct = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
            let mut client = TcpStream::connect((HOST, 80)).unwrap();
            assert_eq!(client.peer_addr().unwrap(), SocketAddr::from((HOST, 80)));
            let (mut server, peer) = direct.servers[0].accept().unwrap();
            assert_eq!(client.local_addr().unwrap(), peer);
            assert_eq!(direct.active(), 1);
            assert_eq!(direct.lab.kernel.direct_connections_of(1).unwrap(), 1);
            client.write_all(b"hello").unwrap();
            server.read_exact(&mut [0; 5]).unwrap();
            server.write_all(b"hi").unwrap();
            client.read_exact(&mut [0; 2]).unwrap();
            drop(client);
            server.read_to_end(&mut Vec::new()).unwrap();
            drop(server);
            direct.settles_at(0);
            let reports = direct.reports();
            assert_eq!(reports.len(), 2, "{reports:?}");
            assert_eq!(reports[0].outcome, DirectOutcome::Established);
            assert_eq!(
                reports[1].outcome,
                DirectOutcome::Closed {
                    sent: 5,
                    received: 2,
                    reset: None
                }
            );
            for report in &reports {
                assert_eq!(report.service, SERVICE);
                assert_eq!(report.endpoint, Some(1));
                assert_eq!(
                    report.destination,
                    Some(direct.servers[0].local_addr().unwrap())
                );
                assert_eq!(report.original, SocketAddr::from((HOST, 80)));
                assert_eq!(report.caller.pid, std::process::id());
                assert!(report.handshake.unwrap() <= report.age);
            }
            assert_eq!(direct.lab.kernel.direct_connections_of(1).unwrap(), 0);
            let usage = direct.lab.kernel.usage().unwrap();
            assert_eq!(usage.origins, 0);
            let counters = direct.lab.kernel.counters().unwrap();
            assert_eq!((counters.direct, counters.proxied), (1, 0));
        },
    );
}

#[test]
fn bytes_are_exact_whoever_closes_first() {
    in_lab(
        "direct::reports::bytes_are_exact_whoever_closes_first",
        || {
            let mut direct = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
            for server_first in [false, true] {
                let mut client = TcpStream::connect((HOST, 80)).unwrap();
                let (mut server, _) = direct.servers[0].accept().unwrap();
                let sender = thread::spawn(move || {
                    server.write_all(&vec![1; 300_000]).unwrap();
                    if server_first {
                        server.shutdown(Shutdown::Write).unwrap();
                    }
                    let mut got = Vec::new();
                    server.read_to_end(&mut got).unwrap();
                    got.len()
                });
                if server_first {
                    let mut got = Vec::new();
                    client.read_to_end(&mut got).unwrap();
                    assert_eq!(got.len(), 300_000);
                } else {
                    client.read_exact(&mut vec![0; 300_000]).unwrap();
                }
                client.write_all(&vec![2; 200_000]).unwrap();
                drop(client);
                assert_eq!(sender.join().unwrap(), 200_000);
                direct.settles_at(0);
                assert_eq!(
                    direct.outcomes()[1],
                    DirectOutcome::Closed {
                        sent: 200_000,
                        received: 300_000,
                        reset: None
                    },
                    "server first: {server_first}"
                );
            }
        },
    );
}

/// The kernel does not wait for the FIN of the server once its application has
/// let go of the socket.
#[test]
fn bytes_are_exact_while_the_server_keeps_its_end() {
    in_lab(
        "direct::reports::bytes_are_exact_while_the_server_keeps_its_end",
        || {
            let mut direct = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
            let mut client = TcpStream::connect((HOST, 80)).unwrap();
            let (mut server, _) = direct.servers[0].accept().unwrap();
            server.write_all(b"hi").unwrap();
            client.read_exact(&mut [0; 2]).unwrap();
            client.write_all(b"bye").unwrap();
            drop(client);
            server.read_to_end(&mut Vec::new()).unwrap();
            direct.settles_at(0);
            assert_eq!(
                direct.outcomes()[1],
                DirectOutcome::Closed {
                    sent: 3,
                    received: 2,
                    reset: None
                }
            );
        },
    );
}

#[test]
fn a_reset_is_told_from_a_close() {
    in_lab("direct::reports::a_reset_is_told_from_a_close", || {
        let mut direct = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
        let mut client = TcpStream::connect((HOST, 80)).unwrap();
        let (server, _) = direct.servers[0].accept().unwrap();
        SockRef::from(&server)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(server);
        let error = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // The application may keep the dead socket; its place is back.
        direct.settles_at(0);
        assert!(matches!(
            direct.outcomes()[..],
            [
                DirectOutcome::Established,
                DirectOutcome::Closed {
                    reset: Some(ResetBy::Endpoint),
                    ..
                }
            ]
        ));
        // The application's own reset: data that it never read.
        let client = TcpStream::connect((HOST, 80)).unwrap();
        let (mut server, _) = direct.servers[0].accept().unwrap();
        server.write_all(b"unread").unwrap();
        client.peek(&mut [0; 1]).unwrap();
        drop(client);
        let error = server.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        direct.settles_at(0);
        assert!(matches!(
            direct.outcomes()[..],
            [
                DirectOutcome::Established,
                DirectOutcome::Closed {
                    reset: Some(ResetBy::Application),
                    ..
                }
            ]
        ));
    });
}

#[test]
fn a_full_ring_buffer_holds_nothing_up() {
    in_lab(
        "direct::reports::a_full_ring_buffer_holds_nothing_up",
        || {
            let mut direct = Direct::new(&[], &DirectPlan::default());
            direct.plan(&DirectPlan {
                max_connections: Some(1),
                slots: vec![slot(1, "127.0.1.1:1".parse().unwrap())],
                ..DirectPlan::default()
            });
            for _ in 0..10_000 {
                refused(TcpStream::connect((HOST, 80)));
            }
            let counters = direct.lab.kernel.counters().unwrap();
            assert_eq!(counters.direct, 10_000);
            assert!(counters.reports_lost > 0);
            assert_eq!(direct.active(), 0);
            let read = direct.reports().len() as u64;
            assert_eq!(read + counters.reports_lost, 10_000);
        },
    );
}

/// Wake-ups cost the application's `connect` most of all, so they are few; but
/// a failure, which may eject an endpoint, is one.
#[test]
fn only_failures_wake_the_reader_at_once() {
    in_lab(
        "direct::reports::only_failures_wake_the_reader_at_once",
        || {
            let Direct {
                lab,
                reports,
                servers,
            } = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut reports = reports.watched().unwrap();
                let started = Instant::now();
                let (mut woken, mut read, mut made) = (0, 0, 0);
                let at_most =
                    |quiet: Duration| quiet.as_nanos() / DirectReports::LOOK_AGAIN.as_nanos() + 1;
                let quiet = loop {
                    let client = TcpStream::connect((HOST, 80)).unwrap();
                    drop((client, servers[0].accept().unwrap()));
                    made += 1;
                    tokio::task::yield_now().await;
                    let wait = tokio::time::timeout(Duration::ZERO, reports.readable_mut());
                    if let Ok(ready) = wait.await {
                        let mut ready = ready.unwrap();
                        woken += 1;
                        read += std::iter::from_fn(|| ready.get_inner_mut().next()).count();
                        ready.clear_ready();
                    }
                    let quiet = started.elapsed();
                    // However slow the machine: two of each connection are more
                    // than could wake.
                    if quiet > 3 * DirectReports::LOOK_AGAIN && 2 * made > at_most(quiet) + 3 {
                        break quiet;
                    }
                    assert!(
                        quiet < Duration::from_mins(1),
                        "{made} connections in a minute"
                    );
                };
                let most = at_most(quiet);
                assert!((1..=most).contains(&woken), "{woken} times in {quiet:?}");
                read += std::iter::from_fn(|| reports.get_mut().next()).count();
                assert!(read as u128 > most, "{read} reports of {made}");

                lab.kernel
                    .set_direct(
                        SERVICE,
                        &DirectPlan {
                            slots: vec![slot(1, "127.0.1.1:1".parse().unwrap())],
                            ..DirectPlan::default()
                        },
                    )
                    .unwrap();
                for _ in 0..20 {
                    refused(TcpStream::connect((HOST, 80)));
                    let wait = tokio::time::timeout(Duration::from_secs(5), reports.readable_mut());
                    let mut ready = wait.await.expect("a failure wakes").unwrap();
                    let ring = ready.get_inner_mut();
                    let last = std::iter::from_fn(|| ring.next()).last().unwrap();
                    assert_eq!(last.outcome, DirectOutcome::Failed);
                    ready.clear_ready();
                }
            });
        },
    );
}
