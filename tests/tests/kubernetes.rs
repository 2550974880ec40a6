//! Policy, callers and Secrets of a Kubernetes API server, with the real agent.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::time::Duration;

use base64::Engine;
use lab::agent::{Agent, Builder};
use lab::certificates::{Authority, Certificate};
use lab::dns::NameServer;
use lab::kubernetes::{Driver, Kubernetes, NODE, Pod, partner};
use lab::nginx::{Nginx, RunningNginx};
use lab::process::wait_for;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, kernel};
use serde_json::{Value, json};

const HOST: &str = "api.partner.example";
const BLUE: &str = "203.0.113.10";
const GREEN: &str = "203.0.113.11";
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster, and two servers of one partner.
struct Scene {
    // Dropped in this order, the lab last.
    blue: RunningNginx,
    green: RunningNginx,
    clients: Authority,
    cluster: Kubernetes,
    _dns: NameServer,
    ca: String,
    lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let clients = Authority::new(&lab, "clients")?;
        let certificate = authority.issue(&[HOST])?;
        let names = format!("{BLUE} blue.example\n{GREEN} green.example\n198.51.100.9 {HOST}\n");
        let asks = format!(
            "ssl_verify_client optional;\nssl_client_certificate {};\nadd_header Client-Serial $ssl_client_serial;\n",
            clients.path().display()
        );
        let serve = |name: &str, address: &str| -> Result<RunningNginx> {
            Nginx::new(&lab, name)
                .https(&format!("{address}:443"), &certificate)?
                .with(&asks)
                .start()
        };
        Ok(Self {
            blue: serve("blue", BLUE)?,
            green: serve("green", GREEN)?,
            clients,
            cluster: Kubernetes::new(&lab)?,
            _dns: NameServer::start(&lab, RESOLVER, &names)?,
            ca: authority.path().display().to_string(),
            lab,
        })
    }

    fn agent(&self) -> Builder<'_> {
        self.lab
            .agent()
            .setting("--kubernetes", "on")
            .setting(
                "--kubeconfig",
                self.cluster.kubeconfig.display().to_string(),
            )
            .setting("--node-name", NODE)
            // Which are for programs that fetch, and not for the agent.
            .environment("HTTPS_PROXY", "http://127.9.9.9:1")
            .environment("https_proxy", "http://127.9.9.9:1")
    }

    /// The partner as one namespace sees it: TLS to one of its servers.
    fn entry(&self, namespace: &str, server: &str, tls: &Value) -> Vec<Value> {
        let mut settings = json!({ "caCertificates": self.ca });
        if let (Some(settings), Some(more)) = (settings.as_object_mut(), tls.as_object()) {
            settings.extend(more.clone());
        }
        partner(namespace, HOST, server, &settings).into()
    }

    /// As [`entry`](Self::entry), with the Secret as client certificate. The
    /// server is verified by a Secret too.
    fn mutual(&self) -> Result<Vec<Value>> {
        let authority = base64::engine::general_purpose::STANDARD.encode(fs::read(&self.ca)?);
        self.cluster.apply(&[json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "namespace": "payments", "name": "partner-client-cacert" },
            "data": { "ca.crt": authority },
        })]);
        let tls = json!({ "mode": "MUTUAL", "credentialName": "partner-client" });
        let mut documents = self.entry("payments", BLUE, &tls);
        if let Some(settings) = documents[1]["spec"]["trafficPolicy"]["tls"].as_object_mut() {
            settings.remove("caCertificates");
        }
        Ok(documents)
    }

    fn pod(&self, driver: Driver, namespace: &str) -> Result<Pod> {
        self.cluster.pod(&self.lab, driver, namespace, "shop")
    }

    /// Which server answers a plain request of a pod.
    fn answer(&self, pod: &Pod) -> Result<String> {
        pod.curl(&self.lab, &["--include", &format!("http://{HOST}/")])
            .text()
    }

    fn answers(&self, pod: &Pod, with: &str) -> Result<String> {
        wait_for(with, PATIENCE, || {
            let output = pod
                .curl(&self.lab, &["--include", &format!("http://{HOST}/")])
                .output()?;
            let good = output.status.success() && output.stdout.contains(with);
            Ok(good.then_some(output.stdout))
        })
    }

    fn status(&self) -> Result<Value> {
        let text = self.lab.egressctl(&["status", "-o", "json"])?.text()?;
        Ok(serde_json::from_str(&text)?)
    }
}

fn secret(namespace: &str, certificate: &Certificate) -> Result<Value> {
    let encode = |path| -> Result<String> {
        Ok(base64::engine::general_purpose::STANDARD.encode(fs::read(path)?))
    };
    Ok(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": { "namespace": namespace, "name": "partner-client" },
        "data": {
            "tls.crt": encode(&certificate.certificate)?, "tls.key": encode(&certificate.key)?,
        },
    }))
}

/// The connection of a program that is not registered: refused by the world,
/// since nothing answers there.
fn is_unregistered(scene: &Scene, pod: &Pod) -> Result<()> {
    let output = pod
        .curl(&scene.lab, &["--max-time", "2", &format!("http://{HOST}/")])
        .output()?;
    assert!(!output.status.success(), "{}", output.stdout);
    Ok(())
}

#[test]
fn two_pods_see_the_policy_of_their_own_namespace() -> Result<()> {
    let scene = Scene::new()?;
    // One that is there before the agent, one that comes later; both drivers.
    let payments = scene.pod(Driver::Systemd, "payments")?;
    scene
        .cluster
        .apply(&scene.entry("payments", BLUE, &json!({})));
    let agent = scene.agent().start()?;
    scene.answers(&payments, r#""server":"blue""#)?;

    // Applied while it runs.
    scene
        .cluster
        .apply(&scene.entry("orders", GREEN, &json!({})));
    let orders = scene.pod(Driver::Cgroupfs, "orders")?;
    let other = scene.pod(Driver::Cgroupfs, "other")?;
    scene.answers(&orders, r#""server":"green""#)?;
    scene.answers(&payments, r#""server":"blue""#)?;
    is_unregistered(&scene, &other)?;
    assert_eq!(scene.blue.request(1)?["sni"], HOST);
    assert_eq!(scene.green.request(1)?["protocol"], "TLSv1.3");

    let record = agent.record("a record of the pod", |record| {
        record.to_string().contains("shop") && record.to_string().contains("payments")
    })?;
    assert_eq!(record.service(), HOST, "{record}");

    // A change, and the end of it.
    scene
        .cluster
        .apply(&scene.entry("payments", GREEN, &json!({})));
    scene.answers(&payments, r#""server":"green""#)?;
    scene
        .cluster
        .server
        .delete("serviceentries", "payments", "partner");
    wait_for("the entry to be gone", PATIENCE, || {
        let url = format!("http://{HOST}/");
        let output = payments
            .curl(&scene.lab, &["--max-time", "2", &url])
            .output()?;
        Ok((!output.status.success()).then_some(()))
    })?;
    let status = scene.status()?;
    assert_eq!(status["kubernetes"]["node"], NODE, "{status}");
    assert_eq!(status["kubernetes"]["synced"], true, "{status}");
    agent.stop()
}

#[test]
fn a_rotated_secret_shows_in_the_next_handshake() -> Result<()> {
    let scene = Scene::new()?;
    let pod = scene.pod(Driver::Systemd, "payments")?;
    let serial = |answer: &str| -> String {
        let line = answer.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("client-serial:")
                .map(str::to_owned)
        });
        line.unwrap_or_default().trim().to_owned()
    };
    let first = secret("payments", &scene.clients.issue(&["payments"])?)?;
    scene.cluster.apply(&[first]);
    let documents = scene.mutual()?;
    scene.cluster.apply(&documents);
    let agent = scene.agent().start()?;
    let before = serial(&scene.answers(&pod, r#""server":"blue""#)?);
    assert!(!before.is_empty());
    // Every worker keeps a connection made with the old certificate.
    for _ in 0..20 {
        scene.answer(&pod)?;
    }

    scene
        .cluster
        .apply(&[secret("payments", &scene.clients.issue(&["payments"])?)?]);
    wait_for("the new certificate", PATIENCE, || {
        let after = serial(&scene.answer(&pod)?);
        Ok((!after.is_empty() && after != before).then_some(()))
    })?;
    // By name, and nothing else.
    let lists = scene.cluster.server.seen();
    let lists = lists.iter().filter(|seen| seen.path.contains("/secrets"));
    for seen in lists {
        assert!(seen.path.contains("metadata.name%3D"), "{}", seen.path);
    }
    // Never written to disk.
    let state = scene.lab.directory().join("state");
    let grep = std::process::Command::new("grep")
        .args(["-rl", "PRIVATE KEY"])
        .arg(&state)
        .output()?;
    assert!(
        grep.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&grep.stdout)
    );
    agent.stop()
}

#[test]
fn an_agent_starts_while_the_server_is_away() -> Result<()> {
    let scene = Scene::new()?;
    let pod = scene.pod(Driver::Systemd, "payments")?;
    scene
        .cluster
        .apply(&scene.entry("payments", BLUE, &json!({})));
    let agent = scene.agent().start()?;
    scene.answers(&pod, r#""server":"blue""#)?;
    // The pods are kept a moment after they came.
    let kept = scene.lab.directory().join("state/kubernetes/pods.json");
    wait_for("the pods to be kept", PATIENCE, || {
        Ok(kept.exists().then_some(()))
    })?;
    scene.cluster.server.manners(|manners| manners.down = true);
    scene.cluster.server.cut();
    scene.answers(&pod, r#""server":"blue""#)?;
    agent.stop()?;

    let agent = scene.agent().start()?;
    scene.answers(&pod, r#""server":"blue""#)?;
    let status = wait_for("the age to be shown", PATIENCE, || {
        let status = scene.status()?;
        let shown = status["kubernetes"]["error"].is_string();
        Ok(shown.then_some(status))
    })?;
    assert_eq!(status["kubernetes"]["synced"], false, "{status}");
    let words = scene.lab.egressctl(&["status"])?.text()?;
    assert!(words.contains("last seen"), "{words}");

    scene.cluster.server.manners(|manners| manners.down = false);
    scene
        .cluster
        .apply(&scene.entry("payments", GREEN, &json!({})));
    scene.answers(&pod, r#""server":"green""#)?;
    agent.stop()
}

/// As a container that is not privileged: the rights of the DaemonSet and no
/// others, in a cgroup namespace of its own.
#[test]
fn the_rights_of_the_daemonset_are_enough() -> Result<()> {
    let manifest = include_str!("../../config/kubernetes/egress.yaml");
    let rights: Vec<String> = manifest
        .lines()
        .skip_while(|line| line.trim() != "add:")
        .skip(1)
        .map(str::trim)
        .take_while(|line| line.starts_with(['-', '#']))
        .filter_map(|line| line.strip_prefix("- "))
        .map(|right| format!("+{}", right.to_ascii_lowercase()))
        .collect();
    assert!(!rights.is_empty());
    let scene = Scene::new()?;
    scene
        .cluster
        .apply(&scene.entry("payments", BLUE, &json!({})));
    let pod = scene.pod(Driver::Systemd, "payments")?;
    let start = |rights: &[String]| {
        let bounding = format!("--bounding-set=-all,{}", rights.join(","));
        scene
            .agent()
            .under(&[
                "unshare",
                "--cgroup",
                "setpriv",
                &bounding,
                "--inh-caps=-all",
            ])
            .start()
    };
    let agent = start(&rights)?;
    scene.answers(&pod, r#""server":"blue""#)?;
    agent.record("a record of the pod", |record| {
        record.to_string().contains("payments")
    })?;
    agent.stop()?;
    // None is for nothing. What SYS_PTRACE is for, network namespaces of other
    // users' processes, is not part of this.
    for without in ["+net_admin", "+sys_admin"] {
        let fewer: Vec<String> = rights.iter().filter(|r| *r != without).cloned().collect();
        assert!(start(&fewer).is_err(), "{without} is not needed");
    }
    Ok(())
}

/// Whether a rule of the manifests allows a request.
fn is_allowed(rules: &str, seen: &lab::apiserver::Seen) -> bool {
    let path = seen.path.split('?').next().unwrap_or_default();
    // Discovery is allowed to everyone (system:discovery).
    if path.starts_with("/apis/") && path.split('/').count() == 4 {
        return true;
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let parts = if parts[0] == "api" {
        &parts[2..]
    } else {
        &parts[3..]
    };
    let parts = if parts[0] == "namespaces" {
        &parts[2..]
    } else {
        parts
    };
    let (resource, verb) = match (parts, seen.method.as_str()) {
        ([plural], "GET") if seen.is_watch() => ((*plural).to_owned(), "watch"),
        ([plural], "GET") => ((*plural).to_owned(), "list"),
        ([plural, _], "GET") => ((*plural).to_owned(), "get"),
        ([plural], "POST") => ((*plural).to_owned(), "create"),
        ([plural, _, below], "PATCH") => (format!("{plural}/{below}"), "patch"),
        _ => return false,
    };
    let mut resources = "";
    for line in rules.lines().map(str::trim) {
        if let Some(list) = line.strip_prefix("resources: ") {
            resources = list;
        }
        let names = |list: &str, word: &str| {
            list.trim_matches(['[', ']'])
                .split(", ")
                .any(|one| one == word)
        };
        if let Some(verbs) = line.strip_prefix("verbs: ")
            && names(resources, &resource)
            && names(verbs, verb)
        {
            return true;
        }
    }
    false
}

#[test]
fn the_agent_asks_for_nothing_that_its_role_does_not_allow() -> Result<()> {
    let scene = Scene::new()?;
    let pod = scene.pod(Driver::Systemd, "payments")?;
    let first = secret("payments", &scene.clients.issue(&["payments"])?)?;
    scene.cluster.apply(&[first]);
    let mut documents = scene.mutual()?;
    documents[1]["spec"]["trafficPolicy"]["tsl"] = json!({});
    scene.cluster.apply(&documents);
    let agent = scene.agent().start()?;
    let told = wait_for("the condition", PATIENCE, || {
        let rule = scene
            .cluster
            .server
            .object("destinationrules", "payments", "partner");
        Ok(rule.and_then(|rule| {
            rule["status"]["conditions"][0]["message"]
                .as_str()
                .map(str::to_owned)
        }))
    })?;
    assert!(told.contains("tsl"), "{told}");
    assert_eq!(scene.cluster.server.objects("events").len(), 1);
    // Mended: TLS with the Secret, which is only asked for now.
    scene.cluster.apply(&scene.mutual()?);
    scene.answers(&pod, r#""server":"blue""#)?;
    let rules = [
        include_str!("../../config/kubernetes/egress.yaml"),
        include_str!("../../config/kubernetes/secret-access.yaml"),
    ]
    .join("\n");
    for seen in scene.cluster.server.seen() {
        assert!(is_allowed(&rules, &seen), "{} {}", seen.method, seen.path);
    }
    agent.stop()
}

/// Entries of the hash maps of the kernel programs.
fn entries(lab: &Lab) -> Result<Vec<(String, usize)>> {
    kernel::maps(&lab.client_cgroup())?
        .into_iter()
        .map(|(name, id)| Ok((name, kernel::entries(id)?)))
        .collect()
}

fn is_at_rest(scene: &Scene, agent: &Agent, maps: &[(String, usize)], files: usize) -> Result<()> {
    let mut last = String::new();
    let rest = wait_for("nothing to be left", PATIENCE, || {
        let now = entries(&scene.lab)?;
        let open = kernel::descriptors(agent.id())?;
        last = format!("{now:?}, {open} descriptors; at first {maps:?}, {files}");
        Ok((now == maps && open <= files).then_some(()))
    });
    rest.map_err(|error| error.context(last))
}

#[test]
fn a_pod_that_is_deleted_in_mid_connection_leaves_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let echo = Server::start(&scene.lab, &format!("{BLUE}:7000"), Behaviour::Echo)?;
    scene.cluster.apply(&[
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": { "namespace": "payments", "name": "echo" },
            "spec": {
                "hosts": ["echo.partner.example"], "location": "MESH_EXTERNAL",
                "resolution": "STATIC", "endpoints": [{ "address": BLUE }],
                "ports": [{ "number": 7000, "name": "tcp", "protocol": "TCP" }],
            },
        }),
        // Which only the agent can do.
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": { "namespace": "payments", "name": "echo" },
            "spec": {
                "host": "echo.partner.example",
                "trafficPolicy": { "connectionPool": { "tcp": { "idleTimeout": "10m" } } },
            },
        }),
    ]);
    let agent = scene.agent().start()?;
    // What stays open for good is open once a connection went through.
    let talk = |pod: &Pod| -> Result<lab::process::Process> {
        let script = "import socket, sys\n\
             s = socket.create_connection(('echo.partner.example', 7000), 10)\n\
             s.sendall(b'hello'); s.recv(5); print('talking', flush=True); s.recv(1)\n";
        let mut process = pod
            .spawn(&scene.lab, "/usr/bin/python3")
            .args(["-I", "-c", script])
            .interactive()
            .start()?;
        process.expect_line("talking")?;
        Ok(process)
    };
    let delete = |pod: &Pod| -> Result<()> {
        scene
            .cluster
            .server
            .delete("pods", &pod.namespace, &pod.name);
        // As kubelet does when the containers are gone.
        wait_for("the cgroup to be empty", PATIENCE, || {
            let gone = fs::remove_dir(&pod.container).and_then(|()| fs::remove_dir(&pod.cgroup));
            Ok(gone.is_ok().then_some(()))
        })
    };
    let first = scene.pod(Driver::Systemd, "payments")?;
    talk(&first)?.kill();
    delete(&first)?;
    std::thread::sleep(Duration::from_secs(6));
    let (maps, files) = (entries(&scene.lab)?, kernel::descriptors(agent.id())?);

    for driver in [Driver::Systemd, Driver::Cgroupfs] {
        let pod = scene.pod(driver, "payments")?;
        let mut process = talk(&pod)?;
        scene.cluster.server.delete("pods", "payments", "shop");
        process.kill();
        delete(&pod)?;
    }
    is_at_rest(&scene, &agent, &maps, files)?;
    drop(echo);
    agent.stop()
}
