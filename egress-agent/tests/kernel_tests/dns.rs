//! DNS capture: the query reaches the agent with the resolver that was meant,
//! and the answer seems to come from it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use egress_agent::capture::KernelSettings;
use egress_agent::capture::sockets::Sockets;
use egress_common::{DNS6_PORTS, SERVICE_DNS};

use crate::kernel_lab::{Lab, SETTINGS, cgroup_id, in_lab};

const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// systemd-resolved's stub.
const STUB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
const SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const SEVEN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

fn client(bind: &str) -> UdpSocket {
    let socket = UdpSocket::bind(bind).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

fn drain(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    while socket.recv_from(&mut [0; 16]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
}

#[test]
fn a_connected_socket_talks_to_its_resolver() {
    in_lab("dns::a_connected_socket_talks_to_its_resolver", || {
        let lab = Lab::new();
        for (slot, resolver) in (0..).zip([ONE, STUB]) {
            let socket = client("0.0.0.0:0");
            let address = SocketAddr::from((resolver, 53));
            socket.connect(address).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), address);
            socket.send(b"query").unwrap();
            assert_eq!(lab.answer4(slot, b"query", b"answer"), address);
            let mut buffer = [0; 16];
            assert_eq!(socket.recv(&mut buffer).unwrap(), 6);
            socket.send(b"again").unwrap();
            assert_eq!(lab.answer4(slot, b"again", b"answer"), address);
            let (_, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, address);
            // musl and others compare the peer of each answer.
            assert_eq!(socket.peer_addr().unwrap(), address);
        }
        assert_eq!(lab.kernel.counters().unwrap().dns, 2);
    });
}

/// musl style: one socket, several servers, each answer from its own.
#[test]
fn an_unconnected_socket_asks_several_resolvers() {
    in_lab("dns::an_unconnected_socket_asks_several_resolvers", || {
        let lab = Lab::new();
        let socket = client("0.0.0.0:0");
        for resolver in [ONE, TWO, STUB] {
            socket.send_to(&resolver.octets(), (resolver, 53)).unwrap();
        }
        for (slot, resolver) in (0..).zip([ONE, TWO, STUB]) {
            assert_eq!(
                lab.answer4(slot, &resolver.octets(), &resolver.octets()),
                SocketAddr::from((resolver, 53))
            );
        }
        for resolver in [ONE, TWO, STUB] {
            let mut buffer = [0; 16];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], resolver.octets());
            assert_eq!(from, SocketAddr::from((resolver, 53)));
        }
        assert_eq!(lab.kernel.usage().unwrap().resolvers, 3);
    });
}

#[test]
fn an_ipv6_socket_may_ask_an_ipv4_resolver() {
    in_lab("dns::an_ipv6_socket_may_ask_an_ipv4_resolver", || {
        let lab = Lab::new();
        let mapped = SocketAddr::from((ONE.to_ipv6_mapped(), 53));
        let mut buffer = [0; 16];
        let socket = client("[::]:0");
        socket.send_to(b"q", mapped).unwrap();
        assert_eq!(lab.answer4(0, b"q", b"a"), SocketAddr::from((ONE, 53)));
        assert_eq!(socket.recv_from(&mut buffer).unwrap().1, mapped);
        socket.connect(mapped).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), mapped);
        socket.send(b"r").unwrap();
        assert_eq!(lab.answer4(0, b"r", b"a"), SocketAddr::from((ONE, 53)));
        assert_eq!(socket.recv_from(&mut buffer).unwrap().1, mapped);
    });
}

#[test]
fn ipv6_resolvers_are_told_apart_by_port() {
    in_lab("dns::ipv6_resolvers_are_told_apart_by_port", || {
        let lab = Lab::new();
        let mut buffer = [0; 16];
        let socket = client("[::]:0");
        for (slot, resolver) in [SIX, SEVEN, SIX].into_iter().enumerate() {
            let address = SocketAddr::from((resolver, 53));
            socket.send_to(b"q", address).unwrap();
            assert_eq!(lab.answer6(slot % 2, b"q", b"a"), address);
            assert_eq!(socket.recv_from(&mut buffer).unwrap().1, address);
        }
        let address = SocketAddr::from((SEVEN, 53));
        let socket = client("[::]:0");
        socket.connect(address).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), address);
        socket.send(b"q").unwrap();
        assert_eq!(lab.answer6(1, b"q", b"a"), address);
        assert_eq!(socket.recv_from(&mut buffer).unwrap().1, address);
        // With all slots in use by others, a further resolver is left alone.
        for last in 3..=14 + 4 {
            let resolver = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, last);
            let sent = client("[::]:0").send_to(b"q", (resolver, 53));
            assert_eq!(sent.is_ok(), usize::from(last) < DNS6_PORTS + 1, "{last}");
        }
    });
}

#[test]
fn dns_over_tcp_is_redirected() {
    in_lab("dns::dns_over_tcp_is_redirected", || {
        let lab = Lab::new();
        for (resolver, listener) in [
            (SocketAddr::from((ONE, 53)), &lab.dns_tcp4),
            (SocketAddr::from((STUB, 53)), &lab.dns_tcp4),
            (SocketAddr::from((SIX, 53)), &lab.dns_tcp6),
        ] {
            let stream = TcpStream::connect(resolver).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), resolver);
            let captured = lab.accept(listener).2.unwrap();
            assert_eq!(captured.original, resolver);
            assert_eq!(captured.service.0, SERVICE_DNS);
        }
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
    });
}

#[test]
fn more_resolvers_than_slots_take_turns() {
    in_lab("dns::more_resolvers_than_slots_take_turns", || {
        let lab = Lab::new();
        let socket = client("0.0.0.0:0");
        let first = SocketAddr::from((ONE, 53));
        let ask = |slot| {
            socket.send_to(b"q", first).unwrap();
            lab.answer4(slot, b"q", b"a")
        };
        assert_eq!(ask(0), first);
        for number in 0..egress_common::RESOLVER_SLOTS {
            let [_, high, middle, low] = number.to_be_bytes();
            let resolver = SocketAddr::from(([198, 18 + high, middle, low], 53));
            socket.send_to(b"q", resolver).unwrap();
        }
        for socket in &lab.dns4 {
            drain(socket);
        }
        assert_eq!(
            lab.kernel.usage().unwrap().resolvers,
            egress_common::RESOLVER_SLOTS as usize
        );
        // Its slot went to the last of the others; it gets the next in turn.
        assert_eq!(ask(1), first);
        assert_eq!(
            lab.kernel.usage().unwrap().resolvers,
            egress_common::RESOLVER_SLOTS as usize
        );
    });
}

/// A server of somebody else on the addresses that stand for resolvers is not
/// renamed: only answers from the agent's port are.
#[test]
fn only_answers_of_the_agent_are_renamed() {
    in_lab("dns::only_answers_of_the_agent_are_renamed", || {
        let lab = Lab::new();
        let socket = client("0.0.0.0:0");
        socket.send_to(b"q", (ONE, 53)).unwrap();
        lab.answer4(0, b"q", b"a");
        let mut buffer = [0; 16];
        socket.recv_from(&mut buffer).unwrap();
        let other = UdpSocket::bind("127.83.0.9:0").unwrap();
        other
            .send_to(b"x", ("127.0.0.1", socket.local_addr().unwrap().port()))
            .unwrap();
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, other.local_addr().unwrap());
    });
}

#[test]
fn dns_passes_when_capture_is_off_or_the_agent_is_down() {
    in_lab(
        "dns::dns_passes_when_capture_is_off_or_the_agent_is_down",
        || {
            let lab = Lab::new();
            let stub = client("127.0.0.53:53");
            let check = || {
                let socket = client("0.0.0.0:0");
                let mut buffer = [0; 16];
                socket.send_to(b"q", (STUB, 53)).unwrap();
                let (_, from) = stub.recv_from(&mut buffer).unwrap();
                stub.send_to(b"a", from).unwrap();
                let (_, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(from, SocketAddr::from((STUB, 53)));
                socket.connect((STUB, 53)).unwrap();
                socket.send(b"q").unwrap();
                stub.recv_from(&mut buffer).unwrap();
                assert!(
                    TcpStream::connect((STUB, 53)).is_err(),
                    "nobody listens there"
                );
            };
            lab.kernel.stop_heartbeat().unwrap();
            check();
            lab.kernel.heartbeat().unwrap();
            lab.kernel
                .configure(&KernelSettings {
                    dns: false,
                    ..SETTINGS
                })
                .unwrap();
            check();
            assert_eq!(lab.kernel.counters().unwrap().dns, 0);
        },
    );
}

#[test]
fn the_agents_own_queries_pass() {
    in_lab("dns::the_agents_own_queries_pass", || {
        let lab = Lab::new();
        let stub = client("127.0.0.53:53");
        let sockets = Sockets::marked(lab.kernel.bypass());
        let mut buffer = [0; 16];
        for connected in [false, true] {
            let socket = client("0.0.0.0:0");
            sockets.mark(&socket).unwrap();
            if connected {
                socket.connect((STUB, 53)).unwrap();
                socket.send(b"q").unwrap();
            } else {
                socket.send_to(b"q", (STUB, 53)).unwrap();
            }
            stub.recv_from(&mut buffer).unwrap();
        }
        assert_eq!(lab.kernel.counters().unwrap().dns, 0);
    });
}

/// Two callers in one network namespace whose policy namespaces differ ask one
/// resolver: each has a slot of its own, which tells the scope.
#[test]
fn callers_of_two_scopes_never_share_a_slot() {
    in_lab("dns::callers_of_two_scopes_never_share_a_slot", || {
        let lab = Lab::new();
        let path = lab.child_cgroup("scoped");
        let scope = 7;
        lab.kernel
            .sync_scopes(&HashMap::from([(cgroup_id(&path), scope)]))
            .unwrap();
        let ask = || {
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            client.send_to(b"query", "192.0.2.53:53").unwrap();
            client
        };
        let _first = ask();
        lab.enter();
        let _second = ask();
        let resolver: SocketAddr = "192.0.2.53:53".parse().unwrap();
        assert_eq!(lab.kernel.resolver(0).unwrap(), Some((resolver, scope)));
        assert_eq!(
            lab.kernel.resolver(1).unwrap(),
            Some((resolver, SETTINGS.default_scope))
        );
        lab.answer4(0, b"query", b"answer");
        lab.answer4(1, b"query", b"answer");
        std::fs::remove_dir(path).unwrap();
    });
}
