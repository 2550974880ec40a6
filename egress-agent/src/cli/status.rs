//! `status`, `log` and `drain`.

use std::fmt::Write;
use std::time::Duration;

use http::Method;

use super::Failure;
use super::args::{Output, OutputArgument};
use super::client::{Client, ClientError};
use super::output;
use super::show::age;
use super::table::mood;
use crate::admin::view;

/// `status`.
pub(super) async fn status(client: &Client, form: OutputArgument) -> Result<(), Failure> {
    let status: view::Status = client.get("/v1/status", &[]).await?;
    match form.output {
        Output::Table | Output::Wide => output::text(&words(&status))?,
        other => output::value(other, &status)?,
    }
    Ok(())
}

/// The status for people.
pub(super) fn words(status: &view::Status) -> String {
    let mut text = String::new();
    let agent = &status.agent;
    let mut row = |title: &str, words: String| {
        let _ = writeln!(text, "{title:<12}{words}");
    };
    let style = mood(&agent.state);
    row(
        "Agent",
        format!(
            "{style}{}{style:#}, version {}, process {}, up {}, {} workers",
            agent.state,
            agent.version,
            agent.pid,
            age(agent.uptime_seconds),
            agent.workers
        ),
    );
    row("Connections", format!("{} open", agent.connections));
    if let Some(policy) = &status.policy {
        row(
            "Policy",
            format!(
                "generation {}, {} documents in force, {} rejected, changed {} ago",
                policy.generation,
                policy.documents,
                policy.rejected,
                age(policy.age_seconds)
            ),
        );
        row(
            "Services",
            format!(
                "{}: {} direct, {} through the agent",
                policy.services, policy.direct, policy.proxied
            ),
        );
    }
    if let Some(cluster) = &status.kubernetes {
        row("Kubernetes", kubernetes(cluster));
    }
    if let Some(capture) = &status.capture {
        row(
            "Capture",
            format!(
                "{} on {}, {} network namespaces",
                capture.programs.join(" "),
                capture.cgroup,
                capture.namespaces
            ),
        );
        if !capture.others.is_empty() {
            row("Beside", capture.others.join("; "));
        }
        let counted: Vec<String> = capture
            .counters
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        if !counted.is_empty() {
            row("Kernel", counted.join(", "));
        }
    }
    let file = agent.settings_file.as_deref();
    row("Settings", file.unwrap_or("no file").to_owned());
    row("Log", agent.log.clone());
    for warning in &status.warnings {
        let style = mood("warning");
        row("Warning", format!("{style}{warning}{style:#}"));
    }
    text
}

/// The API server in one line.
fn kubernetes(cluster: &view::Kubernetes) -> String {
    let state = match (&cluster.error, cluster.synced) {
        (Some(error), _) => {
            let style = mood("warning");
            let seen = age(cluster.age_seconds);
            format!("{style}last seen {seen} ago{style:#} ({error}); what it had then is in force")
        }
        (None, true) => "in step".to_owned(),
        (None, false) => "reading the first lists".to_owned(),
    };
    let objects: Vec<String> = cluster
        .watches
        .iter()
        .filter(|watch| !watch.resource.contains(' ') && watch.resource != "nodes")
        .map(|watch| format!("{} {}", watch.objects, watch.resource))
        .collect();
    let secrets: Vec<_> = cluster
        .watches
        .iter()
        .filter(|watch| watch.resource.starts_with("secrets "))
        .collect();
    let found: usize = secrets.iter().map(|watch| watch.objects).sum();
    format!(
        "{}, node {}, {state}; {}, {found} secrets",
        cluster.server,
        cluster.node,
        objects.join(", ")
    )
}

/// `log`.
pub(super) async fn log(client: &Client, filter: Option<&str>) -> Result<(), Failure> {
    let filter = if let Some(filter) = filter {
        let body = filter.to_owned();
        let log: view::Log = client.json(Method::PUT, "/v1/log", &[], body).await?;
        log.filter
    } else {
        let status: view::Status = client.get("/v1/status", &[]).await?;
        status.agent.log
    };
    output::text(&format!("{filter}\n"))?;
    Ok(())
}

/// Time between two looks whether the agent is gone.
const LOOK: Duration = Duration::from_millis(200);

/// `drain`.
pub(super) async fn drain(client: &Client, wait: bool) -> Result<(), Failure> {
    let draining: view::Draining = client.json(Method::POST, "/v1/drain", &[], "").await?;
    output::text(&format!(
        "draining {} connections, at most {}\n",
        draining.connections,
        age(draining.deadline_ms.div_ceil(1000))
    ))?;
    if !wait {
        return Ok(());
    }
    let gone = async {
        loop {
            let status: Result<view::Status, _> = client.get("/v1/status", &[]).await;
            if matches!(status, Err(ClientError::NotRunning(_))) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    // A little more than the agent gives itself.
    let limit = Duration::from_millis(draining.deadline_ms).saturating_add(Duration::from_secs(10));
    tokio::time::timeout(limit, gone).await.map_err(|_| {
        Failure::Said(format!(
            "the agent at {} did not stop within its drain deadline",
            client.socket()
        ))
    })?;
    output::text("stopped\n")?;
    Ok(())
}
