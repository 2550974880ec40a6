//! The versions of one document, and what is told of them.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::policy::diagnostic::Diagnostic;
use crate::policy::document::{Document, DocumentId, Spec};

/// Where documents come from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SourceName {
    /// A watched file.
    File(Arc<Path>),
    /// `egressctl apply`.
    Applied,
    /// An object of a Kubernetes API server: `KIND/NAMESPACE/NAME`.
    Object(Arc<str>),
}

impl std::fmt::Display for SourceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Applied => f.write_str("egressctl apply"),
            Self::Object(_) => f.write_str("the Kubernetes API server"),
        }
    }
}

/// What a document of a source is, as it was last read and as it is in force.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) source: SourceName,
    /// When its content came, and the how-manieth it was: the last one wins.
    pub(super) order: (SystemTime, u64),
    /// When it was last read.
    pub(super) read_at: SystemTime,
    /// The last version that was valid.
    pub(super) valid: Option<Arc<Document>>,
    /// The snapshot with which it came in force; `None` while it is not.
    pub(super) since: Option<u64>,
    /// The version that was read last was rejected; where it begins.
    pub(super) rejected: Option<u32>,
    /// Problems of the version that was read last.
    pub(super) problems: Vec<Diagnostic>,
}

/// `True` or `False` with a reason, as Kubernetes writes conditions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// `Accepted`: the version that was read last is valid. `InForce`: some
    /// version of this source is in force.
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: bool,
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: Box<str>,
}

/// A document of a source and what became of it.
#[derive(Clone, Debug)]
pub struct DocumentStatus {
    /// Kind, namespace and name; `None` for text that could not be told.
    pub id: Option<DocumentId>,
    /// Where it comes from.
    pub source: SourceName,
    /// The file that it stands in.
    pub file: Arc<str>,
    /// Line of its first line, from 1; 0 when not known.
    pub line: u32,
    /// The last valid version.
    pub document: Option<Arc<Document>>,
    /// The snapshot with which it came in force, if it is.
    pub generation: Option<u64>,
    /// When it was last read.
    pub read_at: SystemTime,
    /// The version that was read last is valid.
    pub accepted: bool,
    /// `Accepted` and `InForce`.
    pub conditions: Vec<Condition>,
    /// What is wrong, within the document and between documents.
    pub problems: Vec<Diagnostic>,
}

impl DocumentStatus {
    /// A version of this source is in force.
    pub fn in_force(&self) -> bool {
        self.generation.is_some()
    }

    /// Hosts that the document is for.
    pub fn hosts(&self) -> Vec<String> {
        let Some(document) = &self.document else {
            return Vec::new();
        };
        match &document.spec {
            Spec::ServiceEntry(spec) => spec.hosts.iter().map(|h| h.value.to_string()).collect(),
            Spec::VirtualService(spec) => spec.hosts.iter().map(|h| h.value.to_string()).collect(),
            Spec::DestinationRule(spec) => spec.host.iter().map(|h| h.value.to_string()).collect(),
            Spec::Secret(_) => Vec::new(),
        }
    }
}

/// Whether two versions were read from the same text at the same place.
pub(super) fn same_text(a: &Document, b: &Document) -> bool {
    let (from, to) = (&a.source, &b.source);
    a.reference == b.reference
        && from.name == to.name
        && from.lines_before == to.lines_before
        && from.text == to.text
}

/// Whether two versions say the same, wherever they stand.
pub(super) fn same_content(a: &Document, b: &Document) -> bool {
    // What is printed has no places, and of a Secret no data.
    let data = match (&a.spec, &b.spec) {
        (Spec::Secret(a), Spec::Secret(b)) => a == b,
        _ => true,
    };
    data && a.to_json() == b.to_json()
}

/// `Accepted` and `InForce` of a version; `winner` is the source whose version
/// is in force.
pub(super) fn conditions(version: &Version, winner: Option<&SourceName>) -> Vec<Condition> {
    let wins = winner == Some(&version.source);
    let accepted = version.rejected.is_none();
    let errors = version.problems.iter().filter(|p| p.is_error());
    let first = errors.map(|p| &*p.message).next().unwrap_or_default();
    let accepted_condition = if accepted {
        Condition {
            kind: "Accepted",
            status: true,
            reason: "Valid",
            message: "the document is valid".into(),
        }
    } else {
        Condition {
            kind: "Accepted",
            status: false,
            reason: "Invalid",
            message: first.into(),
        }
    };
    let (status, reason, message) = match (wins, accepted, winner) {
        (true, true, _) => (true, "ThisVersion", "this version is in force".into()),
        (true, false, _) => (
            true,
            "PreviousVersion",
            "this version was rejected; the previous version stays in force".into(),
        ),
        (false, _, Some(winner)) => (
            false,
            "Overridden",
            format!("the version of {winner}, which came later, is in force").into(),
        ),
        (false, true, None) => (false, "Pending", "it comes with the next snapshot".into()),
        (false, false, None) => (
            false,
            "NeverAccepted",
            "no version of it was ever valid".into(),
        ),
    };
    vec![
        accepted_condition,
        Condition {
            kind: "InForce",
            status,
            reason,
            message,
        },
    ]
}
