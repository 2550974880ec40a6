//! Which entry a destination belongs to: scope, port, address, longest first.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use egress_agent::capture::MapKey;
use egress_common::{SCOPE_ALL, ServiceValue, VERDICT_PROXY};

use crate::kernel_lab::{
    Lab, cgroup_id, exact, in_lab, network, scoped, specificity, value, whole_port,
};

/// Dials and tells which service it belonged to.
fn service(lab: &Lab, to: impl Into<SocketAddr>) -> u32 {
    let to = to.into();
    let _client = TcpStream::connect(to).unwrap();
    let listener = if to.is_ipv4() { &lab.tcp4 } else { &lab.tcp6 };
    let captured = lab.accept(listener).2.unwrap();
    assert_eq!(captured.original, to);
    captured.service.0
}

fn entry(key: MapKey, service: u32) -> (MapKey, ServiceValue) {
    let mut value = value(service, VERDICT_PROXY);
    value.specificity = specificity(&key);
    (key, value)
}

#[test]
fn the_longest_network_wins() {
    in_lab("lookup::the_longest_network_wins", || {
        let lab = Lab::new();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        lab.register(&[
            entry(exact(ip("192.0.2.9"), 80), 1),
            entry(network(SCOPE_ALL, ip("192.0.2.8"), 29, 80), 2),
            entry(network(SCOPE_ALL, ip("192.0.2.0"), 24, 80), 3),
            entry(network(SCOPE_ALL, ip("2001:db8:1::"), 48, 80), 4),
            entry(network(SCOPE_ALL, ip("2001:db8::"), 32, 80), 5),
            entry(whole_port(SCOPE_ALL, 80), 6),
            entry(whole_port(SCOPE_ALL, 81), 7),
        ]);
        for (to, expected) in [
            ("192.0.2.9:80", 1),
            ("192.0.2.10:80", 2),
            ("192.0.2.16:80", 3),
            ("198.51.100.1:80", 6),
            ("192.0.2.9:81", 7),
            ("[2001:db8:1::7]:80", 4),
            ("[2001:db8:2::7]:80", 5),
            ("[2001:db9::7]:80", 6),
        ] {
            assert_eq!(
                service(&lab, to.parse::<SocketAddr>().unwrap()),
                expected,
                "{to}"
            );
        }
        // A whole-port entry does not speak of loopback.
        let local = TcpListener::bind("127.0.0.1:80").unwrap();
        let client = TcpStream::connect("127.0.0.1:80").unwrap();
        assert_eq!(client.peer_addr().unwrap(), local.local_addr().unwrap());
        // And not of ports without one.
        assert!(TcpStream::connect("192.0.2.9:82").is_err());
        // Without networks the programs do not look for any.
        lab.register(&[entry(exact(ip("192.0.2.9"), 80), 1)]);
        assert!(TcpStream::connect("192.0.2.10:80").is_err());
        assert_eq!(lab.kernel.usage().unwrap().networks, 0);
    });
}

#[test]
fn the_own_scope_wins_a_tie_and_the_longer_match_wins() {
    in_lab(
        "lookup::the_own_scope_wins_a_tie_and_the_longer_match_wins",
        || {
            let lab = Lab::new();
            let host = IpAddr::from([192, 0, 2, 9]);
            let wide = IpAddr::from([192, 0, 2, 0]);
            let other = IpAddr::from([198, 51, 100, 1]);
            lab.register(&[
                entry(scoped(3, host, 80), 1),
                entry(exact(host, 80), 2),
                entry(exact(host, 81), 3),
                entry(network(3, wide, 24, 80), 4),
                entry(network(SCOPE_ALL, wide, 28, 80), 5),
                entry(network(3, wide, 24, 82), 6),
                entry(network(SCOPE_ALL, wide, 24, 82), 7),
                entry(whole_port(3, 80), 8),
                entry(scoped(4, other, 80), 9),
            ]);
            let here = lab.cgroup_id();
            let check = |expected: [u32; 6]| {
                let got = [
                    service(&lab, (host, 80)),
                    service(&lab, (host, 81)),
                    service(&lab, ([192, 0, 2, 3], 80)),
                    service(&lab, ([192, 0, 2, 200], 80)),
                    service(&lab, ([192, 0, 2, 3], 82)),
                    service(&lab, (other, 80)),
                ];
                assert_eq!(got, expected);
            };
            lab.kernel.sync_scopes(&HashMap::from([(here, 3)])).unwrap();
            check([1, 3, 5, 4, 6, 8]);
            // A child of the cgroup belongs to its nearest ancestor.
            let child = lab.child_cgroup("child");
            check([1, 3, 5, 4, 6, 8]);
            let id = cgroup_id(&child);
            lab.kernel
                .sync_scopes(&HashMap::from([(here, 3), (id, 4)]))
                .unwrap();
            assert_eq!(service(&lab, (other, 80)), 9);
            assert_eq!(service(&lab, (host, 80)), 2);
            // No scope at all: only what is exported to all.
            lab.kernel.sync_scopes(&HashMap::new()).unwrap();
            assert_eq!(lab.kernel.usage().unwrap().cgroups, 0);
            assert_eq!(service(&lab, (host, 80)), 2);
            assert_eq!(service(&lab, ([192, 0, 2, 3], 82)), 7);
            assert!(TcpStream::connect((other, 80)).is_err());
            lab.enter();
        },
    );
}

#[test]
fn entries_found_at_run_time_stand_below_the_policy() {
    in_lab(
        "lookup::entries_found_at_run_time_stand_below_the_policy",
        || {
            let lab = Lab::new();
            let host = IpAddr::from([192, 0, 2, 9]);
            let (key, low) = entry(exact(host, 80), 1);
            lab.kernel.add_service_key(key, low).unwrap();
            assert_eq!(service(&lab, (host, 80)), 1);
            lab.register(&[entry(exact(host, 80), 2)]);
            assert_eq!(service(&lab, (host, 80)), 2);
            lab.register(&[]);
            assert_eq!(service(&lab, (host, 80)), 1);
            assert!(lab.kernel.remove_service_key(&key).unwrap());
            assert_eq!(lab.kernel.usage().unwrap().services, 0);
        },
    );
}
