//! Plans that the agent writes, and what they do to connections.

use super::*;

#[test]
fn balance_follows_the_slots() {
    in_lab("direct::plans::balance_follows_the_slots", || {
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
        "direct::plans::a_new_plan_is_in_force_at_once_and_leaves_nothing",
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
        "direct::plans::address_families_are_bridged_where_that_can_be",
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
    in_lab("direct::plans::socket_options_are_set_and_put_back", || {
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
        "direct::plans::direct_services_go_on_without_the_agent_and_open_ones_too",
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
