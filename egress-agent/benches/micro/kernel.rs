//! Writing a policy's keys to the maps of loaded kernel programs. Needs root;
//! there are no instructions to count in it, since the work is the kernel's.

use std::collections::HashMap;
use std::path::PathBuf;

use divan::Bencher;
use egress_agent::capture::{Kernel, MapKey, Options, cgroup_root};
use egress_common::{ExactKey, ServiceValue, VERDICT_PROXY, mapped};

/// A cgroup of this bench's own; nothing is in it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Option<Self> {
        let name = format!("egress-bench.{}", std::process::id());
        let path = cgroup_root().ok()?.join(name);
        std::fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn plan(count: u32, service: u32) -> HashMap<MapKey, ServiceValue> {
    (0..count)
        .map(|n| {
            let key = MapKey::Exact(ExactKey {
                scope: 1,
                port: 443,
                reserved: 0,
                address: mapped((0xf0f0_0000 + n).to_be_bytes()),
            });
            let value = ServiceValue {
                service,
                verdict: VERDICT_PROXY,
                on_failure: 0,
                specificity: 128,
                flags: 0,
            };
            (key, value)
        })
        .collect()
}

/// `count` entries of ten thousand change.
#[divan::bench(args = [1, 10_000], sample_count = 20)]
fn map_update(bencher: Bencher<'_, '_>, count: u32) {
    let Some(cgroup) = Cgroup::new() else {
        println!("SKIPPED: no cgroup can be made here");
        return;
    };
    let kernel = Kernel::attach(&Options {
        cgroup: Some(cgroup.0.clone()),
        ..Options::default()
    });
    let Ok(kernel) = kernel else {
        println!("SKIPPED: the kernel programs cannot be loaded here");
        return;
    };
    let [one, other] = [1, 2].map(|service| {
        let mut all = plan(10_000, 1);
        all.extend(plan(count, service));
        all
    });
    kernel.sync_services(&one).unwrap();
    let mut turn = false;
    bencher.bench_local(|| {
        turn = !turn;
        let changes = kernel.sync_services(if turn { &other } else { &one });
        assert_eq!(changes.unwrap().changed, count as usize);
    });
    drop(kernel);
}
