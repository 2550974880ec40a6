//! The pods of this node, as callers. Needs nothing of Kubernetes, so that the
//! directory of workloads is the same without it.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::policy::model::Labels;

/// A pod, as far as policy and records need it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PodInfo {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Name of what made it: Deployment, StatefulSet, DaemonSet, Job; else its
    /// own.
    pub workload: Arc<str>,
    /// `metadata.labels`.
    pub labels: Arc<Labels>,
    /// `spec.serviceAccountName`.
    pub service_account: Arc<str>,
}

/// Pods by the uid that their cgroups carry.
pub type Pods = HashMap<Box<str>, Arc<PodInfo>>;
