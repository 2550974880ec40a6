//! Which CPUs do what. As on a node, all share all of them; or, for figures that
//! are steady enough to compare builds, proxies and the readers of their logs have
//! some to themselves, and the generator and the services the others.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::process::Spawn;
use lab::{Group, Lab};
use rustix::thread::{CpuSet, sched_getaffinity};

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cpus {
    proxies: Vec<usize>,
    others: Vec<usize>,
}

impl Cpus {
    /// Those that this process may use; `apart`, the first half of them is for
    /// proxies.
    ///
    /// # Errors
    /// When the kernel does not tell, or there are not two to have `apart`.
    pub(crate) fn new(apart: bool) -> Result<Self> {
        let allowed = sched_getaffinity(None).context("the CPUs that may be used")?;
        let all: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|cpu| allowed.is_set(*cpu))
            .collect();
        if apart {
            Self::apart(&all)
        } else {
            Ok(Self {
                proxies: all.clone(),
                others: all,
            })
        }
    }

    fn apart(all: &[usize]) -> Result<Self> {
        ensure!(all.len() > 1, "--apart needs two CPUs");
        let (proxies, others) = all.split_at(all.len() / 2);
        Ok(Self {
            proxies: proxies.to_vec(),
            others: others.to_vec(),
        })
    }

    /// Threads of every proxy.
    pub(crate) fn threads(&self) -> usize {
        self.proxies.len()
    }

    /// Those of proxies, as taskset(1) takes them.
    pub(crate) fn proxies(&self) -> String {
        list(&self.proxies)
    }

    /// Those of all else.
    pub(crate) fn others(&self) -> String {
        list(&self.others)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<usize> {
        let mut all = self.proxies.clone();
        all.extend(self.others.iter().filter(|cpu| !self.proxies.contains(cpu)));
        all
    }

    /// For the report.
    pub(crate) fn describe(&self) -> String {
        if self.proxies == self.others {
            return "Proxies, generator and services share the CPUs.".to_owned();
        }
        format!(
            "Each proxy has {} of the CPUs to itself, with as many threads; generator and services \
             share the other {}.",
            self.proxies.len(),
            self.others.len()
        )
    }
}

fn list(cpus: &[usize]) -> String {
    let numbers: Vec<String> = cpus.iter().map(ToString::to_string).collect();
    numbers.join(",")
}

/// A program that may run on `cpus` alone.
pub(crate) fn pinned(lab: &Lab, group: Group, cpus: &str, program: &Path) -> Spawn {
    lab.spawn(group, "taskset").args(["-c", cpus]).arg(program)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn apart_each_cpu_has_one_part() {
        let apart = |all: &[usize]| {
            let cpus = Cpus::apart(all).unwrap();
            (cpus.threads(), cpus.proxies(), cpus.others())
        };
        assert_eq!(apart(&[0, 1]), (1, "0".to_owned(), "1".to_owned()));
        let odd = apart(&[0, 2, 4, 6, 7]);
        assert_eq!(odd, (2, "0,2".to_owned(), "4,6,7".to_owned()));
        assert!(Cpus::apart(&[3]).is_err());
    }

    #[test]
    fn usually_all_have_all() {
        let cpus = Cpus::new(false).unwrap();
        assert_eq!(cpus.proxies(), cpus.others());
        assert!(cpus.threads() > 0);
    }
}
