//! Pins: maps and links that outlive the agent, and the next one that goes on
//! with them.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use egress_agent::capture::{
    CaptureError, Changes, DirectPlan, DirectSlot, Kernel, Numbered, Options, clean_up,
};
use egress_agent::numbers::fingerprint;
use egress_agent::policy::snapshot::ServiceId;
use egress_common::{
    ENTRY_REAL_ADDRESS, LAYOUT_VERSION, VERDICT_DIRECT, VERDICT_PROXY, VERDICT_REFUSE,
};

use crate::kernel_lab::{
    Lab, SETTINGS, Unattached, enter_cgroup, eventually, exact, in_lab, value,
};

const HOST: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 9);

/// A bpf file system of the test's own, gone with the namespace of mounts that
/// it is in, or with this guard.
struct Bpffs(PathBuf);

impl Bpffs {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("egress-pins-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

fn options(lab: &Unattached, root: &Path) -> Options {
    Options {
        cgroup: Some(lab.cgroup.clone()),
        bpffs: Some(root.into()),
        ..Options::default()
    }
}

/// Plain connections to a virtual address, which only our programs make work.
fn connects() -> Result<(), ErrorKind> {
    TcpStream::connect_timeout(&SocketAddr::from((HOST, 80)), Duration::from_secs(1))
        .map(drop)
        .map_err(|error| error.kind())
}

fn direct_to(server: &TcpListener) -> DirectPlan {
    DirectPlan {
        slots: vec![DirectSlot {
            endpoint: 7,
            address: server.local_addr().unwrap(),
        }],
        max_connections: Some(2),
        ..DirectPlan::default()
    }
}

#[test]
fn direct_services_go_on_without_an_agent_and_the_next_one_knows_all() {
    in_lab(
        "pins::direct_services_go_on_without_an_agent_and_the_next_one_knows_all",
        || {
            let lab = Lab::unattached();
            let bpffs = Bpffs::new();
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            let name = fingerprint(&[b"service"]);
            let entries: HashMap<_, _> = [
                (exact(HOST, 80), value(5, VERDICT_DIRECT)),
                (exact(HOST, 81), value(6, VERDICT_PROXY)),
            ]
            .into();

            let first = Kernel::attach(&options(&lab, &bpffs.0)).unwrap();
            assert!(!first.is_adopted());
            first.configure(&SETTINGS).unwrap();
            first.heartbeat().unwrap();
            first.keep_numbers(Numbered::Service, &[(name, 5)]).unwrap();
            first.sync_services(&entries).unwrap();
            first.set_direct(ServiceId(5), &direct_to(&server)).unwrap();
            enter_cgroup(&lab.cgroup);
            let open = TcpStream::connect((HOST, 80)).unwrap();
            // Another agent may not use the same pins meanwhile.
            assert!(matches!(
                Kernel::attach(&options(&lab, &bpffs.0)),
                Err(CaptureError::PinsInUse { .. })
            ));
            assert!(matches!(
                clean_up(&bpffs.0),
                Err(CaptureError::PinsInUse { .. })
            ));
            first.stop_heartbeat().unwrap();
            drop(first);

            // Nobody is there: direct works, and its limit holds.
            let second_open = TcpStream::connect((HOST, 80)).unwrap();
            assert_eq!(connects(), Err(ErrorKind::ConnectionRefused));
            assert_eq!(open.peer_addr().unwrap(), (HOST, 80).into());
            let error = TcpStream::connect((HOST, 81)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

            let next = Kernel::attach(&options(&lab, &bpffs.0)).unwrap();
            assert!(next.is_adopted());
            let programs = next.programs().unwrap();
            assert_eq!(programs.len(), 11, "replaced, not added: {programs:?}");
            assert!(programs.iter().all(|program| program.ours));
            let known = next.known(Numbered::Service).unwrap();
            assert_eq!((known.get(&name), known.last()), (Some(5), 5));
            assert_eq!(next.known(Numbered::Scope).unwrap().last(), 0);
            assert_eq!(next.adopted_plans(), [(ServiceId(5), direct_to(&server))]);
            let changes = next.sync_services(&entries).unwrap();
            assert_eq!(changes, Changes::default(), "all is there already");
            assert_eq!(next.direct_connections(ServiceId(5)).unwrap(), 2);
            next.configure(&SETTINGS).unwrap();
            next.prove().unwrap();
            drop((open, second_open));
            drop((server.accept().unwrap(), server.accept().unwrap()));
            eventually(|| next.direct_connections(ServiceId(5)).unwrap() == 0);
            connects().unwrap();
            // Reports of connections that ended meanwhile are not lost.
            let mut reports = next.take_direct_reports().unwrap();
            let count = std::iter::from_fn(|| reports.next()).count();
            assert!(count >= 6, "{count}");

            drop(next);
            assert!(clean_up(&bpffs.0).unwrap() > 20);
            eventually(|| connects() == Err(ErrorKind::NetworkUnreachable));
            assert_eq!(clean_up(&bpffs.0).unwrap(), 0);
            lab.leave();
        },
    );
}

#[test]
fn stale_entries_go_but_real_addresses_wait_for_their_names() {
    in_lab(
        "pins::stale_entries_go_but_real_addresses_wait_for_their_names",
        || {
            let lab = Lab::unattached();
            let bpffs = Bpffs::new();
            let mut real = value(5, VERDICT_REFUSE);
            real.flags = ENTRY_REAL_ADDRESS;
            let mut orphan = real;
            orphan.service = 9;
            let first = Kernel::attach(&options(&lab, &bpffs.0)).unwrap();
            let kept = (exact(HOST, 80), value(5, VERDICT_REFUSE));
            first
                .sync_services(
                    &[
                        kept,
                        (exact(HOST, 81), value(6, VERDICT_REFUSE)),
                        (exact([203, 0, 113, 5], 80), real),
                        (exact([203, 0, 113, 9], 80), orphan),
                    ]
                    .into(),
                )
                .unwrap();
            drop(first);
            let next = Kernel::attach(&options(&lab, &bpffs.0)).unwrap();
            let changes = next.sync_services(&[kept].into()).unwrap();
            assert_eq!((changes.added, changes.changed, changes.removed), (0, 0, 2));
            assert_eq!(next.usage().unwrap().services, 2);
            assert_eq!(next.forget_adopted().unwrap(), 1);
            assert_eq!(next.usage().unwrap().services, 1);
        },
    );
}

#[test]
fn another_layout_is_replaced_without_a_gap() {
    in_lab("pins::another_layout_is_replaced_without_a_gap", || {
        let lab = Lab::unattached();
        let bpffs = Bpffs::new();
        let old = Kernel::attach(&options(&lab, &bpffs.0)).unwrap();
        old.configure(&SETTINGS).unwrap();
        old.sync_services(&[(exact(HOST, 80), value(1, VERDICT_REFUSE))].into())
            .unwrap();
        let ours = bpffs.0.join(format!("layout-{LAYOUT_VERSION}"));
        fs::rename(&ours, bpffs.0.join("layout-0")).unwrap();
        enter_cgroup(&lab.cgroup);
        // As one that hands over, the agent before goes on for a while.
        let new = Kernel::attach(&Options {
            pins_lock: old.pins_lock().unwrap().map(Arc::new),
            ..options(&lab, &bpffs.0)
        })
        .unwrap();
        assert!(!new.is_adopted());
        // Until the new programs are in force the old ones are.
        assert_eq!(connects(), Err(ErrorKind::ConnectionRefused));
        assert_eq!(new.programs().unwrap().len(), 22);
        new.configure(&SETTINGS).unwrap();
        // Behind programs that know nothing of the self-test.
        new.prove().unwrap();
        assert_eq!(new.remove_obsolete().unwrap(), 1);
        // The kernel detaches a little after the last pin is gone.
        eventually(|| new.programs().unwrap().len() == 11);
        assert!(!bpffs.0.join("layout-0").exists());
        // What the old ones knew is gone: nobody registered this one's.
        assert_eq!(connects(), Err(ErrorKind::ConnectionRefused));
        drop((old, new));

        // Pins of another cgroup are replaced too.
        let other = lab.cgroup.join("other");
        fs::create_dir(&other).unwrap();
        let moved = Kernel::attach(&Options {
            cgroup: Some(other.clone()),
            ..options(&lab, &bpffs.0)
        })
        .unwrap();
        assert!(!moved.is_adopted());
        assert_eq!(moved.remove_obsolete().unwrap(), 1);
        drop(moved);
        assert!(clean_up(&bpffs.0).unwrap() > 20);
        lab.leave();
        fs::remove_dir(other).unwrap();
    });
}
