//! The documents of the policy's keeper, in the shapes of the admin API.

use std::fmt::Write;
use std::time::SystemTime;

use super::api::{ApiError, Pending};
use super::query::Query;
use super::view;
use crate::policy::diagnostic::Diagnostic;
use crate::policy::document::{Document, DocumentId};
use crate::policy::schema::meta::Kind;
use crate::policy::source::keeper::{Keeper, KeeperError};
use crate::policy::store::{Change, DocumentStatus};

impl From<KeeperError> for ApiError {
    fn from(error: KeeperError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What of the documents is asked for.
struct Select {
    kind: Option<Kind>,
    name: Option<String>,
    namespace: Option<String>,
}

impl Select {
    fn of(query: &Query) -> Result<Self, ApiError> {
        let text = |key: &str| query.get(key).map(str::to_owned);
        let kind = query.get("kind").map(|kind| {
            Kind::parse(kind).ok_or_else(|| ApiError::Invalid(format!("there is no kind {kind}")))
        });
        Ok(Self {
            kind: kind.transpose()?,
            name: text("name"),
            namespace: text("namespace"),
        })
    }

    fn fits(&self, id: Option<&DocumentId>) -> bool {
        let Some(id) = id else {
            // What it is cannot be told: only who asks for all sees it.
            return self.kind.is_none() && self.name.is_none() && self.namespace.is_none();
        };
        self.kind.is_none_or(|kind| kind == id.kind)
            && self.name.as_deref().is_none_or(|name| *name == *id.name)
            && self
                .namespace
                .as_deref()
                .is_none_or(|name| *name == *id.namespace)
    }
}

/// `GET /v1/documents`; `kind`, `name`, `namespace`.
pub fn documents(keeper: &Keeper, query: &Query) -> Pending<Vec<view::Document>> {
    let keeper = keeper.clone();
    let select = Select::of(query);
    Box::pin(async move {
        let select = select?;
        let now = SystemTime::now();
        let list = keeper.documents().await?;
        let fits = list.iter().filter(|one| select.fits(one.id.as_ref()));
        Ok(fits.map(|one| document(one, now)).collect())
    })
}

/// `POST /v1/documents`; `dry-run`.
pub fn apply(keeper: &Keeper, text: String, query: &Query) -> Pending<Vec<view::Change>> {
    let keeper = keeper.clone();
    let dry_run = dry_run(query);
    Box::pin(async move {
        let dry_run = dry_run?;
        let changes = keeper.apply(text, dry_run).await?;
        Ok(changes.iter().map(|one| change(one, dry_run)).collect())
    })
}

/// `DELETE /v1/documents`; `dry-run`.
pub fn delete(keeper: &Keeper, text: String, query: &Query) -> Pending<Vec<view::Change>> {
    let keeper = keeper.clone();
    let dry_run = dry_run(query);
    Box::pin(async move {
        let dry_run = dry_run?;
        let changes = keeper.delete(text, dry_run).await?;
        Ok(changes.iter().map(|one| change(one, dry_run)).collect())
    })
}

fn dry_run(query: &Query) -> Result<bool, ApiError> {
    match query.get("dry-run") {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(ApiError::Invalid(format!(
            "dry-run is `true` or `false`, not {other:?}"
        ))),
    }
}

fn name(id: &DocumentId) -> view::DocumentName {
    view::DocumentName {
        kind: id.kind.name().to_owned(),
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
    }
}

fn problem(problem: &Diagnostic) -> view::Problem {
    let mut message = match &problem.field {
        Some(field) => format!("{field}: "),
        None => String::new(),
    };
    let _ = write!(message, "{} [{}]", problem.message, problem.rule);
    if let Some(help) = &problem.help {
        let _ = write!(message, "; {help}");
    }
    let place = problem.location.as_ref();
    view::Problem {
        severity: problem.severity.to_string(),
        source: place.map_or_else(String::new, |place| place.source.name.to_string()),
        line: place.map_or(0, |place| place.span.line),
        column: place.map_or(0, |place| place.span.column.into()),
        message,
    }
}

fn document(one: &DocumentStatus, now: SystemTime) -> view::Document {
    let id = match &one.id {
        Some(id) => name(id),
        None => view::DocumentName {
            kind: "File".to_owned(),
            namespace: String::new(),
            name: one.file.to_string(),
        },
    };
    let object = match &one.document {
        Some(document) => document.to_json(),
        None => serde_json::json!({
            "kind": id.kind,
            "metadata": { "name": id.name, "namespace": id.namespace },
        }),
    };
    let status = |yes: bool| if yes { "True" } else { "False" };
    view::Document {
        id,
        source: one.file.to_string(),
        line: one.line,
        hosts: one.hosts(),
        accepted: one.accepted,
        previous_in_force: !one.accepted && one.in_force(),
        generation: one.generation,
        conditions: one
            .conditions
            .iter()
            .map(|condition| view::Condition {
                kind: condition.kind.to_owned(),
                status: status(condition.status).to_owned(),
                reason: condition.reason.to_owned(),
                message: condition.message.to_string(),
            })
            .collect(),
        age_seconds: now
            .duration_since(one.read_at)
            .unwrap_or_default()
            .as_secs(),
        problems: one.problems.iter().map(problem).collect(),
        object,
    }
}

fn change(change: &Change, dry_run: bool) -> view::Change {
    let object = |document: &Option<std::sync::Arc<Document>>| {
        document.as_ref().filter(|_| dry_run).map(|d| d.to_json())
    };
    view::Change {
        id: change.id.as_ref().map(name).unwrap_or_default(),
        outcome: change.outcome.word().to_owned(),
        problems: change.problems.iter().map(problem).collect(),
        before: object(&change.before),
        after: object(&change.after),
    }
}
