//! Attaching, the self-test, and leaving nothing behind.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;

use egress_agent::capture::{CaptureError, Kernel, Options};
use egress_common::{VERDICT_PROXY, VERDICT_REFUSE};

use crate::kernel_lab::{Lab, SETTINGS, exact, in_lab, value};

const HOST: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 9);

#[test]
fn the_self_test_proves_capture_and_leaves_nothing() {
    in_lab(
        "lifecycle::the_self_test_proves_capture_and_leaves_nothing",
        || {
            let lab = Lab::new();
            let before = (lab.kernel.usage().unwrap(), lab.entries());
            let stale = lab.cgroup.join("egress-probe-1-0");
            fs::create_dir(&stale).unwrap();
            for _ in 0..3 {
                lab.kernel.prove().unwrap();
            }
            assert_eq!((lab.kernel.usage().unwrap(), lab.entries()), before);
            assert_eq!(lab.kernel.counters().unwrap().proxied, 3);
            assert_eq!(Lab::children(), 0, "no child process is left");
        },
    );
}

#[test]
fn the_self_test_fails_when_another_program_refuses() {
    in_lab(
        "lifecycle::the_self_test_fails_when_another_program_refuses",
        || {
            let lab = Lab::new();
            // A second agent on the same cgroup, in front of which ours is one
            // of several; its entry refuses the reserved address.
            let other = Kernel::attach(&Options {
                cgroup: Some(lab.cgroup.clone()),
                ..Options::default()
            })
            .unwrap();
            other.configure(&SETTINGS).unwrap();
            other
                .sync_services(
                    &[(
                        exact(Ipv4Addr::new(240, 240, 255, 1), 1),
                        value(1, VERDICT_REFUSE),
                    )]
                    .into(),
                )
                .unwrap();
            // Ours rewrites the address before the other sees it, so what it
            // refuses is only met by the one attached before.
            lab.kernel.prove().unwrap();
            assert!(matches!(
                other.prove(),
                Err(CaptureError::NotCaptured { .. })
            ));
            let programs = lab.kernel.programs().unwrap();
            assert_eq!(programs.len(), 22);
            assert_eq!(programs.iter().filter(|program| program.ours).count(), 11);
            let foreign = programs
                .iter()
                .find(|program| !program.ours && program.hook == "connect4")
                .unwrap();
            assert_eq!(foreign.name, "egress_connect4");
            assert_eq!(foreign.position, 1);
            drop(other);
            assert_eq!(lab.kernel.programs().unwrap().len(), 11);
        },
    );
}

#[test]
fn after_the_agent_nothing_is_attached() {
    in_lab("lifecycle::after_the_agent_nothing_is_attached", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(1, VERDICT_PROXY))]);
        let client = TcpStream::connect((HOST, 80)).unwrap();
        let (_server, peer, _) = lab.accept(&lab.tcp4);
        assert_eq!(client.local_addr().unwrap(), peer);
        let cgroup = lab.cgroup.clone();
        drop(lab);
        // Ask through a fresh set, of which only its own may show.
        let fresh = Kernel::attach(&Options {
            cgroup: Some(cgroup),
            ..Options::default()
        })
        .unwrap();
        let programs = fresh.programs().unwrap();
        assert_eq!(programs.len(), 11, "{programs:?}");
        assert!(programs.iter().all(|program| program.ours));
        // A fresh set lets everything pass until it is configured.
        let error = TcpStream::connect((HOST, 80)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable);
    });
}

#[test]
fn what_is_missing_is_said() {
    in_lab("lifecycle::what_is_missing_is_said", || {
        let attach = |cgroup: &str, bpffs: Option<&str>| {
            Kernel::attach(&Options {
                cgroup: Some(cgroup.into()),
                bpffs: bpffs.map(PathBuf::from),
                ..Options::default()
            })
            .unwrap_err()
            .to_string()
        };
        assert!(attach("/tmp", None).contains("/tmp is not a directory of a cgroup v2"));
        assert!(attach("/nonexistent", None).contains("cannot open the cgroup /nonexistent"));
        let cgroup = Lab::unattached().cgroup;
        // A folder with something in it: on an empty one a file system is mounted.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let said = attach(cgroup.to_str().unwrap(), folder.path().to_str());
        assert!(said.contains("is not on a bpf file system"), "{said}");
    });
}

#[test]
fn the_verifier_is_far_from_its_limit() {
    in_lab("lifecycle::the_verifier_is_far_from_its_limit", || {
        let lab = Lab::new();
        let counts = lab.kernel.verified_instructions();
        assert_eq!(counts.len(), 11);
        // Not behind what the harness prints.
        println!();
        for (name, count) in counts {
            println!("{name}: {count:?} instructions verified");
            assert!(count.is_none_or(|count| count < 100_000), "{name}");
        }
    });
}

#[test]
fn log_lines_come_out_when_asked_for() {
    in_lab("lifecycle::log_lines_come_out_when_asked_for", || {
        let lab = Lab::new();
        lab.register(&[(exact(HOST, 80), value(1, VERDICT_REFUSE))]);
        let lines = crate::kernel_lab::capture_log();
        let mut logger = lab.kernel.take_logger().unwrap();
        assert!(lab.kernel.take_logger().is_none());
        let _ = TcpStream::connect((HOST, 80));
        logger.flush();
        assert!(lines.lock().unwrap().is_empty());
        lab.kernel
            .configure(&egress_agent::capture::KernelSettings {
                log: true,
                ..SETTINGS
            })
            .unwrap();
        let _ = TcpStream::connect((HOST, 80));
        logger.flush();
        let lines = lines.lock().unwrap();
        assert!(
            lines.iter().any(|line| line.contains("refused by policy")),
            "{lines:?}"
        );
    });
}
