//! CPU, by the kernel's own accounts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A process and its descendants.
pub(crate) fn family(root: u32) -> Vec<u32> {
    let mut known = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|id| id.parse().ok()) {
                if known.insert(child) {
                    open.push(child);
                }
            }
        }
    }
    known.into_iter().collect()
}

/// CPU seconds that the threads of a process and its descendants ran, by the
/// scheduler's account (`/proc/PID/task/TID/schedstat`, nanoseconds). Threads
/// that have ended are missing: no peer ends threads while it works.
pub(crate) fn cpu_seconds(root: u32) -> Result<f64> {
    let mut nanoseconds = 0;
    for pid in family(root) {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else {
                continue;
            };
            let ran: u64 = text
                .split_whitespace()
                .next()
                .context("schedstat")?
                .parse()?;
            nanoseconds += ran;
        }
    }
    Ok(seconds(nanoseconds, 1e9))
}

/// CPU seconds of a cgroup and what is below it.
pub(crate) fn cgroup_seconds(cgroup: &Path) -> Result<f64> {
    let text = fs::read_to_string(cgroup.join("cpu.stat"))?;
    let usage = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))
        .context("cpu.stat has no usage_usec")?;
    Ok(seconds(usage.trim().parse()?, 1e6))
}

/// CPU seconds that this machine worked, of all its cores.
pub(crate) fn machine_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // user nice system idle iowait irq softirq steal
    let busy: u64 = fields
        .iter()
        .take(8)
        .enumerate()
        .filter(|(index, _)| !matches!(index, 3 | 4))
        .map(|(_, ticks)| ticks)
        .sum();
    Ok(seconds(busy, 100.0))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a century in nanoseconds still fits"
)]
fn seconds(count: u64, unit: f64) -> f64 {
    count as f64 / unit
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_own_process_has_run() {
        let own = std::process::id();
        assert!(family(own).contains(&own));
        assert!(cpu_seconds(own).unwrap() > 0.0);
        assert!(machine_seconds().unwrap() > 0.0);
    }
}
