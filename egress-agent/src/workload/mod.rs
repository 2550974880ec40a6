//! From a cgroup to the workload that it belongs to: namespace, labels, name.

pub mod rules;
