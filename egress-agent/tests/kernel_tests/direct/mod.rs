//! The direct path: endpoints picked by the kernel, places that cannot leak.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use egress_agent::capture::{
    DirectBalance, DirectKeepalive, DirectOutcome, DirectPlan, DirectReport, DirectReports,
    DirectSlot, ResetBy,
};
use egress_agent::policy::snapshot::ServiceId;
use egress_common::{FAILURE_OPEN, ServiceValue, VERDICT_DIRECT, VERDICT_PROXY};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use socket2::{Domain, SockRef, Socket, Type};

use crate::kernel_lab::{Lab, exact, in_lab, value};

mod places;
mod plans;
mod reports;

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
