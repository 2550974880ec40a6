//! What is told of the documents.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::version::{Condition, DocumentStatus, SourceName, Version, conditions};
use super::{Held, Store, winner};
use crate::policy::diagnostic::{Diagnostic, Location};
use crate::policy::document::DocumentId;

/// How many documents there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Documents in force.
    pub in_force: usize,
    /// Documents and texts whose last version was rejected.
    pub rejected: usize,
}

impl Store {
    /// How many documents there are.
    pub fn counts(&self) -> Counts {
        let all = || self.entries.values();
        let unclear = self
            .sources
            .values()
            .filter(|held| !held.problems.is_empty());
        Counts {
            in_force: all().filter(|versions| winner(versions).is_some()).count(),
            rejected: all().flatten().filter(|v| v.rejected.is_some()).count() + unclear.count(),
        }
    }

    /// Every document of every source, by kind, namespace and name; then what
    /// could not be told.
    pub fn documents(&self) -> Vec<DocumentStatus> {
        let mut across: HashMap<&str, Vec<&Diagnostic>> = HashMap::new();
        for warning in &self.warnings {
            if let Some(document) = &warning.document {
                across.entry(document).or_default().push(warning);
            }
        }
        let mut out = Vec::with_capacity(self.entries.len());
        for (id, versions) in &self.entries {
            let title = id.to_string();
            let source = winner(versions).map(|v| &v.source);
            for version in versions {
                let mut problems = version.problems.clone();
                if source == Some(&version.source) {
                    let warnings = across.get(title.as_str()).into_iter().flatten();
                    problems.extend(warnings.copied().cloned());
                }
                out.push(self.status(id, version, source, problems));
            }
        }
        for (source, held) in &self.sources {
            out.extend(
                held.problems
                    .iter()
                    .map(|problem| unknown(source, held, problem)),
            );
        }
        out
    }

    fn status(
        &self,
        id: &DocumentId,
        version: &Version,
        winner: Option<&SourceName>,
        problems: Vec<Diagnostic>,
    ) -> DocumentStatus {
        let reference = version.valid.as_ref().map(|document| &document.reference);
        let written = problems.iter().find_map(|p| p.location.as_ref());
        let file = match (&version.source, reference, written) {
            (SourceName::File(path), ..) => path.display().to_string().into(),
            (SourceName::Object(name), ..) => Arc::clone(name),
            (SourceName::Applied, Some(reference), _) => Arc::clone(&reference.source),
            (SourceName::Applied, None, Some(place)) => Arc::clone(&place.source.name),
            (SourceName::Applied, None, None) => self
                .state
                .as_ref()
                .map_or_else(|| "".into(), |(path, _)| path.display().to_string().into()),
        };
        DocumentStatus {
            id: Some(id.clone()),
            source: version.source.clone(),
            file,
            line: match version.rejected {
                Some(line) => line,
                None => reference.map_or(0, |reference| reference.line),
            },
            document: version.valid.clone(),
            generation: version.since,
            read_at: version.read_at,
            accepted: version.rejected.is_none(),
            conditions: conditions(version, winner),
            problems,
        }
    }
}

fn unknown(source: &SourceName, held: &Held, problem: &Diagnostic) -> DocumentStatus {
    let location = problem.location.as_ref();
    let file = match (source, location) {
        (SourceName::File(path), _) => path.display().to_string().into(),
        (SourceName::Object(name), _) => Arc::clone(name),
        (SourceName::Applied, Some(location)) => Arc::clone(&location.source.name),
        (SourceName::Applied, None) => "".into(),
    };
    DocumentStatus {
        id: None,
        source: source.clone(),
        file,
        line: location.map_or(0, Location::line),
        document: None,
        generation: None,
        read_at: held.read_at.unwrap_or(SystemTime::UNIX_EPOCH),
        accepted: false,
        conditions: vec![Condition {
            kind: "Accepted",
            status: false,
            reason: "Invalid",
            message: problem.message.clone(),
        }],
        problems: vec![problem.clone()],
    }
}
