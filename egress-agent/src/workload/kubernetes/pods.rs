//! The pods of this node.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::kubernetes::follow::Event;
use crate::policy::model::Labels;
use crate::workload::pods::{PodInfo, Pods};

/// The hash under which the cgroup of a static pod is found; the object in the
/// API server is only its mirror, with a uid of its own
/// (`pkg/kubelet/types/pod_update.go`).
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// What a ReplicaSet adds to the name of its Deployment.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// What a pod is for policy, with the uid that its cgroup carries. One that
/// has ended for good has no cgroup, and is nothing.
pub fn read(pod: &Pod) -> Option<(Box<str>, PodInfo)> {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let meta = &pod.metadata;
    let uid = meta
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(CONFIG_HASH))
        .or(meta.uid.as_ref())
        .filter(|uid| !uid.is_empty())?;
    let name = meta.name.as_deref()?;
    let labels: Labels = meta
        .labels
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect();
    let owner = meta.owner_references.iter().flatten();
    let owner = owner
        .filter(|owner| owner.controller.unwrap_or(false))
        .find(|owner| owner.kind != "Node");
    let workload = match owner {
        Some(owner) if owner.kind == "ReplicaSet" => {
            let hash = labels.get(TEMPLATE_HASH).map_or("", |hash| hash);
            let deployment = owner.name.strip_suffix(hash);
            let deployment = deployment.and_then(|name| name.strip_suffix('-'));
            deployment.unwrap_or(&owner.name)
        }
        Some(owner) => &owner.name,
        None => name,
    };
    let account = pod.spec.as_ref();
    let account = account.and_then(|spec| spec.service_account_name.as_deref());
    Some((
        uid.as_str().into(),
        PodInfo {
            namespace: meta.namespace.as_deref()?.into(),
            name: name.into(),
            workload: workload.into(),
            labels: Arc::new(labels),
            service_account: account.unwrap_or("default").into(),
        },
    ))
}

/// The pods as the server shows them.
#[derive(Debug, Default)]
pub struct Table {
    /// By the object's own uid, under which a deletion is told.
    pods: HashMap<String, (Box<str>, Arc<PodInfo>)>,
}

impl Table {
    /// Takes a change; whether anything is other than before.
    pub fn take(&mut self, event: Event<Pod>) -> bool {
        match event {
            Event::Listed(pods) => {
                let mut old = std::mem::take(&mut self.pods);
                let mut changed = false;
                for pod in pods {
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    let Some((key, info)) = read(&pod) else {
                        continue;
                    };
                    let kept = old.remove(&uid).filter(|(_, old)| **old == info);
                    changed |= kept.is_none();
                    self.pods
                        .insert(uid, kept.unwrap_or_else(|| (key, Arc::new(info))));
                }
                changed || !old.is_empty()
            }
            Event::Applied(pod) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let Some((key, info)) = read(&pod) else {
                    return self.pods.remove(&uid).is_some();
                };
                let same = self.pods.get(&uid).is_some_and(|(_, old)| **old == info);
                if !same {
                    self.pods.insert(uid, (key, Arc::new(info)));
                }
                !same
            }
            Event::Deleted(pod) => {
                let uid = pod.metadata.uid.unwrap_or_default();
                self.pods.remove(&uid).is_some()
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// For the directory of workloads.
    pub fn pods(&self) -> Pods {
        self.pods.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_of_a_deployment_is_named_after_it() {
        let (uid, info) = read(&pod(json!({
            "metadata": {
                "name": "api-5d4f8c7b9-x2x7q", "namespace": "payments", "uid": "u-1",
                "labels": { "app": "api", "pod-template-hash": "5d4f8c7b9" },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "api-5d4f8c7b9",
                    "uid": "r", "controller": true
                }]
            },
            "spec": { "serviceAccountName": "payer", "containers": [] }
        })))
        .unwrap();
        assert_eq!(&*uid, "u-1");
        assert_eq!(&*info.workload, "api");
        assert_eq!(&*info.namespace, "payments");
        assert_eq!(&*info.service_account, "payer");
        assert_eq!(info.labels.get("app").map(|v| &**v), Some("api"));
    }

    #[test]
    fn a_static_pod_is_found_by_the_hash_of_its_file() {
        let (uid, info) = read(&pod(json!({
            "metadata": {
                "name": "kube-proxy-n1", "namespace": "kube-system", "uid": "mirror",
                "annotations": { "kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef" },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n", "controller": true
                }]
            }
        })))
        .unwrap();
        assert_eq!(&*uid, "0123456789abcdef0123456789abcdef");
        assert_eq!(&*info.workload, "kube-proxy-n1");
        assert_eq!(&*info.service_account, "default");
    }

    #[test]
    fn changes_are_told_and_repetitions_are_not() {
        let one = |name: &str, uid: &str| {
            pod(json!({ "metadata": { "name": name, "namespace": "d", "uid": uid } }))
        };
        let mut table = Table::default();
        assert!(table.take(Event::Listed(vec![one("a", "1"), one("b", "2")])));
        assert!(!table.take(Event::Listed(vec![one("a", "1"), one("b", "2")])));
        assert!(!table.take(Event::Applied(one("a", "1"))));
        assert!(table.take(Event::Applied(one("c", "3"))));
        assert!(table.take(Event::Deleted(one("b", "2"))));
        assert!(!table.take(Event::Deleted(one("b", "2"))));
        assert_eq!(table.len(), 2);
        assert!(table.take(Event::Listed(vec![one("a", "1")])));
        assert_eq!(table.pods().len(), 1);
        let ended = pod(json!({
            "metadata": { "name": "a", "namespace": "d", "uid": "1" },
            "status": { "phase": "Succeeded" },
        }));
        assert!(table.take(Event::Applied(ended)));
        assert!(table.is_empty());
    }
}
