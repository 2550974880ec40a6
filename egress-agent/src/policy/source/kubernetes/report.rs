//! Tells problems of documents to the documents themselves: as Kubernetes
//! Events, and as a condition where the kind has a status subresource.
//!
//! Every node's agent sees the same problem. The name of an Event is made from
//! what it says, so that the first agent creates it and the others find it
//! there. The condition is written only where it differs from the one that is
//! there, and by each agent only once for each generation of a document, so
//! that agents of two versions do not overwrite each other for ever.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::documents::Documents;
use super::object::{Meta, hash};
use crate::kubernetes::KubernetesError;
use crate::kubernetes::backoff::Backoff;
use crate::policy::diagnostic::{Diagnostic, Severity};
use crate::policy::source::keeper::Keeper;
use crate::policy::store::{DocumentStatus, SourceName};

/// Type of the condition, and who reports.
pub const CONDITION: &str = "egress-agent.dev/Accepted";
const COMPONENT: &str = "egress-agent";
/// Time in which changes of the policy gather before their problems are told.
const GATHER: Duration = Duration::from_secs(1);
/// Between two requests, so that many problems make no storm.
const PACE: Duration = Duration::from_millis(100);
/// Time for one request.
const DEADLINE: Duration = Duration::from_secs(10);
/// Tries for one report.
const TRIES: u32 = 5;
/// Longest message of an Event, in bytes (`validation/events.go`).
const MESSAGE_MAX: usize = 1024;
/// Longest name of an object.
const NAME_MAX: usize = 253;

/// What is said of a document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Verdict {
    /// `Rejected`, `Warning` or `Accepted`.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Verdict {
    /// From what became of a document.
    pub(super) fn of(status: &DocumentStatus) -> Self {
        let told = |severity| {
            let problems = status.problems.iter();
            problems.filter(move |problem| problem.severity == severity)
        };
        let errors: Vec<_> = told(Severity::Error).collect();
        if !status.accepted || !errors.is_empty() {
            let mut message = words(errors.into_iter());
            if status.in_force() {
                message.push_str("; the previous version stays in force");
            }
            return Self {
                reason: "Rejected",
                message: limited(message),
            };
        }
        let warnings = words(told(Severity::Warning));
        if warnings.is_empty() {
            Self {
                reason: "Accepted",
                message: "the document is valid".to_owned(),
            }
        } else {
            Self {
                reason: "Warning",
                message: limited(warnings),
            }
        }
    }

    fn is_good(&self) -> bool {
        self.reason == "Accepted"
    }

    fn accepted(&self) -> &'static str {
        if self.reason == "Rejected" {
            "False"
        } else {
            "True"
        }
    }
}

/// Problems in one line each, with the field that they are about.
fn words<'a>(problems: impl Iterator<Item = &'a Diagnostic>) -> String {
    let mut text = String::new();
    for problem in problems {
        if !text.is_empty() {
            text.push_str("; ");
        }
        if let Some(field) = &problem.field {
            let _ = write!(text, "{field}: ");
        }
        text.push_str(&problem.message);
        if let Some(help) = &problem.help {
            let _ = write!(text, " ({help})");
        }
    }
    text
}

fn limited(mut text: String) -> String {
    if text.len() > MESSAGE_MAX {
        let end = text.floor_char_boundary(MESSAGE_MAX - 3);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// Reports for ever.
pub async fn run(client: Client, documents: Documents, keeper: Keeper, node: Arc<str>) {
    let mut reporter = Reporter {
        client,
        documents,
        node,
        said: HashMap::new(),
    };
    let mut published = keeper.published();
    loop {
        published.mark_unchanged();
        match keeper.documents().await {
            Ok(statuses) => reporter.report(statuses).await,
            Err(_) => return,
        }
        if published.changed().await.is_err() {
            return;
        }
        // Not all agents at the same moment.
        sleep(GATHER.mul_f64(1.0 + fastrand::f64())).await;
    }
}

struct Reporter {
    client: Client,
    documents: Documents,
    node: Arc<str>,
    /// What was said of each document, and of which generation.
    said: HashMap<Arc<str>, (i64, Verdict)>,
}

impl Reporter {
    async fn report(&mut self, statuses: Vec<DocumentStatus>) {
        let mut present = Vec::new();
        for status in statuses {
            let SourceName::Object(name) = &status.source else {
                continue;
            };
            present.push(Arc::clone(name));
            // Known from an earlier run only: wait for the server.
            let Some((meta, has_status)) = self.documents.meta(name) else {
                continue;
            };
            let verdict = Verdict::of(&status);
            let before = self.said.get(name);
            if before.is_some_and(|(generation, said)| {
                *generation == meta.generation && *said == verdict
            }) {
                continue;
            }
            let was_good = before.is_none_or(|(_, said)| said.is_good());
            // That all is well is news only after a problem.
            let news = !(verdict.is_good() && was_good);
            let differs = condition_differs(&meta, &verdict);
            if news {
                self.tell(&meta, &verdict).await;
            }
            if has_status && differs {
                self.write(name, &verdict).await;
            }
            self.said
                .insert(Arc::clone(name), (meta.generation, verdict));
        }
        present.sort();
        self.said
            .retain(|name, _| present.binary_search(name).is_ok());
    }

    /// Creates an Event, unless there is one that says the same.
    async fn tell(&self, meta: &Meta, verdict: &Verdict) {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &meta.namespace);
        let event = event(meta, verdict, &self.node);
        let what = format!("{} {}/{}", meta.resource.kind, meta.namespace, meta.name);
        retrying(&what, async || {
            match timeout(DEADLINE, api.create(&PostParams::default(), &event)).await {
                Err(_) => Err(KubernetesError::Slow("an Event")),
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => match KubernetesError::from(error) {
                    // Another node's agent was first.
                    error if error.status() == Some(409) => Ok(()),
                    error => Err(error),
                },
            }
        })
        .await;
    }

    /// Writes the condition, unless another agent has done so meanwhile.
    async fn write(&self, name: &Arc<str>, verdict: &Verdict) {
        retrying(name, async || {
            // What was watched last may be newer than what was judged.
            let Some((meta, _)) = self.documents.meta(name) else {
                return Ok(());
            };
            if !condition_differs(&meta, verdict) {
                return Ok(());
            }
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &meta.namespace, &meta.resource);
            let patch = Patch::Merge(status_patch(&meta, verdict, Timestamp::now()));
            let parameters = PatchParams::default();
            let asked = api.patch_status(&meta.name, &parameters, &patch);
            match timeout(DEADLINE, asked).await {
                Err(_) => Err(KubernetesError::Slow("a status")),
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => match KubernetesError::from(error) {
                    error if error.status() == Some(404) => Ok(()),
                    error => Err(error),
                },
            }
        })
        .await;
    }
}

/// Tries a few times; a report is not worth more.
async fn retrying(what: &str, attempt: impl AsyncFn() -> Result<(), KubernetesError>) {
    let mut backoff = Backoff::default();
    for tried in 1..=TRIES {
        sleep(PACE).await;
        match attempt().await {
            Ok(()) => return,
            Err(error) if error.status() == Some(403) || tried == TRIES => {
                tracing::warn!("a problem of {what} could not be told to it: {error}");
                return;
            }
            Err(_) => sleep(backoff.wait()).await,
        }
    }
}

fn condition(meta: &Meta) -> Option<&Value> {
    let mut conditions = meta.conditions.iter();
    conditions.find(|condition| condition.get("type").and_then(Value::as_str) == Some(CONDITION))
}

/// A condition is written for problems, and to take an older one back.
fn condition_differs(meta: &Meta, verdict: &Verdict) -> bool {
    match condition(meta) {
        None => !verdict.is_good(),
        Some(written) => {
            let same =
                |key: &str, value: &str| written.get(key).and_then(Value::as_str) == Some(value);
            !(same("status", verdict.accepted())
                && same("reason", verdict.reason)
                && same("message", &verdict.message))
        }
    }
}

/// A merge patch of the status. A list is replaced whole by such a patch, so
/// the others' conditions stand in it too, and the resource version makes the
/// server refuse it when one of them was changed meanwhile.
fn status_patch(meta: &Meta, verdict: &Verdict, now: Timestamp) -> Value {
    let mut conditions: Vec<Value> = meta
        .conditions
        .iter()
        .filter(|condition| condition.get("type").and_then(Value::as_str) != Some(CONDITION))
        .cloned()
        .collect();
    let since = condition(meta)
        .filter(|old| old.get("status").and_then(Value::as_str) == Some(verdict.accepted()))
        .and_then(|old| old.get("lastTransitionTime"))
        .cloned()
        .unwrap_or_else(|| json!(seconds(now)));
    conditions.push(json!({
        "type": CONDITION,
        "status": verdict.accepted(),
        "reason": verdict.reason,
        "message": verdict.message,
        "lastTransitionTime": since,
    }));
    json!({
        "apiVersion": meta.resource.api_version,
        "kind": meta.resource.kind,
        "metadata": { "resourceVersion": meta.version },
        "status": { "conditions": conditions },
    })
}

/// As the server writes times: whole seconds.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn event(meta: &Meta, verdict: &Verdict, node: &str) -> Event {
    let said = format!(
        "{}\n{}\n{}\n{}",
        meta.uid, meta.generation, verdict.reason, verdict.message
    );
    let suffix = format!(".{:016x}", hash(&said));
    let end = meta.name.floor_char_boundary(NAME_MAX - suffix.len());
    let name = format!("{}{suffix}", meta.name.get(..end).unwrap_or_default());
    let now = Time(Timestamp::now());
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(meta.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(meta.resource.api_version.clone()),
            kind: Some(meta.resource.kind.clone()),
            namespace: Some(meta.namespace.clone()),
            name: Some(meta.name.clone()),
            uid: Some(meta.uid.clone()),
            resource_version: Some(meta.version.clone()),
            field_path: None,
        },
        type_: Some(
            if verdict.is_good() {
                "Normal"
            } else {
                "Warning"
            }
            .to_owned(),
        ),
        reason: Some(verdict.reason.to_owned()),
        message: Some(verdict.message.clone()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: None,
        }),
        reporting_component: Some(format!("egress-agent.dev/{COMPONENT}")),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}
