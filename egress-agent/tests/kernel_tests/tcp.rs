//! TCP connections: redirected, refused, passed.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use egress_agent::capture::KernelSettings;
use egress_agent::capture::sockets::Sockets;
use egress_agent::policy::snapshot::ServiceId;
use egress_common::{
    ENTRY_NAME_DECIDES, FAILURE_OPEN, ServiceValue, VERDICT_PASS, VERDICT_PROXY, VERDICT_REFUSE,
};
use rustix::net::{AddressFamily, SendFlags, SocketType};
use socket2::SockRef;

use crate::kernel_lab::{Lab, SETTINGS, exact, in_lab, set_tcp_option, value};

const HOST: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 9);
const MSG_FASTOPEN: SendFlags = SendFlags::from_bits_retain(0x2000_0000);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 9);

fn refused<T: std::fmt::Debug>(result: std::io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn ipv4_is_redirected_and_its_origin_taken() {
    in_lab("tcp::ipv4_is_redirected_and_its_origin_taken", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(7, VERDICT_PROXY))]);
        let mut client = TcpStream::connect((HOST, 80)).unwrap();
        assert_eq!(client.peer_addr().unwrap(), SocketAddr::from((HOST, 80)));
        assert!(client.local_addr().unwrap().ip().is_loopback());
        let (mut server, peer, captured) = lab.accept(&lab.tcp4);
        let captured = captured.expect("a record");
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(captured.peer, peer);
        assert_eq!(captured.original, SocketAddr::from((HOST, 80)));
        assert_eq!(captured.service, ServiceId(7));
        assert!(!captured.name_decides);
        assert_eq!(captured.caller.pid, std::process::id());
        assert_eq!(captured.caller.uid, 0);
        assert_eq!(captured.caller.netns, lab.netns);
        assert_eq!(captured.caller.cgroup, lab.cgroup_id());
        assert!(!captured.caller.comm.to_string().is_empty());
        // The record is given once.
        assert!(lab.take(&lab.tcp4, peer).is_none());
        client.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
        assert_eq!(lab.kernel.counters().unwrap().proxied, 1);
    });
}

#[test]
fn ipv6_is_redirected() {
    in_lab("tcp::ipv6_is_redirected", || {
        let lab = Lab::new();
        let mut entry = value(8, VERDICT_PROXY);
        entry.flags = ENTRY_NAME_DECIDES;
        lab.register(&[(exact(HOST6, 443), entry)]);
        let client = TcpStream::connect((HOST6, 443)).unwrap();
        assert_eq!(client.peer_addr().unwrap(), SocketAddr::from((HOST6, 443)));
        let (_server, _, captured) = lab.accept(&lab.tcp6);
        let captured = captured.unwrap();
        assert_eq!(captured.original, SocketAddr::from((HOST6, 443)));
        assert_eq!(captured.service, ServiceId(8));
        assert!(captured.name_decides);
    });
}

/// A Java-style socket: IPv6, dialling an IPv4-mapped address.
#[test]
fn ipv4_mapped_is_ipv4() {
    in_lab("tcp::ipv4_mapped_is_ipv4", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(7, VERDICT_PROXY))]);
        let mapped = SocketAddr::from((HOST.to_ipv6_mapped(), 80));
        let client = TcpStream::connect(mapped).unwrap();
        assert_eq!(client.peer_addr().unwrap(), mapped);
        let (_server, _, captured) = lab.accept(&lab.tcp4);
        let captured = captured.unwrap();
        assert_eq!(captured.original, SocketAddr::from((HOST, 80)));
        assert_eq!(captured.peer.ip(), Ipv4Addr::LOCALHOST);
    });
}

#[test]
fn a_non_blocking_connect_is_redirected() {
    in_lab("tcp::a_non_blocking_connect_is_redirected", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(7, VERDICT_PROXY))]);
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        match rustix::net::connect(&socket, &SocketAddr::from((HOST, 80))) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => panic!("{error}"),
        }
        let (_server, _, captured) = lab.accept(&lab.tcp4);
        assert_eq!(captured.unwrap().original, SocketAddr::from((HOST, 80)));
        let client = TcpStream::from(socket);
        assert_eq!(client.peer_addr().unwrap(), SocketAddr::from((HOST, 80)));
        assert!(client.take_error().unwrap().is_none());
    });
}

/// `sendto` with `MSG_FASTOPEN` connects by itself, through
/// `__inet_stream_connect`; its data must arrive.
#[test]
fn msg_fastopen_is_redirected_with_its_data() {
    in_lab("tcp::msg_fastopen_is_redirected_with_its_data", || {
        let lab = Lab::new();
        lab.register(&[
            (exact(HOST, 80), value(7, VERDICT_PROXY)),
            (exact(HOST, 81), value(7, VERDICT_REFUSE)),
            (exact(HOST6, 80), value(8, VERDICT_PROXY)),
        ]);
        // Twice: the second time the kernel may hold a cookie.
        for _ in 0..2 {
            for (ip, listener) in [
                (SocketAddr::from((HOST, 80)), &lab.tcp4),
                (SocketAddr::from((HOST6, 80)), &lab.tcp6),
            ] {
                let family = if ip.is_ipv4() {
                    AddressFamily::INET
                } else {
                    AddressFamily::INET6
                };
                let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
                let sent = rustix::net::sendto(&socket, b"early", MSG_FASTOPEN, &ip).unwrap();
                assert_eq!(sent, 5);
                let (mut server, _, captured) = lab.accept(listener);
                assert_eq!(captured.unwrap().original, ip);
                let mut got = [0; 5];
                server.read_exact(&mut got).unwrap();
                assert_eq!(&got, b"early");
                assert_eq!(TcpStream::from(socket).peer_addr().unwrap(), ip);
            }
        }
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        assert_eq!(
            rustix::net::sendto(
                &socket,
                b"early",
                MSG_FASTOPEN,
                &SocketAddr::from((HOST, 81))
            ),
            Err(rustix::io::Errno::CONNREFUSED)
        );
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
    });
}

/// `TCP_FASTOPEN_CONNECT` puts the connect off to the first write.
#[test]
fn a_deferred_fastopen_connect_is_redirected() {
    in_lab("tcp::a_deferred_fastopen_connect_is_redirected", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(7, VERDICT_PROXY))]);
        for _ in 0..2 {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            set_tcp_option(&socket, libc::TCP_FASTOPEN_CONNECT, 1);
            socket
                .connect(&SocketAddr::from((HOST, 80)).into())
                .unwrap();
            (&socket).write_all(b"early").unwrap();
            let (mut server, _, captured) = lab.accept(&lab.tcp4);
            assert_eq!(captured.unwrap().original, SocketAddr::from((HOST, 80)));
            let mut got = [0; 5];
            server.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"early");
        }
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
    });
}

#[test]
fn verdicts_are_carried_out() {
    in_lab("tcp::verdicts_are_carried_out", || {
        let lab = Lab::new();
        let local = TcpListener::bind("127.0.0.77:0").unwrap();
        let port = local.local_addr().unwrap().port();
        let here = Ipv4Addr::new(127, 0, 0, 77);
        lab.register(&[
            (exact(HOST, 1), value(1, VERDICT_REFUSE)),
            (exact(HOST6, 1), value(1, VERDICT_REFUSE)),
            (exact(here, port), value(2, VERDICT_PASS)),
        ]);
        refused(TcpStream::connect((HOST, 1)));
        refused(TcpStream::connect((HOST6, 1)));
        refused(TcpStream::connect((HOST.to_ipv6_mapped(), 1)));
        let passed = TcpStream::connect((here, port)).unwrap();
        assert_eq!(passed.peer_addr().unwrap(), local.local_addr().unwrap());
        let counters = lab.kernel.counters().unwrap();
        assert_eq!((counters.refused_policy, counters.passed), (3, 1));
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
    });
}

#[test]
fn a_virtual_address_has_no_other_ports() {
    in_lab("tcp::a_virtual_address_has_no_other_ports", || {
        let lab = Lab::new();
        let other = Ipv4Addr::new(240, 240, 0, 10);
        lab.register(&[
            (exact(HOST, 80), value(7, VERDICT_PROXY)),
            (exact(other, 80), value(8, VERDICT_PROXY)),
            (
                exact(other, egress_common::ANY_PORT),
                value(9, VERDICT_PROXY),
            ),
        ]);
        refused(TcpStream::connect((HOST, 8080)));
        refused(TcpStream::connect((HOST6, 8080)));
        let _client = TcpStream::connect((other, 8080)).unwrap();
        let (_server, _, captured) = lab.accept(&lab.tcp4);
        let captured = captured.unwrap();
        assert_eq!(captured.service, ServiceId(9));
        assert_eq!(captured.original, SocketAddr::from((other, 8080)));
    });
}

#[test]
fn unregistered_connections_are_untouched() {
    in_lab("tcp::unregistered_connections_are_untouched", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(7, VERDICT_PROXY))]);
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        assert_eq!(client.peer_addr().unwrap(), server.local_addr().unwrap());
        // A namespace without routes: the kernel's own answer comes through.
        let error = TcpStream::connect("192.0.2.1:80").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
        // A socket that was captured before and is connected anew is no longer.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        refused(socket.connect(&SocketAddr::from((HOST, 81)).into()));
        socket
            .connect(&server.local_addr().unwrap().into())
            .unwrap();
        assert_eq!(
            socket.peer_addr().unwrap().as_socket(),
            Some(server.local_addr().unwrap())
        );
    });
}

#[test]
fn registry_only_refuses_what_is_not_registered() {
    in_lab("tcp::registry_only_refuses_what_is_not_registered", || {
        let lab = Lab::with(KernelSettings {
            registry_only: true,
            dns: false,
            ..SETTINGS
        });
        lab.register(&[(exact(HOST, 80), value(7, VERDICT_PROXY))]);
        refused(TcpStream::connect("192.0.2.1:80"));
        refused(TcpStream::connect("[2001:db8::1]:80"));
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let server = TcpListener::bind("[::1]:0").unwrap();
        TcpStream::connect(server.local_addr().unwrap()).unwrap();
        // DNS that does not go through the agent is a destination like others.
        refused(TcpStream::connect("192.0.2.1:53"));
        assert_eq!(lab.kernel.counters().unwrap().refused_unregistered, 3);
        let _client = TcpStream::connect((HOST, 80)).unwrap();
        assert!(lab.accept(&lab.tcp4).2.is_some());
    });
}

#[test]
fn without_the_agent_the_entry_decides() {
    in_lab("tcp::without_the_agent_the_entry_decides", || {
        let lab = Lab::new();
        let open = |service| ServiceValue {
            on_failure: FAILURE_OPEN,
            ..value(service, VERDICT_PROXY)
        };
        let real = TcpListener::bind("127.0.0.78:0").unwrap();
        let port = real.local_addr().unwrap().port();
        let here = Ipv4Addr::new(127, 0, 0, 78);
        lab.register(&[
            (exact(HOST, 80), value(1, VERDICT_PROXY)),
            (exact(HOST, 81), open(2)),
            (exact(here, port), open(3)),
        ]);
        let check = || {
            refused(TcpStream::connect((HOST, 80)));
            // A virtual address leads nowhere, whatever the entry says.
            refused(TcpStream::connect((HOST, 81)));
            let client = TcpStream::connect((here, port)).unwrap();
            assert_eq!(client.peer_addr().unwrap(), real.local_addr().unwrap());
        };
        lab.kernel.stop_heartbeat().unwrap();
        check();
        lab.kernel.heartbeat().unwrap();
        let _client = TcpStream::connect((HOST, 80)).unwrap();
        assert!(lab.accept(&lab.tcp4).2.is_some());
        // A namespace in which the agent has no listeners.
        assert!(lab.kernel.remove_listeners(lab.netns).unwrap());
        check();
        let counters = lab.kernel.counters().unwrap();
        assert_eq!(counters.refused_agent_down, 4);
        assert_eq!(counters.opened_agent_down, 2);
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
    });
}

#[test]
fn a_stale_heartbeat_means_that_the_agent_is_down() {
    in_lab(
        "tcp::a_stale_heartbeat_means_that_the_agent_is_down",
        || {
            let lab = Lab::with(KernelSettings {
                heartbeat_limit: Duration::ZERO,
                ..SETTINGS
            });
            lab.register(&[(exact(HOST, 80), value(1, VERDICT_PROXY))]);
            refused(TcpStream::connect((HOST, 80)));
            assert_eq!(lab.kernel.counters().unwrap().refused_agent_down, 1);
        },
    );
}

/// The agent's listener is gone: the connection fails at once, and its record
/// is taken back.
#[test]
fn a_refused_redirect_leaves_no_record() {
    in_lab("tcp::a_refused_redirect_leaves_no_record", || {
        let lab = Lab::new();
        lab.register(&[
            (exact(HOST, 80), value(1, VERDICT_PROXY)),
            (exact(HOST6, 80), value(1, VERDICT_PROXY)),
        ]);
        let mut listeners = lab.listeners();
        for gone in [&mut listeners.tcp4, &mut listeners.tcp6] {
            *gone = 1;
        }
        lab.kernel.set_listeners(lab.netns, &listeners).unwrap();
        refused(TcpStream::connect((HOST, 80)));
        refused(TcpStream::connect((HOST6, 80)));
        refused(TcpStream::connect((HOST.to_ipv6_mapped(), 80)));
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
    });
}

#[test]
fn two_thousand_connections_leave_no_record() {
    in_lab("tcp::two_thousand_connections_leave_no_record", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(1, VERDICT_PROXY))]);
        for index in 0..2000 {
            let client = TcpStream::connect((HOST, 80)).unwrap();
            // Some clients are gone before the agent gets to them.
            let kept = (index % 3 != 0).then_some(client);
            let (_server, _, captured) = lab.accept(&lab.tcp4);
            assert!(captured.is_some(), "connection {index}");
            drop(kept);
        }
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
        assert_eq!(lab.kernel.counters().unwrap().lost, 0);
    });
}

/// Records of connections that no agent accepts are swept.
#[test]
fn records_of_a_dead_agent_are_swept() {
    in_lab("tcp::records_of_a_dead_agent_are_swept", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(1, VERDICT_PROXY))]);
        for _ in 0..3 {
            TcpStream::connect((HOST, 80)).unwrap();
        }
        assert_eq!(lab.kernel.usage().unwrap().origins, 3);
        let hour = Duration::from_hours(1);
        assert_eq!(lab.kernel.sweep_origins(hour).unwrap(), 0);
        assert_eq!(lab.kernel.sweep_origins(Duration::ZERO).unwrap(), 3);
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
        let (_server, _, captured) = lab.accept(&lab.tcp4);
        assert!(captured.is_none());
    });
}

/// An agent that was killed has left a heartbeat that is not stale yet: the
/// programs see that nobody listens any more.
#[test]
fn a_dead_listener_is_seen_before_the_heartbeat_is_stale() {
    in_lab(
        "tcp::a_dead_listener_is_seen_before_the_heartbeat_is_stale",
        || {
            let lab = Lab::new();
            let server = TcpListener::bind("127.0.0.78:0").unwrap();
            let address = server.local_addr().unwrap();
            let open = ServiceValue {
                on_failure: FAILURE_OPEN,
                ..value(2, VERDICT_PROXY)
            };
            lab.register(&[
                (exact(HOST, 80), value(1, VERDICT_PROXY)),
                (exact(address.ip(), address.port()), open),
            ]);
            let gone = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut listeners = lab.listeners();
            listeners.tcp4 = gone.local_addr().unwrap().port();
            lab.kernel.set_listeners(lab.netns, &listeners).unwrap();
            drop(TcpStream::connect((HOST, 80)).unwrap());
            drop(gone);
            refused(TcpStream::connect((HOST, 80)));
            let client = TcpStream::connect(address).unwrap();
            assert_eq!(client.peer_addr().unwrap(), address);
            let counters = lab.kernel.counters().unwrap();
            assert_eq!(
                (counters.refused_agent_down, counters.opened_agent_down),
                (1, 1)
            );
        },
    );
}

/// What an accept queue had no room for is never accepted: its record goes soon
/// after its client, while that of a client that waits stays.
#[test]
fn records_of_an_overflowed_accept_queue_go_soon_after_their_clients() {
    in_lab(
        "tcp::records_of_an_overflowed_accept_queue_go_soon_after_their_clients",
        || {
            let lab = Lab::new();
            lab.register(&[(exact(HOST, 80), value(1, VERDICT_PROXY))]);
            let kept = TcpStream::connect((HOST, 80)).unwrap();
            drop(TcpStream::connect((HOST, 80)).unwrap());
            let reset = TcpStream::connect((HOST, 80)).unwrap();
            SockRef::from(&reset)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(reset);
            let hour = Duration::from_hours(1);
            assert_eq!(lab.kernel.sweep_origins(hour).unwrap(), 0);
            assert_eq!(lab.kernel.usage().unwrap().origins, 3);
            // They are seen to have gone for the second time.
            assert_eq!(lab.kernel.sweep_origins(hour).unwrap(), 2);
            assert_eq!(lab.kernel.usage().unwrap().origins, 1);
            let (_server, _, captured) = lab.accept(&lab.tcp4);
            assert!(captured.is_some());
            drop(kept);
        },
    );
}

#[test]
fn a_direct_dial_of_the_listener_has_no_record() {
    in_lab("tcp::a_direct_dial_of_the_listener_has_no_record", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(1, VERDICT_PROXY))]);
        let _client = TcpStream::connect(lab.tcp4.local_addr().unwrap()).unwrap();
        assert!(lab.accept(&lab.tcp4).2.is_none());
    });
}

#[test]
fn the_agents_own_sockets_pass() {
    in_lab("tcp::the_agents_own_sockets_pass", || {
        let lab = Lab::new();
        let server = TcpListener::bind("127.0.0.79:0").unwrap();
        let address = server.local_addr().unwrap();
        lab.register(&[(
            exact(address.ip(), address.port()),
            value(1, VERDICT_REFUSE),
        )]);
        refused(TcpStream::connect(address));
        let sockets = Sockets::marked(lab.kernel.bypass());
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        sockets.mark(&socket.as_fd()).unwrap();
        socket.connect(&address.into()).unwrap();
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(address));
        assert_eq!(lab.kernel.counters().unwrap().bypassed, 1);
        // The mark stays through a second connect.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        sockets.mark(&socket.as_fd()).unwrap();
        refused(socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, 1)).into()));
        socket.connect(&address.into()).unwrap();
    });
}

#[test]
fn programs_outside_of_the_cgroup_are_untouched() {
    in_lab("tcp::programs_outside_of_the_cgroup_are_untouched", || {
        let lab = Lab::new();
        let server = TcpListener::bind("127.0.0.80:0").unwrap();
        let address = server.local_addr().unwrap();
        lab.register(&[(
            exact(address.ip(), address.port()),
            value(1, VERDICT_REFUSE),
        )]);
        lab.leave();
        TcpStream::connect(address).unwrap();
        lab.enter();
        refused(TcpStream::connect(address));
    });
}

/// Two listeners, one source address and port: each record is its own.
#[test]
fn one_source_port_may_serve_two_listeners() {
    in_lab("tcp::one_source_port_may_serve_two_listeners", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(1, VERDICT_PROXY))]);
        let bound = |port| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket
                .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())
                .unwrap();
            socket
        };
        let first = bound(0);
        let port = first.local_addr().unwrap().as_socket().unwrap().port();
        let second = bound(port);
        first.connect(&SocketAddr::from((HOST, 80)).into()).unwrap();
        second
            .connect(&SocketAddr::from(([192, 0, 2, 53], 53)).into())
            .unwrap();
        let one = lab.accept(&lab.tcp4).2.unwrap();
        let two = lab.accept(&lab.dns_tcp4).2.unwrap();
        assert_eq!(one.original, SocketAddr::from((HOST, 80)));
        assert_eq!(two.original, SocketAddr::from(([192, 0, 2, 53], 53)));
        assert_eq!(one.peer, two.peer);
    });
}

/// As on a machine that has just booted: its age is below the limit.
#[test]
fn a_stopped_heartbeat_does_not_wait_for_the_limit() {
    in_lab(
        "tcp::a_stopped_heartbeat_does_not_wait_for_the_limit",
        || {
            let lab = Lab::with(KernelSettings {
                heartbeat_limit: Duration::from_hours(24 * 365 * 100),
                ..SETTINGS
            });
            lab.register(&[(exact(HOST, 80), value(1, VERDICT_PROXY))]);
            lab.kernel.stop_heartbeat().unwrap();
            refused(TcpStream::connect((HOST, 80)));
            assert_eq!(lab.kernel.counters().unwrap().refused_agent_down, 1);
        },
    );
}
