//! A Kubernetes cluster of the lab: an API server double in the world, and
//! pods of this node as processes in cgroups that are laid out as kubelet and
//! the runtimes do.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::certificates::Authority;
use crate::process::Spawn;
use crate::{Lab, Result};

/// Where the API server is.
pub const API_SERVER: &str = "203.0.113.99";
/// Name of this node.
pub const NODE: &str = "node-1";

/// A cluster with one node.
pub struct Kubernetes {
    /// The API server.
    pub server: ApiServer,
    /// For `--kubeconfig`.
    pub kubeconfig: PathBuf,
}

/// How kubelet lays cgroups out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope`
    Systemd,
    /// `/kubepods/burstable/podUID/ID`
    Cgroupfs,
}

/// A pod of this node.
#[derive(Clone, Debug)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Its own cgroup.
    pub cgroup: PathBuf,
    /// That of its container, where its processes run.
    pub container: PathBuf,
}

/// A partner as one namespace alone sees it, over HTTP on port 80: TLS to the
/// server at `address`, with these settings of `tls` beside the mode and SNI. A
/// ServiceEntry and a DestinationRule.
pub fn partner(namespace: &str, host: &str, address: &str, tls: &Value) -> [Value; 2] {
    let mut settings = json!({ "mode": "SIMPLE", "sni": host });
    if let (Some(settings), Some(more)) = (settings.as_object_mut(), tls.as_object()) {
        settings.extend(more.clone());
    }
    [
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": { "namespace": namespace, "name": "partner" },
            "spec": {
                "hosts": [host], "exportTo": ["."], "location": "MESH_EXTERNAL",
                "resolution": "STATIC", "endpoints": [{ "address": address }],
                "ports": [{
                    "number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443,
                }],
            },
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": { "namespace": namespace, "name": "partner" },
            "spec": { "host": host, "exportTo": ["."], "trafficPolicy": { "tls": settings } },
        }),
    ]
}

impl Kubernetes {
    /// Starts the API server, with TLS, and adds the node.
    pub fn new(lab: &Lab) -> Result<Self> {
        let authority = Authority::new(lab, "cluster")?;
        let certificate = authority.issue(&[API_SERVER])?;
        let listener = lab
            .world()
            .run(|| std::net::TcpListener::bind((API_SERVER, 6443)))??;
        let (chain, key) = (
            fs::read_to_string(&certificate.certificate)?,
            fs::read_to_string(&certificate.key)?,
        );
        let server = ApiServer::start(listener, Some((&chain, &key)))?;
        let trust = fs::read_to_string(authority.path())?;
        let kubeconfig = lab.write("kubeconfig", &server.kubeconfig(&trust))?;
        server.apply(
            "nodes",
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": NODE, "labels": {
                    "topology.kubernetes.io/region": "eu-west-1",
                    "topology.kubernetes.io/zone": "eu-west-1a",
                } },
            }),
        );
        Ok(Self { server, kubeconfig })
    }

    /// Makes the cgroups of a pod, as kubelet does after the pod was bound to
    /// the node, and its object in the API server.
    pub fn pod(&self, lab: &Lab, driver: Driver, namespace: &str, name: &str) -> Result<Pod> {
        self.server.apply(
            "pods",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "namespace": namespace, "name": name, "labels": { "app": name },
                },
                "spec": {
                    "nodeName": NODE, "serviceAccountName": name, "hostNetwork": true,
                    "containers": [{ "name": "main", "image": "none" }],
                },
            }),
        );
        let object = self.server.object("pods", namespace, name);
        let uid = object
            .as_ref()
            .and_then(|pod| pod["metadata"]["uid"].as_str())
            .unwrap_or_default()
            .to_owned();
        Pod::lay_out(lab, driver, namespace, name, uid)
    }

    /// Applies documents as an operator would with kubectl.
    pub fn apply(&self, documents: &[Value]) {
        for document in documents {
            let plural = match document["kind"].as_str().unwrap_or_default() {
                "ServiceEntry" => "serviceentries",
                "DestinationRule" => "destinationrules",
                "VirtualService" => "virtualservices",
                "Secret" => "secrets",
                other => other,
            };
            self.server.apply(plural, document.clone());
        }
    }
}

impl Pod {
    /// Makes the cgroups of a pod that the API server knows, as kubelet does.
    pub fn lay_out(
        lab: &Lab,
        driver: Driver,
        namespace: &str,
        name: &str,
        uid: String,
    ) -> Result<Self> {
        let container = "4f8d1c0a9be2433da2b6a0c5ab7b3e5d9a1f60cf2f0b6a7c8d9e0f1a2b3c4d5e";
        let below = match driver {
            Driver::Systemd => format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
                uid.replace('-', "_")
            ),
            Driver::Cgroupfs => format!("kubepods/besteffort/pod{uid}"),
        };
        let cgroup = lab.client_cgroup().join(below);
        let container = cgroup.join(match driver {
            Driver::Systemd => format!("cri-containerd-{container}.scope"),
            Driver::Cgroupfs => container.to_owned(),
        });
        fs::create_dir_all(&container)?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid,
            cgroup,
            container,
        })
    }

    /// A process of the pod's container.
    pub fn spawn(&self, lab: &Lab, program: impl AsRef<Path>) -> Spawn {
        Spawn::new(
            lab.app(),
            &lab.directory().join("etc"),
            &self.container,
            program.as_ref(),
        )
    }

    /// curl in the pod.
    pub fn curl(&self, lab: &Lab, arguments: &[&str]) -> Spawn {
        self.spawn(lab, "curl")
            .args(["--silent", "--show-error", "--max-time", "20"])
            .args(arguments)
    }
}
