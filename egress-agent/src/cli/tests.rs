#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::rc::Rc;

use clap::{CommandFactory, Parser};
use tokio::task::LocalSet;

use super::apply::unified;
use super::args::{Arguments, Command, Kind, Output, ProxyConfig};
use super::client::{Client, ClientError};
use super::show::{age, secret_state};
use super::stats::{Sample, samples};
use super::{Failure, online, status};
use crate::admin::socket::AdminListener;
use crate::admin::{AdminApi, ApiError, Pending, Query, documents, view};
use crate::policy::source::keeper::{Keeper, Places};
use crate::settings::value::AdminSocket;

fn parse(line: &[&str]) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from([&["egressctl"], line].concat())
}

#[test]
fn the_tree_is_sound_and_every_command_says_what_it_does() {
    fn look(command: &clap::Command) {
        let name = command.get_name();
        assert!(command.get_about().is_some(), "{name} has no help");
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{name} {}",
                argument.get_id()
            );
        }
        command
            .get_subcommands()
            .filter(|inner| inner.get_name() != "help")
            .for_each(look);
    }
    Arguments::command().debug_assert();
    let mut command = Arguments::command();
    command.build();
    look(&command);
}

#[test]
fn kinds_have_the_short_names_of_kubectl_and_any_case() {
    for word in ["se", "serviceentry", "ServiceEntries", "SE"] {
        let Command::Get { kind, .. } = parse(&["get", word]).unwrap().command else {
            panic!("not get");
        };
        assert_eq!(kind, Some(Kind::ServiceEntry));
    }
    assert_eq!(parse(&["get", "pods"]).unwrap_err().exit_code(), 2);
}

#[test]
fn options_stand_before_or_after_the_command() {
    for line in [
        &["--admin", "unix:/a/b", "pc", "endpoints", "-o", "wide"][..],
        &["pc", "endpoints", "--admin", "unix:/a/b", "-o", "wide"],
    ] {
        let arguments = parse(line).unwrap();
        assert_eq!(arguments.admin.to_string(), "unix:/a/b");
        let Command::ProxyConfig { what, select, .. } = arguments.command else {
            panic!("not proxy-config");
        };
        assert_eq!(
            (what, select.output.output),
            (ProxyConfig::Endpoints, Output::Wide)
        );
    }
    assert_eq!(
        parse(&["status", "--admin", "tcp:1"])
            .unwrap_err()
            .exit_code(),
        2
    );
}

#[test]
fn samples_of_metrics_are_read_whatever_their_labels_hold() {
    let text = "# TYPE a counter\n\
                a_total{x=\"} \\\" y\",z=\"1\"} 5 1700000000\n\
                plain 1.5\n\
                h_bucket{le=\"1\"} 3\n\
                # EOF\n";
    let found: Vec<Sample> = samples(text).collect();
    let sample = |name: &str, labels: &str, value: &str| Sample {
        name: name.to_owned(),
        labels: labels.to_owned(),
        value: value.to_owned(),
    };
    assert_eq!(
        found,
        [
            sample("a_total", "x=\"} \\\" y\",z=\"1\"", "5"),
            sample("plain", "", "1.5")
        ]
    );
}

#[test]
fn ages_are_short() {
    let cases = [
        (0, "0s"),
        (119, "119s"),
        (125, "2m5s"),
        (600, "10m"),
        (7200, "2h"),
        (172_800, "2d"),
    ];
    for (seconds, text) in cases {
        assert_eq!(age(seconds), text);
    }
}

#[test]
fn a_secret_says_when_it_is_about_to_end() {
    let now = "2026-08-01T00:00:00Z".parse().unwrap();
    let mut secret = view::Secret::default();
    for (end, state) in [
        ("2026-07-31T23:59:59Z", "expired"),
        ("2026-08-20T00:00:00Z", "expires soon"),
        ("2027-08-01T00:00:00Z", "valid"),
        ("", ""),
    ] {
        secret.not_after = end.to_owned();
        assert_eq!(secret_state(&secret, now), state);
    }
    secret.error = Some("no key".to_owned());
    assert_eq!(secret_state(&secret, now), "error");
}

#[test]
fn the_status_names_what_is_there_and_nothing_else() {
    let mut full = view::Status::default();
    full.agent.state = "ready".to_owned();
    full.warnings = vec!["look here".to_owned()];
    let plain =
        |status: &view::Status| anstream::adapter::strip_str(&status::words(status)).to_string();
    let text = plain(&full);
    assert!(text.starts_with("Agent       ready,"), "{text}");
    assert!(!text.contains("Policy"), "{text}");
    assert!(text.contains("Warning     look here"), "{text}");
    full.policy = Some(view::Policy {
        rejected: 1,
        ..view::Policy::default()
    });
    assert!(plain(&full).contains("1 rejected"));
}

struct Double;

impl AdminApi for Double {
    fn status(&self) -> view::Status {
        let mut status = view::Status::default();
        status.agent.log = "info".to_owned();
        status
    }
    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn metrics(&self) -> Result<String, ApiError> {
        Ok("a 1\n# EOF\n".to_owned())
    }
    fn drain(&self) -> Result<view::Draining, ApiError> {
        Err(ApiError::Unavailable("already draining".to_owned()))
    }
    fn set_log(&self, filter: &str) -> Result<view::Log, ApiError> {
        Err(ApiError::Invalid(format!("no filter: {filter}")))
    }
    fn services(&self, query: &Query) -> Result<Vec<view::Service>, ApiError> {
        assert_eq!(query.get("host"), Some("a&b=c"));
        Ok(vec![view::Service::default()])
    }
    fn documents(&self, _: &Query) -> Pending<Vec<view::Document>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// Runs command lines against an agent that is a double.
async fn against_double(lines: &[&[&str]]) -> Vec<Result<(), Failure>> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("admin.sock");
    let listener = AdminListener::bind(&path).unwrap();
    LocalSet::new()
        .run_until(async {
            tokio::task::spawn_local(listener.serve(Rc::new(Double)));
            let client = Client::new(&AdminSocket(path));
            let mut results = Vec::new();
            for line in lines {
                let command = parse(line).unwrap().command;
                results.push(online(&command, &client).await.map(|_| ()));
            }
            results
        })
        .await
}

#[tokio::test]
async fn commands_reach_the_agent_and_tell_what_it_said() {
    let lines: &[&[&str]] = &[
        &["status"],
        &["pc", "services", "a&b=c"],
        &["stats", "^a"],
        &["log"],
        &["log", "["],
        &["drain"],
        &["pc", "dns"],
        &["get"],
        &["get", "se", "none"],
        &["stats", "("],
    ];
    let results = against_double(lines).await;
    for (line, result) in lines.iter().zip(&results).take(4) {
        assert!(result.is_ok(), "{line:?}: {result:?}");
    }
    assert!(results[7].is_ok());
    let said = |n: usize| results[n].as_ref().unwrap_err().to_string();
    assert_eq!(said(4), "no filter: [");
    assert_eq!(said(5), "already draining");
    assert!(said(6).contains("older than this egressctl"), "{}", said(6));
    assert!(
        said(8).contains("there is no ServiceEntry none"),
        "{}",
        said(8)
    );
    assert!(said(9).contains("not a regular expression"), "{}", said(9));
}

#[tokio::test]
async fn without_an_agent_it_says_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let socket = AdminSocket(home.path().join("admin.sock"));
    let client = Client::new(&socket);
    let error = client
        .get::<view::Status>("/v1/status", &[])
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::NotRunning(_)));
    let text = error.to_string();
    assert!(text.contains(&format!("not running at {socket}")), "{text}");
    assert!(text.contains("systemctl start"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_stopped_does_not_hang_us() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("admin.sock");
    // Takes connections in its queue and never answers, as after SIGSTOP.
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = Client::new(&AdminSocket(path));
    let error = client
        .get::<view::Status>("/v1/status", &[])
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Silent(_)), "{error}");
}

/// A double whose policy is real.
struct WithPolicy(Keeper);

impl AdminApi for WithPolicy {
    fn status(&self) -> view::Status {
        view::Status::default()
    }
    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn metrics(&self) -> Result<String, ApiError> {
        Err(ApiError::NotServed)
    }
    fn drain(&self) -> Result<view::Draining, ApiError> {
        Err(ApiError::NotServed)
    }
    fn set_log(&self, _: &str) -> Result<view::Log, ApiError> {
        Err(ApiError::NotServed)
    }
    fn documents(&self, query: &Query) -> Pending<Vec<view::Document>> {
        documents::documents(&self.0, query)
    }
    fn apply(&self, text: String, query: &Query) -> Pending<Vec<view::Change>> {
        documents::apply(&self.0, text, query)
    }
    fn delete(&self, text: String, query: &Query) -> Pending<Vec<view::Change>> {
        documents::delete(&self.0, text, query)
    }
}

const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, namespace: shop}\nspec:\n  hosts: [a.example.com]\n  ports: [{number: 443, name: tls, protocol: TLS}]\n  resolution: DNS\n";

#[tokio::test]
async fn documents_are_applied_listed_and_deleted() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = write("good.yaml", ENTRY);
    let bad = write("bad.yaml", &ENTRY.replace("resolution", "resolutoin"));
    let keeper = Keeper::start(Places {
        paths: Vec::new(),
        state: home.path().join("state"),
        known: crate::numbers::Known::default(),
        options: crate::policy::Options::default(),
    })
    .await
    .unwrap();
    let path = home.path().join("admin.sock");
    let listener = AdminListener::bind(&path).unwrap();
    let work = async {
        tokio::task::spawn_local(listener.serve(Rc::new(WithPolicy(keeper))));
        let client = Client::new(&AdminSocket(path));
        let run = async |line: &[&str]| {
            let command = parse(line).unwrap().command;
            let code = online(&command, &client).await.unwrap();
            code == std::process::ExitCode::SUCCESS
        };
        let list = async || {
            let list: Vec<view::Document> = client.get("/v1/documents", &[]).await.unwrap();
            list
        };
        assert!(run(&["apply", "-f", &good, "--dry-run"]).await);
        assert!(run(&["diff", "-f", &good]).await);
        assert!(list().await.is_empty());
        assert!(run(&["apply", "-f", &good]).await);
        assert!(!run(&["apply", "-f", &good, "-f", &bad]).await);
        assert!(!run(&["diff", "-f", &bad]).await);
        let found = list().await;
        assert_eq!(found.len(), 1);
        let one = &found[0];
        assert!(one.accepted && one.generation.is_some());
        assert_eq!(one.hosts, ["a.example.com"]);
        let reasons: Vec<&str> = one.conditions.iter().map(|c| c.reason.as_str()).collect();
        assert_eq!(reasons, ["Valid", "ThisVersion"]);
        assert!(run(&["get", "se", "a", "-n", "shop", "-o", "yaml"]).await);
        // Of the default namespace there is none.
        assert!(!run(&["delete", "se", "a"]).await);
        assert!(run(&["delete", "se", "a", "-n", "shop", "--dry-run"]).await);
        assert_eq!(list().await.len(), 1);
        assert!(run(&["delete", "se", "a", "-n", "shop"]).await);
        assert!(list().await.is_empty());
        assert!(!run(&["delete", "-f", &good]).await);
    };
    LocalSet::new().run_until(work).await;
}

#[test]
fn a_delete_names_documents_or_files() {
    for wrong in [
        &["delete"][..],
        &["delete", "se"],
        &["delete", "se", "a", "-f", "x"],
        &["apply"],
        &["diff"],
    ] {
        assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
    }
}

#[test]
fn a_diff_shows_the_lines_that_change_alone() {
    let object =
        |host: &str| serde_json::json!({"kind": "ServiceEntry", "spec": {"hosts": [host]}});
    let mut change = view::Change {
        id: view::DocumentName {
            kind: "ServiceEntry".to_owned(),
            namespace: "shop".to_owned(),
            name: "a".to_owned(),
        },
        before: Some(object("a.com")),
        after: Some(object("b.com")),
        ..view::Change::default()
    };
    let plain = |change: &view::Change| anstream::adapter::strip_str(&unified(change)).to_string();
    assert_eq!(
        plain(&change),
        "--- in force/serviceentry/shop/a\n+++ new/serviceentry/shop/a\n@@ -1,4 +1,4 @@\n kind: ServiceEntry\n spec:\n   hosts:\n-  - a.com\n+  - b.com\n"
    );
    change.before = None;
    assert!(plain(&change).starts_with("--- /dev/null\n"));
    change.before.clone_from(&change.after);
    assert!(plain(&change).contains("where it comes from"));
}
