//! `get` and `proxy-config`: lists from the agent.

use http::StatusCode;

use super::Failure;
use super::args::{Kind, Output, ProxyConfig, Select};
use super::client::{Client, ClientError};
use super::output;
use super::table::Column;
use crate::admin::view;

fn list(items: &[String]) -> String {
    items.join(",")
}

/// The first of a list, and how many more there are.
fn first(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [one, rest @ ..] => format!("{one} +{}", rest.len()),
    }
}

fn document(name: Option<&view::DocumentName>) -> String {
    name.map(|name| format!("{}/{}", name.namespace, name.name))
        .unwrap_or_default()
}

/// As kubectl writes ages.
pub(super) fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600, seconds / 60);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 if !seconds.is_multiple_of(60) && minutes < 10 => {
            format!("{minutes}m{}s", seconds % 60)
        }
        120..7200 => format!("{minutes}m"),
        7200..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

const SERVICES: &[Column<view::Service>] = &[
    Column::new("NAMESPACE", |s| s.namespace.clone()),
    Column::new("HOST", |s| s.host.clone()),
    Column::new("PORT", |s| s.port.to_string()),
    Column::new("PROTOCOL", |s| s.protocol.clone()),
    Column::new("RESOLUTION", |s| s.resolution.clone()),
    Column::new("PATH", |s| s.path.clone()),
    Column::new("ENDPOINTS", |s| format!("{}/{}", s.healthy, s.endpoints)),
    Column::new("OPEN", |s| s.connections.to_string()),
    Column::wide("ADDRESSES", |s| list(&s.addresses)),
    Column::wide("SERVICEENTRY", |s| document(Some(&s.service_entry))),
    Column::wide("DESTINATIONRULE", |s| document(s.destination_rule.as_ref())),
    Column::wide("VIRTUALSERVICE", |s| document(s.virtual_service.as_ref())),
    Column::wide("EXPORTED TO", |s| list(&s.export_to)),
    Column::wide("WHY THIS PATH", |s| s.reason.clone()),
];

const ENDPOINTS: &[Column<view::Endpoint>] = &[
    Column::new("HOST", |e| e.host.clone()),
    Column::new("PORT", |e| e.port.to_string()),
    Column::new("SUBSET", |e| e.subset.clone()),
    Column::new("ADDRESS", |e| e.address.clone()),
    Column::new("LOCALITY", |e| e.locality.clone()),
    Column::new("WEIGHT", |e| e.weight.to_string()),
    Column::new("HEALTH", |e| e.health.clone()),
    Column::new("CONNECTIONS", |e| e.connections.to_string()),
    Column::new("REQUESTS", |e| e.requests.to_string()),
    Column::new("FAILED", |e| format!("{}/{}", e.failed, e.total)),
    Column::new("LAST FAILURE", last_failure),
    Column::new("WHY", |e| e.reason.clone()),
    Column::wide("NAMESPACE", |e| e.namespace.clone()),
    Column::wide("NAME", |e| e.name.clone().unwrap_or_default()),
    Column::wide("PRIORITY", |e| e.priority.to_string()),
    Column::wide("EJECTIONS", |e| e.ejections.to_string()),
];

/// What it was, and how long ago.
fn last_failure(endpoint: &view::Endpoint) -> String {
    match endpoint.last_failure_seconds {
        Some(seconds) => format!("{} {} ago", endpoint.last_failure, age(seconds)),
        None => String::new(),
    }
}

const SECRETS: &[Column<view::Secret>] = &[
    Column::new("NAME", |s| s.name.clone()),
    Column::new("KIND", |s| s.kind.clone()),
    Column::new("STATE", |s| {
        secret_state(s, jiff::Timestamp::now()).to_owned()
    }),
    Column::new("DAYS", |s| {
        s.days_left.map(|days| days.to_string()).unwrap_or_default()
    }),
    Column::new("NOT AFTER", |s| s.not_after.clone()),
    Column::new("SUBJECT", |s| s.subject.clone()),
    Column::new("USED BY", |s| first(&s.used_by)),
    Column::wide("ISSUER", |s| s.issuer.clone()),
    Column::wide("NOT BEFORE", |s| s.not_before.clone()),
    Column::wide("SERIAL", |s| s.serial.clone()),
    Column::wide("NAMES", |s| list(&s.alternative_names)),
    Column::wide("SOURCE", |s| s.source.clone()),
    Column::wide("VERSION", |s| s.version.to_string()),
    Column::new("ERROR", |s| s.error.clone().unwrap_or_default()),
    Column::wide("REMARKS", |s| s.warnings.join("; ")),
];

/// A month's notice.
const SOON: jiff::SignedDuration = jiff::SignedDuration::from_hours(30 * 24);

pub(super) fn secret_state(secret: &view::Secret, now: jiff::Timestamp) -> &'static str {
    if secret.state == "stale" {
        return "stale";
    }
    if secret.error.is_some() {
        return "error";
    }
    match secret.not_after.parse::<jiff::Timestamp>() {
        Ok(end) if end < now => "expired",
        Ok(end) if end.duration_since(now) < SOON => "expires soon",
        Ok(_) => "valid",
        // A revocation list need not end.
        Err(_) => "",
    }
}

const NAMES: &[Column<view::Name>] = &[
    Column::new("HOST", |n| n.host.clone()),
    Column::new("VIRTUAL", |n| list(&n.virtual_addresses)),
    Column::new("RESOLVED", |n| first(&n.resolved)),
    Column::new("AGE", |n| n.age_seconds.map(age).unwrap_or_default()),
    Column::new("ERROR", |n| n.error.clone().unwrap_or_default()),
    Column::wide("REFRESH", |n| {
        n.refresh_seconds.map(age).unwrap_or_default()
    }),
    Column::wide("ALL ADDRESSES", |n| list(&n.resolved)),
];

fn document_state(document: &view::Document) -> &'static str {
    match document {
        document if document.accepted && document.generation.is_none() => {
            "accepted, another in force"
        }
        document if document.accepted => "accepted",
        document if document.previous_in_force => "rejected, previous in force",
        _ => "rejected",
    }
}

fn problems(document: &view::Document) -> String {
    let count = |severity: &str| {
        document
            .problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .count()
    };
    let plural = |n: usize, word: &str| match n {
        0 => None,
        1 => Some(format!("1 {word}")),
        n => Some(format!("{n} {word}s")),
    };
    let parts: Vec<String> = [
        plural(count("error"), "error"),
        plural(count("warning"), "warning"),
    ]
    .into_iter()
    .flatten()
    .collect();
    parts.join(", ")
}

const DOCUMENTS: &[Column<view::Document>] = &[
    Column::new("NAMESPACE", |d| d.id.namespace.clone()),
    Column::new("KIND", |d| d.id.kind.clone()),
    Column::new("NAME", |d| d.id.name.clone()),
    Column::new("HOSTS", |d| first(&d.hosts)),
    Column::new("STATE", |d| document_state(d).to_owned()),
    Column::new("PROBLEMS", problems),
    Column::new("AGE", |d| age(d.age_seconds)),
    Column::wide("SOURCE", |d| format!("{}:{}", d.source, d.line)),
    Column::wide("ALL HOSTS", |d| list(&d.hosts)),
    Column::wide("FIRST PROBLEM", |d| {
        d.problems
            .first()
            .map(|problem| problem.message.clone())
            .unwrap_or_default()
    }),
];

/// `proxy-config`.
pub(super) async fn proxy_config(
    client: &Client,
    what: ProxyConfig,
    host: Option<&str>,
    select: &Select,
) -> Result<(), Failure> {
    let parameters = [("host", host), ("namespace", select.namespace.as_deref())];
    let output = select.output.output;
    match what {
        ProxyConfig::Services => {
            let found: Vec<view::Service> = client.get("/v1/services", &parameters).await?;
            output::rows(output, SERVICES, &found, "no services")?;
        }
        ProxyConfig::Endpoints => {
            let found: Vec<view::Endpoint> = client.get("/v1/endpoints", &parameters).await?;
            output::rows(output, ENDPOINTS, &found, "no endpoints")?;
        }
        ProxyConfig::Secrets => {
            let found: Vec<view::Secret> = client.get("/v1/secrets", &parameters).await?;
            output::rows(output, SECRETS, &found, "no secrets in use")?;
        }
        ProxyConfig::Dns => {
            let found: Vec<view::Name> = client.get("/v1/dns", &parameters).await?;
            output::rows(output, NAMES, &found, "no names")?;
        }
    }
    Ok(())
}

/// `get`.
pub(super) async fn documents(
    client: &Client,
    kind: Option<Kind>,
    name: Option<&str>,
    select: &Select,
) -> Result<(), Failure> {
    let parameters = [
        ("kind", kind.map(Kind::name)),
        ("name", name),
        ("namespace", select.namespace.as_deref()),
    ];
    let found: Result<Vec<view::Document>, _> = client.get("/v1/documents", &parameters).await;
    let found = match found {
        Err(ClientError::Refused(StatusCode::NOT_FOUND, _)) => Vec::new(),
        other => other?,
    };
    if let (Some(kind), Some(name), true) = (kind, name, found.is_empty()) {
        let place = match &select.namespace {
            Some(namespace) => format!(" in namespace {namespace}"),
            None => String::new(),
        };
        return Err(Failure::Said(format!(
            "there is no {} {name}{place}; `egressctl get` lists all documents",
            kind.name()
        )));
    }
    match select.output.output {
        // One document as it is, several as a list.
        output @ (Output::Yaml | Output::Json) => match found.as_slice() {
            [one] if name.is_some() => output::value(output, &with_status(one))?,
            many => {
                let items: Vec<serde_json::Value> = many.iter().map(with_status).collect();
                let list = serde_json::json!({
                    "apiVersion": "v1",
                    "kind": "List",
                    "items": items,
                });
                output::value(output, &list)?;
            }
        },
        output => output::rows(output, DOCUMENTS, &found, "no documents")?,
    }
    Ok(())
}

/// The document with what the agent makes of it, in the shape of a Kubernetes
/// status.
fn with_status(document: &view::Document) -> serde_json::Value {
    let mut object = document.object.clone();
    if let Some(map) = object.as_object_mut() {
        map.insert(
            "status".to_owned(),
            serde_json::json!({
                "conditions": document.conditions,
                "observedGeneration": document.generation,
                "problems": document.problems,
                "source": format!("{}:{}", document.source, document.line),
            }),
        );
    }
    object
}
