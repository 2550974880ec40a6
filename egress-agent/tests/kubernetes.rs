//! The documents of a Kubernetes API server, against a double that speaks real
//! HTTP and misbehaves as real ones do: no change is missed, nothing turns in
//! circles, nothing is left behind.
#![cfg(feature = "kubernetes")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

#[path = "../../tests/src/apiserver/mod.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared with the lab"
)]
mod apiserver;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::ApiServer;
use egress_agent::capture::sockets::{NetNs, Sockets};
use egress_agent::kubernetes::client::{Access, Clients};
use egress_agent::kubernetes::health::Board;
use egress_agent::policy::Options;
use egress_agent::policy::source::keeper::{Keeper, Places};
use egress_agent::policy::source::kubernetes::documents::Documents;
use egress_agent::policy::source::kubernetes::kept::Kept;
use egress_agent::policy::source::kubernetes::report;
use egress_agent::policy::store::SourceName;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

fn server() -> ApiServer {
    ApiServer::start(TcpListener::bind("127.0.0.1:0").unwrap(), None).unwrap()
}

/// With TLS and HTTP/2; and the certificate.
fn secure_server() -> (ApiServer, String) {
    let issued = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = ApiServer::start(listener, Some((&certificate, &key))).unwrap();
    (server, certificate)
}

fn entry(namespace: &str, name: &str, port: u64) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "hosts": [format!("{name}.{namespace}.example")], "resolution": "DNS",
            "location": "MESH_EXTERNAL",
            "ports": [{ "number": port, "name": "http", "protocol": "HTTP" }],
        },
    })
}

/// An agent's part that follows the server.
struct Follower {
    keeper: Keeper,
    board: Board,
    documents: Documents,
    tasks: Vec<JoinHandle<()>>,
    /// Removed with this.
    home: Option<tempfile::TempDir>,
}

impl Follower {
    async fn new(server: &ApiServer, authority: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut follower = Self::at(server, authority, home.path(), false).await;
        follower.home = Some(home);
        follower
    }

    async fn at(server: &ApiServer, authority: &str, state: &Path, reports: bool) -> Self {
        let kubeconfig = state.join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig(authority)).unwrap();
        let keeper = Keeper::start(Places {
            known: egress_agent::numbers::Known::default(),
            paths: Vec::new(),
            state: state.to_owned(),
            options: Options::default(),
        })
        .await
        .unwrap();
        let clients = Clients::new(&Access {
            kubeconfig: Some(kubeconfig),
            sockets: Sockets::unmarked(),
            netns: NetNs::current().unwrap(),
        })
        .await
        .unwrap();
        let client = clients.client().unwrap();
        let board = Board::new("n1");
        let documents = Documents::new(keeper.clone(), Kept::open(state).unwrap(), &board);
        let mut tasks = Vec::new();
        let (following, running) = (documents.clone(), client.clone());
        tasks.push(spawn_local(async move {
            following.run(&running).await.unwrap();
        }));
        if reports {
            let told = documents.clone();
            tasks.push(spawn_local(report::run(
                client,
                told,
                keeper.clone(),
                "n1".into(),
            )));
        }
        Self {
            keeper,
            board,
            documents,
            tasks,
            home: None,
        }
    }

    /// Ports of the entries in force, by namespace and name.
    fn ports(&self) -> BTreeMap<String, u16> {
        let published = self.keeper.published();
        let snapshot = Arc::clone(&published.borrow().snapshot);
        snapshot
            .services
            .iter()
            .map(|service| {
                let key = format!("{}/{}", service.entry.namespace, service.entry.name);
                (key, service.key.port)
            })
            .collect()
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let since = Instant::now();
        while !holds(self) {
            assert!(
                since.elapsed() < PATIENCE,
                "{what}: {:?}",
                self.board.report()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn in_step_with(&self, server: &ApiServer) {
        self.until("in step with the server", |me| me.ports() == stored(server))
            .await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What the server has, as [`Follower::ports`] shows it.
fn stored(server: &ApiServer) -> BTreeMap<String, u16> {
    server
        .objects("serviceentries")
        .iter()
        .map(|object| {
            let text = |field: &str| object["metadata"][field].as_str().unwrap();
            let port = object["spec"]["ports"][0]["number"].as_u64().unwrap();
            (
                format!("{}/{}", text("namespace"), text("name")),
                u16::try_from(port).unwrap(),
            )
        })
        .collect()
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test());
}

#[test]
fn five_thousand_objects_over_http2_and_every_change_after() {
    run(async || {
        let (server, authority) = secure_server();
        for n in 0..5000 {
            let (namespace, name) = (format!("ns{}", n % 50), format!("entry{n}"));
            server.apply("serviceentries", entry(&namespace, &name, 80));
        }
        let follower = Follower::new(&server, &authority).await;
        follower.in_step_with(&server).await;
        assert!(follower.board.is_synced());
        let lists = server.seen().iter().filter(|seen| !seen.is_watch()).count();
        // Three discoveries, ten pages of entries, one of each other kind.
        assert!(lists <= 3 + 10 + 2, "{lists} lists");

        let generation = |me: &Follower| me.keeper.published().borrow().snapshot.generation;
        let before = generation(&follower);
        for n in 0..100 {
            let (namespace, name) = (format!("ns{}", n % 50), format!("entry{n}"));
            match n % 3 {
                0 => server.delete("serviceentries", &namespace, &name),
                // The last of several counts.
                _ => (1..4).for_each(|port| {
                    server.apply("serviceentries", entry(&namespace, &name, 8000 + port));
                }),
            }
        }
        follower.in_step_with(&server).await;
        // Changes that come together are compiled together.
        assert!(generation(&follower) - before < 50);
        assert_eq!(server.streams(), 3);
        drop(follower);
        let since = Instant::now();
        while server.streams() > 0 {
            assert!(since.elapsed() < PATIENCE, "streams are left open");
            sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn no_change_is_missed_while_the_server_misbehaves() {
    run(async || {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let server = server();
        server.manners(|manners| manners.bookmarks = Duration::from_millis(50));
        let follower = Follower::new(&server, "").await;
        for round in 0..12 {
            for _ in 0..random.usize(1..30) {
                let namespace = format!("ns{}", random.u8(0..3));
                let name = format!("entry{}", random.u8(0..20));
                if random.u8(0..4) == 0 {
                    server.delete("serviceentries", &namespace, &name);
                } else {
                    let port = random.u64(1..60000);
                    server.apply("serviceentries", entry(&namespace, &name, port));
                }
            }
            match round % 6 {
                0 => server.cut(),
                1 => server.manners(|m| m.slow = Some(Duration::from_millis(1))),
                2 => {
                    server.compact();
                    server.cut();
                }
                3 => server.manners(|m| {
                    m.slow = None;
                    m.gone_at_once = true;
                }),
                4 => {
                    server.manners(|m| m.down = true);
                    server.cut();
                    server.apply("serviceentries", entry("ns0", "while-down", round + 1));
                    server.compact();
                    sleep(Duration::from_millis(50)).await;
                    server.manners(|m| m.down = false);
                }
                _ => server.manners(|m| m.gone_at_once = false),
            }
            sleep(Duration::from_millis(random.u64(0..100))).await;
        }
        server.manners(|manners| manners.slow = None);
        follower.in_step_with(&server).await;
        follower
            .until("no error is left", |me| me.board.report().error.is_none())
            .await;
        // Broken streams are not held on to.
        follower
            .until("one stream for each kind", |_| server.streams() == 3)
            .await;
    });
}

#[test]
fn a_server_that_refuses_is_not_asked_all_the_time() {
    run(async || {
        for misbehave in [
            (|manners: &mut apiserver::Manners| manners.end_at_once = true)
                as fn(&mut apiserver::Manners),
            |manners| manners.forbid = Some("entries".to_owned()),
            |manners| manners.down = true,
            |manners| manners.busy = Some(2),
        ] {
            let server = server();
            server.apply("serviceentries", entry("a", "one", 80));
            let follower = Follower::new(&server, "").await;
            follower.in_step_with(&server).await;
            server.manners(misbehave);
            server.cut();
            let before = server.seen().len();
            sleep(Duration::from_secs(3)).await;
            let asked = server.seen().len() - before;
            // Of three kinds, each with waits of 0.25 s and more that double.
            assert!(asked <= 24, "{asked} requests in 3 s");
            // What it had stays in force.
            assert_eq!(follower.ports().len(), 1);
            server.manners(|manners| *manners = apiserver::Manners::default());
            server.apply("serviceentries", entry("a", "two", 80));
            follower.in_step_with(&server).await;
        }
    });
}

#[test]
fn policy_of_the_last_run_is_in_force_while_the_server_is_away() {
    run(async || {
        let home = tempfile::tempdir().unwrap();
        let server = server();
        server.apply("serviceentries", entry("a", "one", 80));
        server.apply("serviceentries", entry("a", "two", 81));
        let first = Follower::at(&server, "", home.path(), false).await;
        first.in_step_with(&server).await;
        drop(first);
        server.manners(|manners| manners.down = true);

        let second = Follower::at(&server, "", home.path(), false).await;
        second.in_step_with(&server).await;
        assert!(!second.board.is_synced());
        second
            .until("the error is shown", |me| me.board.report().error.is_some())
            .await;
        let report = second.board.report();
        assert!(report.behind > Duration::ZERO, "{report:?}");

        server.delete("serviceentries", "a", "one");
        server.apply("serviceentries", entry("a", "three", 82));
        server.manners(|manners| manners.down = false);
        second.in_step_with(&server).await;
        drop(second);
        // What is half written counts as not there.
        let kept = home.path().join("kubernetes");
        let file = std::fs::read_dir(&kept)
            .unwrap()
            .flatten()
            .find(|file| file.file_name().to_string_lossy().ends_with(".yaml"))
            .unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        std::fs::write(file.path(), &text[..text.len() / 2]).unwrap();
        assert_eq!(Kept::open(home.path()).unwrap().load().len(), 1);
    });
}

#[test]
fn older_versions_are_found_and_missing_kinds_are_told() {
    run(async || {
        let server = server();
        server.manners(|manners| manners.istio = Some("v1alpha3"));
        server.apply("serviceentries", entry("a", "one", 80));
        let follower = Follower::new(&server, "").await;
        follower.in_step_with(&server).await;
        drop(follower);

        server.manners(|manners| manners.istio = None);
        let follower = Follower::new(&server, "").await;
        follower.until("synced", |me| me.board.is_synced()).await;
        let report = follower.board.report();
        let error = report.watches[0].error.clone().unwrap();
        assert!(error.contains("CustomResourceDefinitions"), "{error}");
        assert!(report.behind.is_zero());
    });
}

fn condition(server: &ApiServer, name: &str) -> Option<Value> {
    let object = server.object("serviceentries", "a", name)?;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    let ours = |condition: &&Value| condition["type"] == "egress-agent.dev/Accepted";
    conditions.iter().find(ours).cloned()
}

#[test]
fn problems_are_told_to_the_object_once_however_many_agents_there_are() {
    run(async || {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = server();
        let mut bad = entry("a", "bad", 80);
        bad["spec"]["resolutoin"] = json!("DNS");
        bad["status"] = json!({ "conditions": [{ "type": "Others", "status": "True" }] });
        server.apply("serviceentries", bad.clone());
        server.apply("serviceentries", entry("a", "good", 80));
        let follower = Follower::at(&server, "", home.path(), true).await;
        let second = Follower::at(&server, "", other.path(), true).await;
        follower
            .until("the condition", |_| condition(&server, "bad").is_some())
            .await;
        let told = condition(&server, "bad").unwrap();
        assert_eq!(told["status"], "False");
        assert_eq!(told["reason"], "Rejected");
        let message = told["message"].as_str().unwrap();
        assert!(message.contains("resolutoin"), "{message}");
        // Another controller's condition stands beside it.
        let object = server.object("serviceentries", "a", "bad").unwrap();
        assert_eq!(object["status"]["conditions"].as_array().unwrap().len(), 2);

        let events = server.objects("events");
        assert_eq!(events.len(), 1, "{events:#?}");
        assert_eq!(events[0]["involvedObject"]["name"], "bad");
        assert_eq!(events[0]["type"], "Warning");
        assert_eq!(condition(&server, "good"), None);

        // Mended: both say so.
        server.apply("serviceentries", entry("a", "bad", 80));
        follower
            .until("the condition is taken back", |_| {
                condition(&server, "bad").is_some_and(|told| told["status"] == "True")
            })
            .await;
        let normal = |event: &Value| event["type"] == "Normal";
        second
            .until("that it is well is told", |_| {
                server.objects("events").iter().any(normal)
            })
            .await;
        // Each agent may tell it of the generation that it saw, and no more.
        let writes = |server: &ApiServer| {
            let seen = server.seen();
            seen.iter().filter(|seen| seen.method != "GET").count()
        };
        sleep(Duration::from_secs(3)).await;
        let before = writes(&server);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(writes(&server), before, "reports go on without a change");
    });
}

/// Documents stand in a file too: the one that changed last counts, and the
/// object's name stands where a file's would.
#[test]
fn an_object_is_named_as_a_file_would_be() {
    run(async || {
        let server = server();
        let mut bad = entry("a", "bad", 80);
        bad["spec"]["ports"][0]["number"] = json!(70_000);
        server.apply("serviceentries", bad);
        let follower = Rc::new(Follower::new(&server, "").await);
        follower.documents.settled().await;
        follower
            .until("the document is known", |me| {
                me.keeper.published().borrow().counts.rejected == 1
            })
            .await;
        let documents = follower.keeper.documents().await.unwrap();
        let status = &documents[0];
        assert!(matches!(status.source, SourceName::Object(_)));
        assert_eq!(&*status.file, "ServiceEntry/a/bad");
        let problem = status.problems[0].to_string();
        assert!(problem.starts_with("ServiceEntry/a/bad:"), "{problem}");
    });
}
