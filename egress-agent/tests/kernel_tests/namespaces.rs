//! Sockets in network namespaces without listeners are reported, and
//! unregistered destinations are remembered.

use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use egress_agent::capture::namespaces;
use egress_agent::capture::sockets::NetNs;
use egress_agent::capture::{AllowedNetwork, KernelSettings, OutboundControl, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::kernel_lab::{Lab, SETTINGS, in_lab};

/// Runs on a thread in a network namespace of its own.
#[allow(unsafe_code, reason = "unshare(2) of one thread's network namespace")]
fn elsewhere<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: a network namespace holds nothing that memory safety
                // depends on, and the thread ends here.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
                action()
            })
            .join()
            .unwrap()
    })
}

#[test]
fn the_first_socket_of_an_unknown_namespace_is_reported() {
    in_lab(
        "namespaces::the_first_socket_of_an_unknown_namespace_is_reported",
        || {
            let lab = Lab::new();
            let mut reports = lab.kernel.take_namespace_reports().unwrap();
            assert!(lab.kernel.take_namespace_reports().is_none());
            // Ours has listeners.
            let _known = UdpSocket::bind("127.0.0.1:0").unwrap();
            assert_eq!(reports.next(), None);
            let cookie = elsewhere(|| {
                let cookie = NetNs::current().unwrap().cookie;
                let _socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let _again = UdpSocket::bind("0.0.0.0:0").unwrap();
                let mut wait = [PollFd::from_borrowed_fd(reports.as_fd(), PollFlags::IN)];
                let second = Timespec {
                    tv_sec: 5,
                    tv_nsec: 0,
                };
                assert_eq!(poll(&mut wait, Some(&second)).unwrap(), 1);
                let event = reports.next().unwrap();
                assert_eq!(event.netns, cookie);
                assert_eq!(event.pid, std::process::id());
                // The thread is elsewhere than its process.
                assert_ne!(event.pid, event.tid);
                let found = namespaces::find(cookie, event.pid, event.tid).unwrap();
                assert_eq!(found.cookie, cookie);
                // One report for both sockets.
                assert_eq!(reports.next(), None);
                cookie
            });
            // It is gone with its only thread.
            assert!(namespaces::find(cookie, std::process::id(), 1).is_none());
        },
    );
}

#[test]
fn unregistered_destinations_are_remembered_by_caller() {
    in_lab(
        "namespaces::unregistered_destinations_are_remembered_by_caller",
        || {
            let lab = Lab::with(KernelSettings {
                observe: true,
                ..SETTINGS
            });
            let there = (Ipv4Addr::new(192, 0, 2, 1), 443);
            for _ in 0..3 {
                // No route: the hook comes before.
                TcpStream::connect(there).unwrap_err();
            }
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"x", there).unwrap_err();
            let mut found = lab.kernel.unregistered().unwrap();
            found.sort_by_key(|one| one.transport);
            let [tcp, udp] = &found[..] else {
                panic!("{found:?}");
            };
            assert_eq!((tcp.count, udp.count), (3, 1));
            assert_eq!(
                (tcp.transport, udp.transport),
                (Transport::Tcp, Transport::Udp)
            );
            assert_eq!(tcp.destination, there.into());
            assert_eq!(tcp.caller.cgroup, lab.cgroup_id());
            assert_eq!(tcp.caller.pid, std::process::id());
            assert!(!tcp.refused && tcp.first >= tcp.last);
            lab.kernel.forget_unregistered().unwrap();
            assert!(lab.kernel.unregistered().unwrap().is_empty());
        },
    );
}

#[test]
fn scopes_and_allowed_networks_go_before_the_mode() {
    in_lab(
        "namespaces::scopes_and_allowed_networks_go_before_the_mode",
        || {
            let lab = Lab::with(KernelSettings {
                registry_only: true,
                errno: 113,
                ..SETTINGS
            });
            let errno = |address: &str| {
                TcpStream::connect(address)
                    .unwrap_err()
                    .raw_os_error()
                    .unwrap()
            };
            assert_eq!(errno("192.0.2.1:80"), libc::EHOSTUNREACH);
            let allowed = |network: &str, port| AllowedNetwork {
                network: network.parse().unwrap(),
                port,
            };
            let mut control = OutboundControl {
                allowed: [
                    allowed("192.0.2.0/24", Some(80)),
                    allowed("2001:db8::/32", None),
                ]
                .into(),
                ..OutboundControl::default()
            };
            lab.kernel.sync_outbound(&control).unwrap();
            // Past the hook there is no route.
            assert_eq!(errno("192.0.2.1:80"), libc::ENETUNREACH);
            assert_eq!(errno("[::ffff:192.0.2.1]:80"), libc::ENETUNREACH);
            assert_eq!(errno("[2001:db8::1]:9"), libc::ENETUNREACH);
            assert_eq!(errno("192.0.2.1:81"), libc::EHOSTUNREACH);
            control.registry_only = [(SETTINGS.default_scope, false)].into();
            lab.kernel.sync_outbound(&control).unwrap();
            assert_eq!(errno("192.0.2.1:81"), libc::ENETUNREACH);
            lab.kernel
                .sync_outbound(&OutboundControl::default())
                .unwrap();
            assert_eq!(errno("192.0.2.1:80"), libc::EHOSTUNREACH);
            let refused: u64 = lab.kernel.counters().unwrap().refused_unregistered;
            assert_eq!(refused, 3);
        },
    );
}
