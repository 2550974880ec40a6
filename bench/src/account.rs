//! CPU and memory, by the kernel's own accounts.

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

/// Kilobytes of memory of a process and its descendants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident; pages that descendants share count once (`Pss`).
    pub(crate) resident: u64,
    /// Of these, what belongs to no file (`Anonymous`).
    pub(crate) anonymous: u64,
    /// Locked in kernel maps that its descriptors name.
    pub(crate) maps: u64,
}

pub(crate) fn memory(root: u32) -> Result<Memory> {
    let mut memory = Memory::default();
    for pid in family(root) {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| -> u64 {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .unwrap_or(0)
        };
        memory.resident += field("Pss:");
        memory.anonymous += field("Anonymous:");
        memory.maps += map_bytes(pid) / 1024;
    }
    Ok(memory)
}

/// Bytes of the BPF maps that a process has open, each once.
fn map_bytes(pid: u32) -> u64 {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return 0;
    };
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name))?
                .trim()
                .parse()
                .ok()
        };
        if let (Some(id), Some(locked)) = (field("map_id:"), field("memlock:"))
            && seen.insert(id)
        {
            bytes += locked;
        }
    }
    bytes
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
    fn the_own_process_has_run_and_has_memory() {
        let own = std::process::id();
        assert!(family(own).contains(&own));
        assert!(cpu_seconds(own).unwrap() > 0.0);
        assert!(memory(own).unwrap().resident > 100);
        assert!(machine_seconds().unwrap() > 0.0);
    }
}
