//! A real Kubernetes API server with its etcd, in the world of a lab.
//!
//! `KUBEBUILDER_ASSETS`, the variable of Kubernetes' own `envtest`, names a
//! folder with `etcd`, `kube-apiserver` and `kubectl`; so does
//! `target/kubernetes`, where `xtask/src/commands/kube_apiserver.sh` builds them
//! from Debian's sources.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::certificates::Authority;
use crate::kubernetes::{API_SERVER, Driver, NODE, Pod};
use crate::process::{Process, Spawn, wait_for};
use crate::{Context, Group, Lab, Result, bail};

const PATIENCE: Duration = Duration::from_mins(1);
const ADMIN: &str = "admin-token";
const ETCD: &str = "http://127.0.0.1:2379";

/// The programs of a control plane; `None` where there are none.
#[must_use]
pub fn assets() -> Option<PathBuf> {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/kubernetes");
    let folder = named.unwrap_or(built);
    folder.join("kube-apiserver").exists().then_some(folder)
}

/// A running control plane: an API server with RBAC, and nothing else, so that
/// pods are what the test says they are.
pub struct ControlPlane<'lab> {
    lab: &'lab Lab,
    assets: PathBuf,
    authority: Authority,
    certificate: crate::certificates::Certificate,
    _etcd: Process,
    server: Option<Process>,
}

impl<'lab> ControlPlane<'lab> {
    /// Starts etcd and the API server, and adds the node.
    ///
    /// # Errors
    /// When they do not become ready.
    pub fn start(lab: &'lab Lab, assets: PathBuf) -> Result<Self> {
        let authority = Authority::new(lab, "cluster")?;
        let certificate = authority.issue(&[API_SERVER])?;
        lab.write(
            "tokens.csv",
            &format!("{ADMIN},admin,admin,system:masters\n"),
        )?;
        let log = fs::File::create(lab.directory().join("etcd.log"))?;
        let etcd = lab
            .spawn(Group::Servers, assets.join("etcd"))
            .arg("--data-dir")
            .arg(lab.directory().join("etcd"))
            .args([
                "--listen-client-urls",
                ETCD,
                "--advertise-client-urls",
                ETCD,
            ])
            .args([
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
                "--unsafe-no-fsync",
            ])
            .stdout(log.try_clone()?)
            .stderr(log)
            .start()?;
        let mut plane = Self {
            lab,
            assets,
            authority,
            certificate,
            _etcd: etcd,
            server: None,
        };
        plane.resume()?;
        plane.apply(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": NODE, "labels": {
                "topology.kubernetes.io/region": "eu-west-1",
                "topology.kubernetes.io/zone": "eu-west-1a",
            } },
        }))?;
        Ok(plane)
    }

    /// Kills the API server; etcd keeps what it knew.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts the API server, again.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn resume(&mut self) -> Result<()> {
        let log = self.lab.directory().join("kube-apiserver.log");
        let output = fs::File::create(&log)?;
        let mut server = self
            .lab
            .spawn(Group::Servers, self.assets.join("kube-apiserver"))
            .args(["--etcd-servers", ETCD, "--authorization-mode", "RBAC"])
            .args([
                "--bind-address",
                API_SERVER,
                "--advertise-address",
                API_SERVER,
            ])
            .args([
                "--secure-port",
                "6443",
                "--service-cluster-ip-range",
                "10.0.0.0/24",
            ])
            .arg("--tls-cert-file")
            .arg(&self.certificate.certificate)
            .arg("--tls-private-key-file")
            .arg(&self.certificate.key)
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            // It takes the public key out of it.
            .arg("--service-account-key-file")
            .arg(&self.certificate.certificate)
            .arg("--service-account-signing-key-file")
            .arg(&self.certificate.key)
            .arg("--token-auth-file")
            .arg(self.lab.directory().join("tokens.csv"))
            // Nothing here makes the accounts that pods would run as.
            .args(["--disable-admission-plugins", "ServiceAccount"])
            .args(["--allow-privileged=true", "--watch-cache=true"])
            .stdout(output.try_clone()?)
            .stderr(output)
            .start()?;
        let ready = wait_for("the API server to be ready", PATIENCE, || {
            if !server.is_running() {
                bail!("kube-apiserver ended");
            }
            let asked = self.kubectl(&["get", "--raw", "/readyz"]).output()?;
            Ok((asked.stdout == "ok").then_some(()))
        });
        ready.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        self.server = Some(server);
        Ok(())
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Spawn {
        self.lab
            .spawn(Group::Servers, self.assets.join("kubectl"))
            .env("HOME", self.lab.directory())
            .args(["--server", &format!("https://{API_SERVER}:6443")])
            .arg("--certificate-authority")
            .arg(self.authority.path())
            .args(["--token", ADMIN])
            .args(arguments)
    }

    /// Applies a document.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn apply(&self, document: &Value) -> Result<()> {
        self.apply_text(&document.to_string())
    }

    /// Applies a text of documents; a server that is older than a field
    /// ignores it.
    ///
    /// # Errors
    /// When the server refuses one of them.
    pub fn apply_text(&self, text: &str) -> Result<()> {
        self.kubectl(&["apply", "--validate=false", "-f", "-"])
            .input(text)
            .text()?;
        Ok(())
    }

    /// Creates many objects below a path, faster than kubectl, which holds
    /// itself back.
    ///
    /// # Errors
    /// When the server refuses one of them.
    pub fn create(&self, path: &str, objects: &[Value]) -> Result<()> {
        let script = format!(
            "import http.client, json, ssl, sys\n\
             context = ssl.create_default_context(cafile={:?})\n\
             server = http.client.HTTPSConnection({API_SERVER:?}, 6443, context=context)\n\
             head = {{'Authorization': 'Bearer {ADMIN}', 'Content-Type': 'application/json'}}\n\
             for one in json.load(sys.stdin):\n    \
                 server.request('POST', {path:?}, json.dumps(one), head)\n    \
                 answer = server.getresponse()\n    \
                 text = answer.read()\n    \
                 assert answer.status == 201, text\n",
            self.authority.path().display().to_string(),
        );
        self.lab
            .python_in(Group::Servers, &script)
            .input(Value::from(objects).to_string())
            .deadline(PATIENCE)
            .text()?;
        Ok(())
    }

    /// An object as it is now.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Result<Value> {
        let text = self
            .kubectl(&["get", resource, name, "-n", namespace, "-o", "json"])
            .text()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A kubeconfig of a ServiceAccount, whose token is in a file beside it, as
    /// kubelet projects it.
    ///
    /// # Errors
    /// When the server gives no token.
    pub fn kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.renew_token(namespace, account)?;
        self.lab.write(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster:\n    server: https://{API_SERVER}:6443\n    certificate-authority: {}\n\
                 contexts:\n- name: lab\n  context: {{ cluster: lab, user: lab }}\nusers:\n- name: lab\n  user: {{ tokenFile: {} }}\n",
                self.authority.path().display(),
                token.display(),
            ),
        )
    }

    /// Writes a new token of a ServiceAccount in the place of the last.
    ///
    /// # Errors
    /// When the server gives none.
    pub fn renew_token(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "expirationSeconds": 600 },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self
            .kubectl(&["create", "--raw", &path, "-f", "-"])
            .input(asked.to_string())
            .text()?;
        let answer: Value = serde_json::from_str(&answer)?;
        let token = answer["status"]["token"].as_str().context("no token")?;
        let next = self.lab.write("token.next", token)?;
        let place = self.lab.directory().join("token");
        fs::rename(next, &place)?;
        Ok(place)
    }

    /// A pod of this node, and its cgroups.
    ///
    /// # Errors
    /// When the server refuses it, or the cgroups cannot be made.
    pub fn pod(&self, driver: Driver, namespace: &str, name: &str) -> Result<Pod> {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": { "app": name } },
            "spec": {
                "nodeName": NODE, "hostNetwork": true,
                "containers": [{ "name": "main", "image": "none" }],
            },
        }))?;
        let pod = self.get("pods", namespace, name)?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        Pod::lay_out(self.lab, driver, namespace, name, uid.to_owned())
    }
}
