//! The agent against a real Kubernetes API server, as the ServiceAccount that
//! the manifests give it. Skipped where there is none; see
//! `lab::control_plane`.
#![allow(clippy::panic, reason = "tests")]

use std::fs;
use std::time::Duration;

use base64::Engine;
use lab::agent::Agent;
use lab::certificates::{Authority, Certificate};
use lab::control_plane::{ControlPlane, assets};
use lab::dns::NameServer;
use lab::kubernetes::{Driver, NODE, Pod, partner};
use lab::nginx::{Nginx, RunningNginx};
use lab::process::wait_for;
use lab::{Lab, RESOLVER, Result};
use serde_json::{Value, json};

const HOST: &str = "api.partner.example";
const BLUE: &str = "203.0.113.10";
const GREEN: &str = "203.0.113.11";
const ENTRIES: &str = "/apis/networking.istio.io/v1";
const PATIENCE: Duration = Duration::from_mins(1);

/// Two servers of one partner, which tell the client certificate's number.
struct World {
    _servers: [RunningNginx; 2],
    _dns: NameServer,
    clients: Authority,
    ca: String,
}

impl World {
    fn new(lab: &Lab) -> Result<Self> {
        let authority = Authority::new(lab, "world")?;
        let clients = Authority::new(lab, "clients")?;
        let certificate = authority.issue(&[HOST])?;
        let asks = format!(
            "ssl_verify_client optional;\nssl_client_certificate {};\nadd_header Client-Serial $ssl_client_serial;\n",
            clients.path().display()
        );
        let serve = |name: &str, address: &str| {
            Nginx::new(lab, name)
                .https(&format!("{address}:443"), &certificate)?
                .with(&asks)
                .start()
        };
        Ok(Self {
            _servers: [serve("blue", BLUE)?, serve("green", GREEN)?],
            _dns: NameServer::start(lab, RESOLVER, &format!("198.51.100.9 {HOST}\n"))?,
            clients,
            ca: authority.path().display().to_string(),
        })
    }

    /// The partner as one namespace sees it: TLS to one of its servers.
    fn entry(&self, namespace: &str, server: &str, tls: &Value) -> Value {
        let plain = json!({ "caCertificates": self.ca });
        // A Secret brings its own authority.
        let tls = if tls["credentialName"].is_null() {
            &plain
        } else {
            tls
        };
        let items = partner(namespace, HOST, server, tls);
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }
}

fn manifest(name: &str) -> Result<String> {
    let path = format!("{}/../config/kubernetes/{name}", env!("CARGO_MANIFEST_DIR"));
    Ok(fs::read_to_string(path)?)
}

/// `maxSurge`, without which `maxUnavailable: 0` is refused, came with 1.22;
/// the chart asks for 1.30.
fn for_any_version(text: &str) -> String {
    text.replace("maxUnavailable: 0", "maxUnavailable: 1")
        .replace("maxSurge: 1", "maxSurge: 0")
}

fn encoded(path: &std::path::Path) -> Result<String> {
    Ok(base64::engine::general_purpose::STANDARD.encode(fs::read(path)?))
}

fn secret(name: &str, data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": { "namespace": "payments", "name": name }, "data": data,
    })
}

fn client_secret(certificate: &Certificate) -> Result<Value> {
    Ok(secret(
        "partner-client",
        &json!({
            "tls.crt": encoded(&certificate.certificate)?, "tls.key": encoded(&certificate.key)?,
        }),
    ))
}

fn answers(lab: &Lab, pod: &Pod, with: &str) -> Result<String> {
    wait_for(with, PATIENCE, || {
        let output = pod
            .curl(lab, &["--include", &format!("http://{HOST}/")])
            .output()?;
        let good = output.status.success() && output.stdout.contains(with);
        Ok(good.then_some(output.stdout))
    })
}

fn serial(answer: &str) -> Option<String> {
    let line = answer.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("client-serial:")
            .map(|serial| serial.trim().to_owned())
    });
    line.filter(|serial| !serial.is_empty())
}

fn status(lab: &Lab) -> Result<Value> {
    let text = lab.egressctl(&["status", "-o", "json"])?.text()?;
    Ok(serde_json::from_str(&text)?)
}

/// What `egressctl status` says of one watch.
fn watch(lab: &Lab, what: &str) -> Result<Value> {
    let status = status(lab)?;
    let watches = status["kubernetes"]["watches"].as_array();
    let found = watches.and_then(|all| all.iter().find(|one| one["resource"] == what));
    Ok(found.cloned().unwrap_or_default())
}

fn start(lab: &Lab, plane: &ControlPlane<'_>) -> Result<Agent> {
    let kubeconfig = plane.kubeconfig("egress-system", "egress-agent")?;
    lab.agent()
        .setting("--kubernetes", "on")
        .setting("--kubeconfig", kubeconfig.display().to_string())
        .setting("--node-name", NODE)
        .start()
}

#[test]
fn a_real_api_server_is_followed() -> Result<()> {
    let Some(assets) = assets() else {
        println!("SKIPPED: no kube-apiserver; set KUBEBUILDER_ASSETS");
        return Ok(());
    };
    let lab = Lab::new()?;
    let world = World::new(&lab)?;
    let mut plane = ControlPlane::start(&lab, assets)?;
    for namespace in ["payments", "orders", "other"] {
        plane.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace },
        }))?;
    }
    // The server takes our manifests.
    for name in ["namespace.yaml", "egress.yaml", "secret-access.yaml"] {
        plane.apply_text(&for_any_version(&manifest(name)?))?;
    }

    // Without the kinds: told, and no reason not to start.
    let agent = start(&lab, &plane)?;
    let missing = watch(&lab, "serviceentries")?;
    assert!(
        missing["error"]
            .as_str()
            .is_some_and(|error| error.contains("CustomResourceDefinitions")),
        "{missing}"
    );
    plane.apply_text(&manifest("crds.yaml")?)?;
    // Of 600 there are two pages.
    let many: Vec<Value> = (0..600)
        .map(|n| {
            json!({
                "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
                "metadata": { "namespace": "other", "name": format!("entry{n}") },
                "spec": {
                    "hosts": [format!("n{n}.example")], "resolution": "DNS",
                    "location": "MESH_EXTERNAL",
                    "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }],
                },
            })
        })
        .collect();
    let mut last = String::new();
    wait_for("the kinds to be served", PATIENCE, || {
        let applied = plane.apply(&many[0]);
        last = applied
            .as_ref()
            .err()
            .map(|e| format!("{e:#}"))
            .unwrap_or_default();
        Ok(applied.ok())
    })
    .map_err(|error| error.context(last))?;
    let payments = plane.pod(Driver::Systemd, "payments", "shop")?;
    plane.apply(&world.entry("payments", BLUE, &json!({})))?;
    // It asks now and then whether the kinds are there.
    answers(&lab, &payments, r#""server":"blue""#)?;
    plane.create(
        &format!("{ENTRIES}/namespaces/other/serviceentries"),
        &many[1..],
    )?;
    wait_for("600 entries", PATIENCE, || {
        Ok((watch(&lab, "serviceentries")?["objects"] == 601).then_some(()))
    })?;
    agent.stop()?;

    // A start with all of it there: pages.
    let agent = start(&lab, &plane)?;
    assert_eq!(watch(&lab, "serviceentries")?["objects"], 601);
    let said = status(&lab)?;
    assert_eq!(said["kubernetes"]["synced"], true, "{said}");
    let node = watch(&lab, "nodes")?;
    assert_eq!(node["objects"], 1, "{node}");
    assert!(node["error"].is_null(), "{node}");

    // Each namespace its own.
    let orders = plane.pod(Driver::Cgroupfs, "orders", "shop")?;
    plane.apply(&world.entry("orders", GREEN, &json!({})))?;
    answers(&lab, &orders, r#""server":"green""#)?;
    answers(&lab, &payments, r#""server":"blue""#)?;

    // Secrets by name, as the Role allows; rotated.
    plane.apply(&secret(
        "partner-client-cacert",
        &json!({ "ca.crt": encoded(std::path::Path::new(&world.ca))? }),
    ))?;
    plane.apply(&client_secret(&world.clients.issue(&["payments"])?)?)?;
    let tls = json!({ "mode": "MUTUAL", "credentialName": "partner-client" });
    plane.apply(&world.entry("payments", BLUE, &tls))?;
    let before = wait_for("the client certificate", PATIENCE, || {
        Ok(serial(&answers(&lab, &payments, r#""server":"blue""#)?))
    })?;
    plane.apply(&client_secret(&world.clients.issue(&["payments"])?)?)?;
    wait_for("the new client certificate", PATIENCE, || {
        let now = serial(&answers(&lab, &payments, r#""server":"blue""#)?);
        Ok(now.filter(|now| *now != before))
    })?;
    // One that no Role allows is told; the rest goes on.
    let orders_tls = json!({ "mode": "MUTUAL", "credentialName": "orders-client" });
    plane.apply(&world.entry("orders", GREEN, &orders_tls))?;
    let refused = wait_for("the refusal to be told", PATIENCE, || {
        let watch = watch(&lab, "secrets orders/orders-client")?;
        Ok(watch["error"].as_str().map(str::to_owned))
    })?;
    assert!(refused.contains("403"), "{refused}");
    plane.apply(&world.entry("orders", GREEN, &json!({})))?;
    answers(&lab, &orders, r#""server":"green""#)?;

    // A problem is told to the object, as Event and condition, and taken back.
    let mut bad = many[0].clone();
    bad["spec"]["resolutoin"] = json!("DNS");
    plane.apply(&bad)?;
    let condition = |wanted: &str| {
        wait_for("the condition", PATIENCE, || {
            let entry = plane.get("serviceentries", "other", "entry0")?;
            let conditions = entry["status"]["conditions"].as_array().cloned();
            Ok(conditions.into_iter().flatten().find(|condition| {
                condition["type"] == "egress-agent.dev/Accepted" && condition["status"] == wanted
            }))
        })
    };
    let told = condition("False")?;
    assert!(
        told["message"]
            .as_str()
            .is_some_and(|message| message.contains("resolutoin")),
        "{told}"
    );
    let events = plane
        .kubectl(&["describe", "serviceentry", "entry0", "-n", "other"])
        .text()?;
    assert!(
        events.contains("Rejected") && events.contains("resolutoin"),
        "{events}"
    );
    plane.apply(&many[0])?;
    condition("True")?;

    // A token that is projected anew is used: the first is no longer valid
    // once its account was made anew.
    plane
        .kubectl(&[
            "delete",
            "serviceaccount",
            "egress-agent",
            "-n",
            "egress-system",
        ])
        .text()?;
    plane.apply_text(&for_any_version(&manifest("egress.yaml")?))?;
    plane.renew_token("egress-system", "egress-agent")?;

    // The server dies; policy stays in force, and its age is shown.
    plane.kill();
    answers(&lab, &payments, r#""server":"blue""#)?;
    wait_for("the age to be shown", PATIENCE, || {
        let said = status(&lab)?;
        Ok(said["kubernetes"]["error"].is_string().then_some(()))
    })?;
    let words = lab.egressctl(&["status"])?.text()?;
    assert!(words.contains("last seen"), "{words}");
    let metrics = agent.metrics(&lab)?;
    assert!(metrics.contains("egress_kubernetes_behind_seconds{resource=\"serviceentries\"}"));
    // Back, with an empty watch cache: what was seen last is too old for it.
    plane.resume()?;
    plane.apply(&world.entry("orders", BLUE, &json!({})))?;
    let all = format!("{ENTRIES}/namespaces/other/serviceentries");
    plane.kubectl(&["delete", "--raw", &all]).text()?;
    // The token is read anew once a minute.
    wait_for("to follow again", 3 * PATIENCE, || {
        let watch = watch(&lab, "serviceentries")?;
        Ok(watch["error"].is_null().then_some(()))
    })?;
    answers(&lab, &orders, r#""server":"blue""#)?;
    wait_for("the entries to be gone", PATIENCE, || {
        Ok((watch(&lab, "serviceentries")?["objects"] == 2).then_some(()))
    })?;
    wait_for("all to be well", 3 * PATIENCE, || {
        let said = status(&lab)?;
        let well = said["kubernetes"]["error"].is_null() && said["kubernetes"]["synced"] == true;
        Ok(well.then_some(()))
    })?;

    // A pod that is deleted, and one that takes its cgroup's name.
    plane
        .kubectl(&[
            "delete",
            "pod",
            "shop",
            "-n",
            "orders",
            "--force",
            "--grace-period=0",
        ])
        .text()?;
    wait_for("the pod to be gone", PATIENCE, || {
        Ok((watch(&lab, "pods")?["objects"] == 1).then_some(()))
    })?;
    agent.stop()
}
