//! The kernel programs on a real kernel, with real sockets. Needs root; each
//! test has a cgroup and a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod kernel_lab;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
};
use std::time::Duration;

use egress_agent::policy::snapshot::ServiceId;
use egress_common::{FAILURE_CLOSED, VERDICT_PROXY};
use kernel_lab::{Lab, exact, in_lab, value};

const HOST: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 9);

#[test]
fn a_connection_is_redirected_and_its_origin_taken() {
    in_lab("a_connection_is_redirected_and_its_origin_taken", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(7, VERDICT_PROXY))]);
        let client = TcpStream::connect((HOST, 80)).unwrap();
        assert_eq!(client.peer_addr().unwrap(), SocketAddr::from((HOST, 80)));
        let (_server, peer, captured) = lab.accept4();
        let captured = captured.expect("a record");
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(captured.peer, peer);
        assert_eq!(captured.original, SocketAddr::from((HOST, 80)));
        assert_eq!(captured.service, ServiceId(7));
        assert!(!captured.real_address);
        assert_eq!(captured.caller.pid, std::process::id());
        assert_eq!(captured.caller.netns, lab.netns);
        assert_eq!(lab.kernel.usage().unwrap().origins, 0);
        assert_eq!(lab.kernel.counters().unwrap().proxied, 1);
    });
}
