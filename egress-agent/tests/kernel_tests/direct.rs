//! The direct path: endpoints picked by the kernel, places that cannot leak.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use egress_agent::capture::{
    DirectBalance, DirectKeepalive, DirectOutcome, DirectPlan, DirectReport, DirectReports,
    DirectSlot,
};
use egress_agent::policy::snapshot::ServiceId;
use egress_common::{FAILURE_OPEN, ServiceValue, VERDICT_DIRECT, VERDICT_PROXY};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use socket2::{Domain, SockRef, Socket, Type};

use crate::kernel_lab::{Lab, exact, in_lab, value};

const HOST: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 9);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 9);
const SERVICE: ServiceId = ServiceId(7);

struct Direct {
    lab: Lab,
    reports: DirectReports,
    servers: Vec<TcpListener>,
}

fn slot(endpoint: u64, address: SocketAddr) -> DirectSlot {
    DirectSlot { endpoint, address }
}

impl Direct {
    /// A direct service with one endpoint for each address, numbered from 1.
    fn new(addresses: &[&str], plan: &DirectPlan) -> Self {
        let lab = Lab::new();
        let reports = lab.kernel.take_direct_reports().unwrap();
        lab.register(&[
            (exact(HOST, 80), value(SERVICE.0, VERDICT_DIRECT)),
            (exact(HOST6, 80), value(SERVICE.0, VERDICT_DIRECT)),
        ]);
        let servers: Vec<TcpListener> = addresses
            .iter()
            .map(|address| TcpListener::bind(address).unwrap())
            .collect();
        let slots = (1..)
            .zip(&servers)
            .map(|(endpoint, server)| slot(endpoint, server.local_addr().unwrap()))
            .collect();
        let direct = Self {
            lab,
            reports,
            servers,
        };
        direct.plan(&DirectPlan {
            slots,
            ..plan.clone()
        });
        direct
    }

    fn plan(&self, plan: &DirectPlan) {
        self.lab.kernel.set_direct(SERVICE, plan).unwrap();
    }

    fn active(&self) -> u64 {
        self.lab.kernel.direct_connections(SERVICE).unwrap()
    }

    fn reports(&mut self) -> Vec<DirectReport> {
        std::iter::from_fn(|| self.reports.next()).collect()
    }

    fn outcomes(&mut self) -> Vec<DirectOutcome> {
        self.reports().iter().map(|report| report.outcome).collect()
    }

    /// Waits until so many connections are left: the end of one may still be
    /// on its way through the kernel.
    fn settles_at(&self, expected: u64) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.active() != expected {
            assert!(
                Instant::now() < deadline,
                "{} places are taken, not {expected}",
                self.active()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn refused<T: std::fmt::Debug>(result: std::io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

/// A listener whose queue is full, so that a SYN to it is never answered.
fn black_hole() -> (Socket, Vec<Socket>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 1, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut fill = Vec::new();
    for _ in 0..8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address.into());
        fill.push(socket);
    }
    assert!(fill[7].peer_addr().is_err(), "the last one waits");
    while fill[0].peer_addr().is_err() {
        thread::yield_now();
    }
    (listener, fill, address)
}

#[test]
fn a_connection_goes_to_an_endpoint_and_is_reported() {
    in_lab(
        "direct::a_connection_goes_to_an_endpoint_and_is_reported",
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
                    reset: false
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
    in_lab("direct::bytes_are_exact_whoever_closes_first", || {
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
                    reset: false
                },
                "server first: {server_first}"
            );
        }
    });
}

/// The kernel does not wait for the FIN of the server once its application has
/// let go of the socket.
#[test]
fn bytes_are_exact_while_the_server_keeps_its_end() {
    in_lab(
        "direct::bytes_are_exact_while_the_server_keeps_its_end",
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
                    reset: false
                }
            );
        },
    );
}

#[test]
fn a_reset_is_told_from_a_close() {
    in_lab("direct::a_reset_is_told_from_a_close", || {
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
                DirectOutcome::Closed { reset: true, .. }
            ]
        ));
    });
}

#[test]
fn max_connections_is_exact() {
    in_lab("direct::max_connections_is_exact", || {
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
    in_lab("direct::max_connections_holds_under_contention", || {
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
    });
}

#[test]
fn a_refused_endpoint_gives_its_place_back() {
    in_lab("direct::a_refused_endpoint_gives_its_place_back", || {
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
    });
}

/// No route: `connect` fails between the hook and `tcp_connect`.
#[test]
fn a_connect_that_fails_early_gives_its_place_back() {
    in_lab(
        "direct::a_connect_that_fails_early_gives_its_place_back",
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
    in_lab("direct::one_socket_connected_again_holds_one_place", || {
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
    });
}

#[test]
fn a_syn_that_is_never_answered_ends_by_the_connect_timeout() {
    in_lab(
        "direct::a_syn_that_is_never_answered_ends_by_the_connect_timeout",
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
        "direct::an_abandoned_non_blocking_connect_gives_its_place_back",
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
    in_lab("direct::killed_and_forked_processes_leak_no_place", || {
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
            match first {
                Some(first) => thread::sleep(first * (rounds % 10) / 5),
                None => {
                    while made() == 0 && begun.elapsed() < Duration::from_secs(20) {
                        thread::sleep(Duration::from_micros(200));
                    }
                    first = Some(begun.elapsed());
                }
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
    });
}

/// A socket passed to another process through a Unix socket is one place.
#[test]
fn a_duplicated_socket_is_one_place() {
    in_lab("direct::a_duplicated_socket_is_one_place", || {
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

#[test]
fn a_full_ring_buffer_holds_nothing_up() {
    in_lab("direct::a_full_ring_buffer_holds_nothing_up", || {
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
    });
}

#[test]
fn balance_follows_the_slots() {
    in_lab("direct::balance_follows_the_slots", || {
        let mut direct = Direct::new(&["127.0.1.1:0", "127.0.1.2:0"], &DirectPlan::default());
        let addresses: Vec<SocketAddr> = direct
            .servers
            .iter()
            .map(|server| server.local_addr().unwrap())
            .collect();
        let slots = vec![
            slot(1, addresses[0]),
            slot(2, addresses[1]),
            slot(1, addresses[0]),
        ];
        let picks = |direct: &mut Direct, balance| {
            direct.plan(&DirectPlan {
                balance,
                slots: slots.clone(),
                ..DirectPlan::default()
            });
            let clients: Vec<TcpStream> = (0..90)
                .map(|_| TcpStream::connect((HOST, 80)).unwrap())
                .collect();
            let picks: Vec<u64> = direct
                .reports()
                .iter()
                .filter(|report| report.outcome == DirectOutcome::Established)
                .map(|report| report.endpoint.unwrap())
                .collect();
            for server in &direct.servers {
                server.set_nonblocking(true).unwrap();
                while server.accept().is_ok() {}
            }
            drop(clients);
            direct.settles_at(0);
            direct.reports();
            picks
        };
        let round = picks(&mut direct, DirectBalance::RoundRobin);
        assert_eq!(round.iter().filter(|pick| **pick == 1).count(), 60);
        assert!(round.windows(3).all(|three| three.contains(&2)));
        let random = picks(&mut direct, DirectBalance::Random);
        let ones = random.iter().filter(|pick| **pick == 1).count();
        assert!((35..=80).contains(&ones), "{ones}");
        // Slots favour the first two to one, open connections even it out.
        // Summed over five runs, since the two slots compared are random.
        let ones: usize = (0..5)
            .map(|_| {
                let least = picks(&mut direct, DirectBalance::LeastConnections);
                least.iter().filter(|pick| **pick == 1).count()
            })
            .sum();
        assert!((205..=255).contains(&ones), "{ones} of 450");
    });
}

#[test]
fn a_new_plan_is_in_force_at_once_and_leaves_nothing() {
    in_lab(
        "direct::a_new_plan_is_in_force_at_once_and_leaves_nothing",
        || {
            let mut direct = Direct::new(&["127.0.1.1:0", "127.0.1.2:0"], &DirectPlan::default());
            let addresses: Vec<SocketAddr> = direct
                .servers
                .iter()
                .map(|server| server.local_addr().unwrap())
                .collect();
            for round in 0..20 {
                let index = round % 2;
                direct.plan(&DirectPlan {
                    slots: vec![slot(index as u64 + 1, addresses[index])],
                    ..DirectPlan::default()
                });
                let client = TcpStream::connect((HOST, 80)).unwrap();
                direct.servers[index].accept().unwrap();
                drop(client);
            }
            direct.settles_at(0);
            direct.reports();
            // No endpoint may be used: refused, with a report.
            direct.plan(&DirectPlan::default());
            refused(TcpStream::connect((HOST, 80)));
            assert_eq!(direct.outcomes(), [DirectOutcome::NoEndpoint]);
            // No plan: to the agent.
            direct.plan(&DirectPlan {
                slots: vec![slot(1, addresses[0])],
                ..DirectPlan::default()
            });
            let last = TcpStream::connect((HOST, 80)).unwrap();
            direct.lab.kernel.remove_direct(SERVICE).unwrap();
            let usage = direct.lab.kernel.usage().unwrap();
            assert_eq!((usage.direct_services, usage.direct_slots), (0, 0));
            assert_eq!(usage.direct_counters, 2, "one connection is open");
            let _client = TcpStream::connect((HOST, 80)).unwrap();
            assert_eq!(
                direct.lab.accept(&direct.lab.tcp4).2.unwrap().service,
                SERVICE
            );
            direct.servers[0].accept().unwrap();
            drop(last);
            direct.settles_at(0);
            direct.lab.kernel.collect_direct().unwrap();
            assert_eq!(direct.lab.kernel.usage().unwrap().direct_counters, 0);
        },
    );
}

#[test]
fn address_families_are_bridged_where_that_can_be() {
    in_lab(
        "direct::address_families_are_bridged_where_that_can_be",
        || {
            let direct = Direct::new(&["127.0.1.1:0", "[::1]:0"], &DirectPlan::default());
            let four = direct.servers[0].local_addr().unwrap();
            let six = direct.servers[1].local_addr().unwrap();
            let only = |address: SocketAddr| {
                direct.plan(&DirectPlan {
                    slots: vec![slot(1, address)],
                    ..DirectPlan::default()
                });
            };
            only(six);
            let client = TcpStream::connect((HOST6, 80)).unwrap();
            assert_eq!(client.peer_addr().unwrap(), SocketAddr::from((HOST6, 80)));
            assert_eq!(
                direct.servers[1].accept().unwrap().1,
                client.local_addr().unwrap()
            );
            // An IPv6 socket reaches an IPv4 endpoint by its mapped address.
            only(four);
            let client = TcpStream::connect((HOST6, 80)).unwrap();
            assert_eq!(client.peer_addr().unwrap(), SocketAddr::from((HOST6, 80)));
            direct.servers[0].accept().unwrap();
            let mapped = SocketAddr::from((HOST.to_ipv6_mapped(), 80));
            let client = TcpStream::connect(mapped).unwrap();
            assert_eq!(client.peer_addr().unwrap(), mapped);
            direct.servers[0].accept().unwrap();
            // An IPv4 socket cannot reach an IPv6 one: the agent does it.
            only(six);
            let _client = TcpStream::connect((HOST, 80)).unwrap();
            assert!(direct.lab.accept(&direct.lab.tcp4).2.is_some());
        },
    );
}

#[test]
fn socket_options_are_set_and_put_back() {
    in_lab("direct::socket_options_are_set_and_put_back", || {
        let _direct = Direct::new(
            &["127.0.1.1:0"],
            &DirectPlan {
                connect_timeout: Some(Duration::from_secs(4)),
                keepalive: Some(DirectKeepalive {
                    idle: Duration::from_secs(77),
                    interval: Duration::from_secs(7),
                    probes: 5,
                }),
                ..DirectPlan::default()
            },
        );
        for own in [None, Some(Duration::from_secs(9))] {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_tcp_user_timeout(own).unwrap();
            socket
                .connect(&SocketAddr::from((HOST, 80)).into())
                .unwrap();
            assert!(socket.keepalive().unwrap());
            assert_eq!(
                socket.tcp_keepalive_time().unwrap(),
                Duration::from_secs(77)
            );
            assert_eq!(
                socket.tcp_keepalive_interval().unwrap(),
                Duration::from_secs(7)
            );
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
            // It bounded the handshake alone.
            let now = socket.tcp_user_timeout().unwrap();
            assert_eq!(now.filter(|timeout| !timeout.is_zero()), own);
        }
    });
}

#[test]
fn direct_services_go_on_without_the_agent_and_open_ones_too() {
    in_lab(
        "direct::direct_services_go_on_without_the_agent_and_open_ones_too",
        || {
            let direct = Direct::new(&["127.0.1.1:0"], &DirectPlan::default());
            let open = ServiceValue {
                on_failure: FAILURE_OPEN,
                ..value(8, VERDICT_PROXY)
            };
            let host = Ipv4Addr::new(240, 240, 0, 10);
            direct.lab.register(&[
                (exact(HOST, 80), value(SERVICE.0, VERDICT_DIRECT)),
                (exact(IpAddr::from(host), 80), open),
            ]);
            direct
                .lab
                .kernel
                .set_direct(
                    ServiceId(8),
                    &DirectPlan {
                        slots: vec![slot(1, direct.servers[0].local_addr().unwrap())],
                        ..DirectPlan::default()
                    },
                )
                .unwrap();
            direct.lab.kernel.stop_heartbeat().unwrap();
            for dialled in [HOST, host] {
                let client = TcpStream::connect((dialled, 80)).unwrap();
                direct.servers[0].accept().unwrap();
                assert_eq!(client.peer_addr().unwrap(), SocketAddr::from((dialled, 80)));
            }
            let counters = direct.lab.kernel.counters().unwrap();
            assert_eq!((counters.direct, counters.opened_agent_down), (2, 1));
        },
    );
}
