//! UDP to registered addresses is refused; other UDP passes.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use egress_agent::capture::KernelSettings;
use egress_common::VERDICT_PROXY;

use crate::kernel_lab::{Lab, SETTINGS, exact, in_lab, value};

const HOST: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 9);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 9);

fn refused<T: std::fmt::Debug>(result: std::io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn udp_to_a_registered_address_is_refused() {
    in_lab("udp::udp_to_a_registered_address_is_refused", || {
        let lab = Lab::new();
        lab.register(&[
            (exact(HOST, 443), value(1, VERDICT_PROXY)),
            (exact(HOST6, 443), value(1, VERDICT_PROXY)),
        ]);
        let four = UdpSocket::bind("0.0.0.0:0").unwrap();
        let six = UdpSocket::bind("[::]:0").unwrap();
        refused(four.connect((HOST, 443)));
        refused(six.connect((HOST6, 443)));
        refused(six.connect((HOST.to_ipv6_mapped(), 443)));
        refused(four.send_to(b"x", (HOST, 443)));
        refused(six.send_to(b"x", (HOST6, 443)));
        refused(six.send_to(b"x", (HOST.to_ipv6_mapped(), 443)));
        // A port that is not registered: a virtual address leads nowhere.
        refused(four.send_to(b"x", (HOST, 444)));
        assert_eq!(lab.kernel.counters().unwrap().refused_udp, 7);
    });
}

#[test]
fn other_udp_passes() {
    in_lab("udp::other_udp_passes", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 443), value(1, VERDICT_PROXY))]);
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 8];
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        client.connect(server.local_addr().unwrap()).unwrap();
        assert_eq!(client.peer_addr().unwrap(), server.local_addr().unwrap());
        let error = client.send_to(b"x", "192.0.2.1:9").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
    });
}

#[test]
fn registry_only_refuses_udp_that_is_not_registered() {
    in_lab(
        "udp::registry_only_refuses_udp_that_is_not_registered",
        || {
            let _lab = Lab::with(KernelSettings {
                registry_only: true,
                ..SETTINGS
            });
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            refused(client.send_to(b"x", "192.0.2.1:9"));
            refused(client.connect("192.0.2.1:9"));
            let server = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        },
    );
}
