//! From a cgroup to the workload that it belongs to: namespace, labels, name.
//!
//! [`container`] reads what a cgroup's path says by itself (pod, container,
//! unit), [`rules`] what the settings say about it, [`hierarchy`] finds the path
//! of the cgroup id that the kernel gives, and [`directory`] remembers the
//! answers.

pub mod container;
pub mod directory;
pub mod hierarchy;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod pods;
pub mod rules;

use std::sync::Arc;

use crate::policy::snapshot::Client;

/// Who a cgroup is.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    /// As policy sees it.
    pub client: Client,
    /// Name in records: that of the rule, else the unit's or container's.
    pub name: Arc<str>,
    /// Path of the cgroup, from the root of the hierarchy; empty when unknown.
    pub cgroup: Arc<str>,
    /// What the path says.
    pub identity: container::Identity,
    /// The pod, where a Kubernetes API server says which.
    pub pod: Option<Arc<pods::PodInfo>>,
}
