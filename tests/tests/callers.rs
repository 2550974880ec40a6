//! Policy per caller: the namespace that a cgroup belongs to decides which
//! services it sees.
#![allow(clippy::panic, reason = "tests")]

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::netns;
use lab::process::Spawn;
use lab::tcp::{Behaviour, Server};
use lab::{Lab, RESOLVER, Result, policy};

const HOST: &str = "db.example.com";
const PORT: u16 = 7000;
/// Where the host really is, and where two namespaces say that it is.
const REAL: &str = "203.0.113.40";
const OF_A: &str = "203.0.113.41";
const OF_B: &str = "203.0.113.42";
const ID: &str = "4f8d1c0a9be2433da2b6a0c5ab7b3e5d9a1f60cf2f0b6a7c8d9e0f1a2b3c4d";
const UID: &str = "0f6a2b3c-11aa-4bcd-9e8f-0011223344";

/// Cgroups of two workloads of each kind, and the rules that give the first
/// the namespace `a`, the second `b`; a third stands beside them.
fn layouts() -> Vec<[(String, String); 2]> {
    let two = |make: &dyn Fn(u8) -> (String, String)| [make(1), make(2)];
    let dashes = |n: u8| format!("{UID}{n:02}");
    let under = |n: u8| dashes(n).replace('-', "_");
    let id = |n: u8| format!("{ID}{n:02}");
    let mut all = vec![
        // systemd slices, and services below them.
        two(&|n| {
            (
                format!("team{n}.slice/work{n}.service"),
                format!("team{n}.slice"),
            )
        }),
        // Docker and Podman by systemd and by cgroupfs.
        two(&|n| {
            let scope = format!("docker-{}.scope", id(n));
            (format!("system.slice/{scope}"), scope)
        }),
        two(&|n| (format!("docker/{}", id(n)), format!("**/docker/{}", id(n)))),
        two(&|n| {
            let scope = format!("libpod-{}.scope", id(n));
            (format!("machine.slice/{scope}/container"), scope)
        }),
        two(&|n| {
            let scope = format!("nerdctl-{}.scope", id(n));
            (format!("system.slice/{scope}"), scope)
        }),
    ];
    // Pods as the kubelet lays them out, by both drivers, of each class, with
    // containers of containerd and CRI-O.
    for (class, runtime) in [
        ("", "crio"),
        ("burstable", "cri-containerd"),
        ("besteffort", "crio"),
    ] {
        let slash = if class.is_empty() {
            String::new()
        } else {
            format!("/{class}")
        };
        let dash = if class.is_empty() {
            String::new()
        } else {
            format!("-{class}")
        };
        let parent = if class.is_empty() {
            String::new()
        } else {
            format!("/kubepods{dash}.slice")
        };
        let n0 = match class {
            "" => 10,
            "burstable" => 20,
            _ => 30,
        };
        all.push(two(&|n| {
            let pod = format!("pod{}", dashes(n0 + n));
            (format!("kubepods{slash}/{pod}/{}", id(n)), pod)
        }));
        all.push(two(&|n| {
            let pod = format!("kubepods{dash}-pod{}.slice", under(n0 + n));
            (
                format!("kubepods.slice{parent}/{pod}/{runtime}-{}.scope", id(n)),
                pod,
            )
        }));
    }
    all
}

struct Scene {
    _servers: Vec<Server>,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
        let servers = [(REAL, 0), (OF_A, 0), (OF_B, 0)]
            .into_iter()
            .map(|(address, _)| {
                Server::start(&lab, &format!("{address}:{PORT}"), Behaviour::TellPeer)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            _servers: servers,
            _dns: dns,
            lab,
        })
    }

    /// The host at another place for each of two namespaces, seen in that
    /// namespace alone.
    fn agent(&self, rules: &[String]) -> Result<Agent> {
        let of = |namespace: &str, endpoint: &str| {
            policy::tcp_static(HOST, PORT, &[endpoint])
                .replace("namespace: default", &format!("namespace: {namespace}"))
                .replace("spec:\n", "spec:\n  exportTo: [\".\"]\n")
        };
        // Through the agent, so that there are records.
        let rule = |namespace: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: db\n  namespace: {namespace}\nspec:\n  host: {HOST}\n  exportTo: [\".\"]\n  trafficPolicy:\n    connectionPool:\n      tcp:\n        idleTimeout: 60s\n"
            )
        };
        let mut builder = self
            .lab
            .agent()
            .policy("a", &policy::join(&[&of("a", OF_A), &rule("a")]))?
            .policy("b", &policy::join(&[&of("b", OF_B), &rule("b")]))?;
        for rule in rules {
            builder = builder.setting("--workload", rule);
        }
        builder.start()
    }

    fn client(&self, cgroup: &str, script: &str) -> Result<Spawn> {
        self.client_in(self.lab.app(), cgroup, script)
    }

    fn client_in(&self, namespace: &netns::Namespace, cgroup: &str, script: &str) -> Result<Spawn> {
        let cgroup = self.lab.cgroup(cgroup)?;
        Ok(self
            .lab
            .spawn_in(namespace, &cgroup, "/usr/bin/python3")
            .args(["-I", "-c", script]))
    }
}

/// Prints the address that the name has, and the service's word about it.
const LOOK: &str = r#"
import os, socket
address = socket.getaddrinfo("db.example.com", 7000, socket.AF_INET, socket.SOCK_STREAM)[0][4]
with socket.create_connection(address, 5) as s:
    line = s.makefile().readline().strip()
print(address[0], line, os.getpid())
"#;

#[test]
fn each_namespace_sees_its_own_services() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    let layouts = layouts();
    let mut rules = Vec::new();
    for pair in &layouts {
        for ((_, pattern), namespace) in pair.iter().zip(["a", "b"]) {
            rules.push(format!("{pattern}={namespace}"));
        }
    }
    // Half of them are there before the agent, half are made while it runs.
    for (number, pair) in layouts.iter().enumerate() {
        if number % 2 == 0 {
            for (path, _) in pair {
                lab.cgroup(path)?;
            }
        }
    }
    let agent = scene.agent(&rules)?;
    let mut expected = 0;
    for pair in &layouts {
        for ((path, _), (namespace, endpoint)) in pair.iter().zip([("a", OF_A), ("b", OF_B)]) {
            let text = scene.client(path, LOOK)?.text()?;
            let mut words = text.split_whitespace();
            let (address, pid) = (words.next().unwrap_or_default(), words.nth(1));
            assert!(address.starts_with("240.240."), "{path}: {text}");
            expected += 1;
            let records = agent.wait_records(expected)?;
            let pid: u64 = pid.unwrap_or_default().parse()?;
            let record = records
                .iter()
                .find(|record| record.pid() == pid)
                .unwrap_or_else(|| panic!("{path}: {records:?}"));
            assert_eq!(record.endpoint(), format!("{endpoint}:{PORT}"), "{path}");
            assert_eq!(record.namespace(), namespace, "{path}");
            assert_eq!(record.process(), "python3");
            assert_eq!(record.uid(), 0);
            assert_eq!(record.cgroup(), inode(&lab.cgroup(path)?)?);
        }
    }
    // A third, to which neither is exported: as if nothing were registered.
    let text = scene.client("other.slice", LOOK)?.text()?;
    assert!(text.starts_with(REAL), "{text}");
    assert_eq!(agent.records()?.len(), expected, "{:?}", agent.records()?);
    // Nor by the address that another namespace has for it.
    scene
        .client(
            "other.slice",
            &format!(
                "import socket\ns = socket.create_connection(('{OF_A}', {PORT}), 5)\n\
                 assert s.recv(1)\n"
            ),
        )?
        .text()?;
    assert_eq!(agent.records()?.len(), expected);
    agent.stop()
}

/// Two pods in two namespaces and two network namespaces: their own policy,
/// and their own source address upstream.
#[test]
fn pods_have_their_own_policy_and_source_address() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    let layouts = layouts();
    let pair = layouts.last().unwrap_or_else(|| panic!("no layouts"));
    let rules: Vec<String> = pair
        .iter()
        .zip(["a", "b"])
        .map(|((_, pattern), namespace)| format!("{pattern}={namespace}"))
        .collect();
    let agent = scene.agent(&rules)?;
    for (number, ((path, _), endpoint)) in (1..).zip(pair.iter().zip([OF_A, OF_B])) {
        let pod = lab.pod(number)?;
        let script = format!(
            "{}\n{LOOK}",
            "import socket, time\n\
             while not socket.gethostbyname('db.example.com').startswith('240.240.'):\n    time.sleep(0.05)"
        );
        let text = scene.client_in(&pod, path, &script)?.text()?;
        let source = text.split_whitespace().nth(1).unwrap_or_default();
        assert_eq!(source, netns::address(number), "{text}");
        let records = agent.wait_records(usize::from(number))?;
        let record = &records[usize::from(number) - 1];
        assert_eq!(record.endpoint(), format!("{endpoint}:{PORT}"));
    }
    agent.stop()
}

/// `sourceLabels` and `sourceNamespace` of routes go by the namespace and
/// labels that a rule gives to a cgroup.
#[test]
fn labels_of_the_caller_decide_routes_and_rules() -> Result<()> {
    let scene = Scene::new()?;
    let entry = policy::tcp_static(HOST, PORT, &[REAL]);
    let canary = policy::tcp_static("canary.example.com", PORT, &[OF_A]);
    let routes = format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: db
  namespace: default
spec:
  hosts: [{HOST}]
  tcp:
    - match:
        - sourceLabels: {{tier: canary}}
      route:
        - destination: {{host: canary.example.com, port: {{number: {PORT}}}}}
    - match:
        - sourceNamespace: batch
      route:
        - destination: {{host: canary.example.com, port: {{number: {PORT}}}}}
    - route:
        - destination: {{host: {HOST}, port: {{number: {PORT}}}}}
"
    );
    for cgroup in ["canary.slice", "batch.slice", "plain.slice"] {
        scene.lab.cgroup(cgroup)?;
    }
    let agent = scene
        .lab
        .agent()
        .policy("db", &policy::join(&[&entry, &canary, &routes]))?
        .setting("--workload", "canary.slice=default,tier=canary")
        .setting("--workload", "batch.slice=batch")
        .setting("--workload", "plain.slice=default,tier=stable")
        .start()?;
    for (count, (cgroup, endpoint)) in (1..).zip([
        ("canary.slice", OF_A),
        ("batch.slice", OF_A),
        ("plain.slice", REAL),
    ]) {
        scene.client(cgroup, LOOK)?.text()?;
        let records = agent.wait_records(count)?;
        assert_eq!(
            records[count - 1].endpoint(),
            format!("{endpoint}:{PORT}"),
            "{cgroup}: {records:?}"
        );
    }
    agent.stop()
}

/// Opens three connections and keeps them; prints how many were served.
const THREE: &str = r#"
import socket
address = socket.getaddrinfo("db.example.com", 7000, socket.AF_INET, socket.SOCK_STREAM)[0][4]
kept, served = [], 0
for _ in range(3):
    s = socket.socket()
    s.settimeout(10)
    kept.append(s)
    try:
        s.connect(address)
        served += bool(s.recv(1))
    except (ConnectionRefusedError, ConnectionResetError):
        pass
print(served)
"#;

/// `workloadSelector`, `exportTo` of rules and of routes, and `sourceLabels`
/// choose limits and endpoints for each caller of one service.
#[test]
fn rules_and_routes_are_for_the_callers_that_they_name() -> Result<()> {
    let scene = Scene::new()?;
    let rule = |name: &str, namespace: &str, host: &str, more: &str, connections: u32| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  host: {host}
{more}  trafficPolicy:
    connectionPool: {{tcp: {{maxConnections: {connections}, idleTimeout: 60s}}}}
"
        )
    };
    let canary = "  workloadSelector: {matchLabels: {tier: canary}}\n";
    let own = "  exportTo: [\".\"]\n";
    let routes = |namespace: &str, more: &str, matches: &str, host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: db, namespace: {namespace}}}
spec:
  hosts: [{HOST}]
{more}  tcp:
  - match: [{matches}]
    route: [{{destination: {{host: {host}, port: {{number: {PORT}}}}}}}]
  - route: [{{destination: {{host: {HOST}, port: {{number: {PORT}}}}}}}]
"
        )
    };
    let other = "other.example.com";
    let documents = [
        policy::tcp_static(HOST, PORT, &[REAL]),
        policy::tcp_static(other, PORT, &[OF_A]),
        // One of the workloads named, two of the others, one of a namespace
        // with a rule of its own.
        rule("canary", "default", HOST, canary, 1),
        rule("all", "default", HOST, "", 2),
        rule("own", "b", HOST, own, 1),
        rule("other", "default", other, "", 1),
        // Where callers of namespace `a` with a label go is another service.
        routes(
            "a",
            own,
            &format!("{{port: {PORT}, sourceLabels: {{tier: batch}}}}"),
            other,
        ),
    ];
    let callers = [
        ("canary.slice", "default,tier=canary", 1, REAL),
        ("plain.slice", "default,tier=stable", 2, REAL),
        ("b.slice", "b,tier=stable", 1, REAL),
        ("batch.slice", "a,tier=batch", 1, OF_A),
        ("a.slice", "a,tier=canary", 2, REAL),
    ];
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    let mut builder = scene.lab.agent().policy("db", &policy::join(&texts))?;
    for (cgroup, caller, ..) in callers {
        scene.lab.cgroup(cgroup)?;
        builder = builder.setting("--workload", format!("{cgroup}={caller}"));
    }
    let agent = builder.start()?;
    let mut count = 0;
    for (cgroup, _, served, endpoint) in callers {
        let text = scene.client(cgroup, THREE)?.text()?;
        assert_eq!(text.trim(), served.to_string(), "{cgroup}");
        count += 3;
        let records = agent.wait_records(count)?;
        let last = &records[count - 3..];
        let over = last.iter().filter(|record| record.has_flag("UO")).count();
        assert_eq!(over, 3 - served, "{cgroup}: {last:?}");
        for record in last.iter().filter(|record| !record.has_flag("UO")) {
            assert_eq!(record.endpoint(), format!("{endpoint}:{PORT}"), "{cgroup}");
        }
    }
    agent.stop()
}

fn inode(path: &std::path::Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.ino())
}
