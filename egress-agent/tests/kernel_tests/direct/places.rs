//! Places under `maxConnections` are exact, and cannot leak.

use super::*;

#[test]
fn max_connections_is_exact() {
    in_lab("direct::places::max_connections_is_exact", || {
        let mut direct = Direct::new(
            &["127.0.1.1:0"],
            &DirectPlan {
                max_connections: Some(3),
                ..DirectPlan::default()
            },
        );
        let mut clients: Vec<TcpStream> = (0..3)
            .map(|_| TcpStream::connect((HOST, 80)).unwrap())
            .collect();
        refused(TcpStream::connect((HOST, 80)));
        assert_eq!(direct.active(), 3);
        assert_eq!(direct.lab.kernel.counters().unwrap().refused_overflow, 1);
        let overflow = direct.reports().pop().unwrap();
        assert_eq!(overflow.outcome, DirectOutcome::Overflow);
        assert_eq!((overflow.endpoint, overflow.destination), (None, None));
        clients.pop();
        direct.servers[0].accept().unwrap();
        direct.servers[0].accept().unwrap();
        direct.servers[0].accept().unwrap();
        direct.settles_at(2);
        clients.push(TcpStream::connect((HOST, 80)).unwrap());
        refused(TcpStream::connect((HOST, 80)));
        clients.clear();
        while direct.active() > 0 {
            direct.servers[0].set_nonblocking(true).unwrap();
            let _ = direct.servers[0].accept();
        }
    });
}

/// Eight threads fight for five places; never more than five are held.
#[test]
fn max_connections_holds_under_contention() {
    in_lab(
        "direct::places::max_connections_holds_under_contention",
        || {
            let direct = Direct::new(
                &["127.0.1.1:0"],
                &DirectPlan {
                    max_connections: Some(5),
                    ..DirectPlan::default()
                },
            );
            let server = direct.servers[0].try_clone().unwrap();
            thread::spawn(move || {
                for stream in server.incoming().flatten() {
                    drop(stream);
                }
            });
            let (mut made, mut refusals, mut most) = (0, 0, 0);
            thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            let (mut made, mut refusals, mut most) = (0, 0, 0);
                            for _ in 0..400 {
                                match TcpStream::connect((HOST, 80)) {
                                    Ok(_client) => {
                                        made += 1;
                                        most = most.max(direct.active());
                                    }
                                    Err(error) => {
                                        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                                        refusals += 1;
                                    }
                                }
                            }
                            (made, refusals, most)
                        })
                    })
                    .collect();
                for thread in threads {
                    let (a, b, c) = thread.join().unwrap();
                    made += a;
                    refusals += b;
                    most = most.max(c);
                }
            });
            assert_eq!(made + refusals, 3200);
            assert!(made > 0);
            assert!((1..=5).contains(&most), "{most}");
            direct.settles_at(0);
            // The ring buffer was never read, and no place depended on it.
        },
    );
}

#[test]
fn a_refused_endpoint_gives_its_place_back() {
    in_lab(
        "direct::places::a_refused_endpoint_gives_its_place_back",
        || {
            let mut direct = Direct::new(&[], &DirectPlan::default());
            direct.plan(&DirectPlan {
                slots: vec![slot(1, "127.0.1.1:1".parse().unwrap())],
                ..DirectPlan::default()
            });
            refused(TcpStream::connect((HOST, 80)));
            direct.settles_at(0);
            let report = direct.reports().pop().unwrap();
            assert_eq!(report.outcome, DirectOutcome::Failed);
            assert_eq!(report.endpoint, Some(1));
            assert!(report.handshake.is_none());
            assert_eq!(direct.lab.kernel.direct_connections_of(1).unwrap(), 0);
        },
    );
}

/// No route: `connect` fails between the hook and `tcp_connect`.
#[test]
fn a_connect_that_fails_early_gives_its_place_back() {
    in_lab(
        "direct::places::a_connect_that_fails_early_gives_its_place_back",
        || {
            let mut direct = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
            let here = direct.servers[0].local_addr().unwrap();
            let nowhere = DirectPlan {
                slots: vec![slot(9, "192.0.2.1:80".parse().unwrap())],
                ..DirectPlan::default()
            };
            direct.plan(&nowhere);
            // Given back when the socket is released.
            let error = TcpStream::connect((HOST, 80)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
            direct.settles_at(0);
            assert_eq!(direct.outcomes(), [DirectOutcome::Failed]);
            // Given back when the socket is connected again.
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let to = SocketAddr::from((HOST, 80)).into();
            for _ in 0..3 {
                assert!(socket.connect(&to).is_err());
                assert_eq!(direct.active(), 1);
            }
            direct.plan(&DirectPlan {
                slots: vec![slot(1, here)],
                ..DirectPlan::default()
            });
            socket.connect(&to).unwrap();
            assert_eq!(direct.active(), 1);
            assert_eq!(direct.lab.kernel.direct_connections_of(9).unwrap(), 0);
            direct.servers[0].accept().unwrap();
            drop(socket);
            direct.settles_at(0);
        },
    );
}

#[test]
fn one_socket_connected_again_holds_one_place() {
    in_lab(
        "direct::places::one_socket_connected_again_holds_one_place",
        || {
            let direct = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
            let server = direct.servers[0].local_addr().unwrap();
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let to = SocketAddr::from((HOST, 80)).into();
            for _ in 0..3 {
                socket.connect(&to).unwrap();
                direct.servers[0].accept().unwrap();
                assert_eq!(direct.active(), 1);
                // connect(AF_UNSPEC) dissolves the association.
                rustix::net::connect_unspec(&socket).unwrap();
                direct.settles_at(0);
            }
            // And to somewhere unregistered it holds none.
            socket.connect(&server.into()).unwrap();
            assert_eq!(direct.active(), 0);
        },
    );
}

#[test]
fn a_syn_that_is_never_answered_ends_by_the_connect_timeout() {
    in_lab(
        "direct::places::a_syn_that_is_never_answered_ends_by_the_connect_timeout",
        || {
            let mut direct = Direct::new(&[], &DirectPlan::default());
            let (_listener, _fill, address) = black_hole();
            direct.plan(&DirectPlan {
                connect_timeout: Some(Duration::from_millis(300)),
                slots: vec![slot(1, address)],
                ..DirectPlan::default()
            });
            let start = Instant::now();
            let error = TcpStream::connect((HOST, 80)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!(
                start.elapsed() < Duration::from_secs(3),
                "{:?}",
                start.elapsed()
            );
            direct.settles_at(0);
            assert_eq!(direct.outcomes(), [DirectOutcome::Failed]);
        },
    );
}

#[test]
fn an_abandoned_non_blocking_connect_gives_its_place_back() {
    in_lab(
        "direct::places::an_abandoned_non_blocking_connect_gives_its_place_back",
        || {
            let direct = Direct::new(&[], &DirectPlan::default());
            let (_listener, _fill, address) = black_hole();
            direct.plan(&DirectPlan {
                slots: vec![slot(1, address)],
                ..DirectPlan::default()
            });
            let sockets: Vec<_> = (0..20)
                .map(|_| {
                    let socket = rustix::net::socket_with(
                        AddressFamily::INET,
                        SocketType::STREAM,
                        SocketFlags::NONBLOCK,
                        None,
                    )
                    .unwrap();
                    assert_eq!(
                        rustix::net::connect(&socket, &SocketAddr::from((HOST, 80))),
                        Err(rustix::io::Errno::INPROGRESS)
                    );
                    socket
                })
                .collect();
            assert_eq!(direct.active(), 20);
            drop(sockets);
            direct.settles_at(0);
            // A deferred fast open that never sends has no SYN at all.
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            crate::kernel_lab::set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1);
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&SocketAddr::from((HOST, 80)).into());
            assert_eq!(direct.active(), 1);
            drop(socket);
            direct.settles_at(0);
        },
    );
}

/// Processes that fork with the socket, and are killed at any stage.
#[test]
fn killed_and_forked_processes_leak_no_place() {
    in_lab(
        "direct::places::killed_and_forked_processes_leak_no_place",
        || {
            let direct = Direct::new(&["127.0.1.2:0"], &DirectPlan::default());
            let (_listener, _fill, hole) = black_hole();
            let open = direct.servers[0].local_addr().unwrap();
            let server = direct.servers[0].try_clone().unwrap();
            thread::spawn(move || {
                let mut kept = Vec::new();
                for stream in server.incoming().flatten() {
                    kept.push(stream);
                    if kept.len() > 4 {
                        kept.clear();
                    }
                }
            });
            direct.plan(&DirectPlan {
                slots: vec![slot(1, open), slot(2, hole)],
                ..DirectPlan::default()
            });
            // bash's /dev/tcp: a descriptor that a subshell has too.
            let script = format!(
                "exec 3<>/dev/tcp/{HOST}/80; (sleep 30) & exec 4<>/dev/tcp/{HOST}/80; \
             exec 5<>/dev/tcp/{HOST}/80; sleep 30"
            );
            let start = || {
                Command::new("setsid")
                    .args(["--wait", "bash", "-c", &script])
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            };
            let made = || direct.lab.kernel.counters().unwrap().direct;
            // The first lives until it has connected, and tells how long that
            // takes on this machine; the others die around that moment.
            let mut first = None;
            let end = Instant::now() + Duration::from_secs(30);
            let mut rounds = 0_u32;
            while rounds < 40 && (rounds < 4 || Instant::now() < end) {
                let begun = Instant::now();
                let mut child = start();
                if let Some(first) = first {
                    thread::sleep(first * (rounds % 10) / 5);
                } else {
                    while made() == 0 && begun.elapsed() < Duration::from_secs(20) {
                        thread::sleep(Duration::from_micros(200));
                    }
                    first = Some(begun.elapsed());
                }
                // The whole session, forked shells included, as an OOM kill would.
                for pid in direct.lab.others() {
                    let _ = rustix::process::kill_process(
                        rustix::process::Pid::from_raw(pid).unwrap(),
                        rustix::process::Signal::KILL,
                    );
                }
                let _ = child.wait();
                rounds += 1;
            }
            // What was forked while the others were listed.
            for pid in direct.lab.others() {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(pid).unwrap(),
                    rustix::process::Signal::KILL,
                );
            }
            let made = made();
            assert!(
                made > u64::from(rounds / 4),
                "only {made} connections were made in {rounds} rounds"
            );
            // The server drops the last of its ends only when new ones come.
            for _ in 0..5 {
                let _ = TcpStream::connect(open);
            }
            direct.settles_at(0);
            assert_eq!(direct.lab.kernel.direct_connections_of(1).unwrap(), 0);
            assert_eq!(direct.lab.kernel.direct_connections_of(2).unwrap(), 0);
        },
    );
}

/// A socket passed to another process through a Unix socket is one place.
#[test]
fn a_duplicated_socket_is_one_place() {
    in_lab("direct::places::a_duplicated_socket_is_one_place", || {
        let direct = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
        let client = TcpStream::connect((HOST, 80)).unwrap();
        let (server, _) = direct.servers[0].accept().unwrap();
        let copy = client.try_clone().unwrap();
        drop(client);
        assert_eq!(direct.active(), 1);
        drop(server);
        drop(copy);
        direct.settles_at(0);
    });
}
