//! `apply` and `delete`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::applied::Prepared;
use super::version::same_content;
use super::{SourceName, Store, StoreError, read_all, winner};
use crate::policy::diagnostic::{Diagnostic, Severity};
use crate::policy::document::{Document, DocumentId, Outcome};

/// What became of one document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// There was none before.
    Created,
    /// It takes the place of another version.
    Configured,
    /// It is in force already.
    Unchanged,
    /// It is gone.
    Deleted,
    /// Nothing was done.
    Rejected,
}

impl Changed {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Rejected => "rejected",
        }
    }
}

/// One document of an apply or delete.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which; `None` when that cannot be told.
    pub id: Option<DocumentId>,
    /// What became of it.
    pub outcome: Changed,
    /// Why, and what else is to be said.
    pub problems: Vec<Diagnostic>,
    /// The version that was in force before.
    pub before: Option<Arc<Document>>,
    /// The version that is in force now.
    pub after: Option<Arc<Document>>,
}

impl Change {
    fn rejected(id: Option<DocumentId>, problems: Vec<Diagnostic>) -> Self {
        Self {
            id,
            outcome: Changed::Rejected,
            problems,
            before: None,
            after: None,
        }
    }
}

fn refusal(id: Option<&DocumentId>, rule: &'static str, message: String, help: &str) -> Diagnostic {
    let problem = Diagnostic::new(Severity::Error, rule, message).help(help);
    match id {
        Some(id) => problem.document(id.to_string()),
        None => problem,
    }
}

impl Store {
    /// The version of a document that is in force.
    fn in_force(&self, id: &DocumentId) -> Option<(&SourceName, &Arc<Document>)> {
        let version = winner(self.entries.get(id)?)?;
        Some((&version.source, version.valid.as_ref()?))
    }

    /// Takes the documents of a text, each for itself, and keeps them in the
    /// state directory. They are in force with the next
    /// [`compile`](Self::compile). With `dry_run`, nothing is done.
    ///
    /// # Errors
    /// When they cannot be kept: then what counts is what the directory has.
    pub fn apply(&mut self, text: String, dry_run: bool) -> Result<Vec<Change>, StoreError> {
        let Some((_, applied)) = &self.state else {
            return Err(StoreError::NoDirectory);
        };
        let read = match read_all("<apply>", text.into_bytes(), &self.options) {
            Ok(read) => read,
            Err(problem) => return Ok(vec![Change::rejected(None, vec![*problem])]),
        };
        let now = jiff::Timestamp::now();
        let mut changes = Vec::new();
        let mut prepared: BTreeMap<DocumentId, Prepared> = BTreeMap::new();
        let (mut refused, mut accepted) = (Vec::new(), Vec::new());
        for (outcome, problems) in read {
            let document = match outcome {
                Outcome::Skipped => continue,
                Outcome::Rejected(id) => {
                    if let Some(id) = &id {
                        refused.push((id.clone(), problems.clone()));
                    }
                    changes.push(Change::rejected(id, problems));
                    continue;
                }
                Outcome::Valid(document) => document,
            };
            let id = document.id.clone();
            accepted.push(id.clone());
            let before = match prepared.get(&id) {
                // Twice in this text.
                Some(earlier) => earlier.kept.document.clone(),
                None => self.in_force(&id).map(|(_, old)| Arc::clone(old)),
            };
            let own = prepared.contains_key(&id)
                || self.in_force(&id).map(|(source, _)| source) == Some(&SourceName::Applied);
            let outcome = match &before {
                None => Changed::Created,
                Some(old) if own && same_content(old, &document) => Changed::Unchanged,
                Some(_) => Changed::Configured,
            };
            if outcome != Changed::Unchanged {
                let ready = applied.prepare(&document, now, &self.options);
                match ready {
                    Ok(ready) if ready.kept.document.is_some() => {
                        prepared.insert(id.clone(), ready);
                    }
                    other => {
                        let why = match other {
                            Ok(_) => "what is kept of it does not read back".to_owned(),
                            Err(error) => error,
                        };
                        let message = format!("it cannot be kept: {why}");
                        let help = "report this with the document";
                        let problem = refusal(Some(&id), "keep", message, help);
                        changes.push(Change::rejected(Some(id), vec![problem]));
                        continue;
                    }
                }
            }
            changes.push(Change {
                id: Some(id),
                outcome,
                problems,
                before,
                after: Some(document),
            });
        }
        if dry_run {
            return Ok(changes);
        }
        self.note_refused(refused, &accepted);
        if prepared.is_empty() {
            return Ok(changes);
        }
        let Some((directory, applied)) = &self.state else {
            return Err(StoreError::NoDirectory);
        };
        let prepared: Vec<Prepared> = prepared.into_values().collect();
        if let Err(error) = applied.write(&prepared) {
            let path = directory.clone();
            // Some may be in their places.
            self.load_applied();
            return Err(StoreError::Directory { path, error });
        }
        for one in prepared {
            self.keep(one.kept);
        }
        Ok(changes)
    }

    /// Notes with applied documents that a newer version of them was refused, or
    /// that none is any more. A document that was never applied has no place to
    /// note it at; whoever applied it was told.
    fn note_refused(
        &mut self,
        refused: Vec<(DocumentId, Vec<Diagnostic>)>,
        accepted: &[DocumentId],
    ) {
        for id in accepted {
            if let Some(version) = self.version_mut(&SourceName::Applied, id)
                && version.rejected.take().is_some()
            {
                version.problems.clear();
            }
        }
        for (id, problems) in refused {
            if let Some(version) = self.version_mut(&SourceName::Applied, &id) {
                let line = problems.iter().find_map(|p| p.location.as_ref());
                version.rejected = Some(line.map_or(0, crate::policy::diagnostic::Location::line));
                version.read_at = SystemTime::now();
                version.problems = problems;
            }
        }
    }

    /// Removes the applied documents that a text names; nothing but kind,
    /// namespace and name is looked at. With `dry_run`, nothing is done.
    ///
    /// # Errors
    /// When the files cannot be removed: then what counts is what is left.
    pub fn delete_text(&mut self, text: String, dry_run: bool) -> Result<Vec<Change>, StoreError> {
        let read = match read_all("<delete>", text.into_bytes(), &self.options) {
            Ok(read) => read,
            Err(problem) => return Ok(vec![Change::rejected(None, vec![*problem])]),
        };
        let mut ids = Vec::new();
        let mut changes = Vec::new();
        for (outcome, problems) in read {
            match outcome {
                Outcome::Skipped => {}
                Outcome::Valid(document) => ids.push(document.id.clone()),
                Outcome::Rejected(Some(id)) => ids.push(id),
                Outcome::Rejected(None) => changes.push(Change::rejected(None, problems)),
            }
        }
        changes.extend(self.delete(&ids, dry_run)?);
        Ok(changes)
    }

    /// Removes applied documents.
    ///
    /// # Errors
    /// When the files cannot be removed: then what counts is what is left.
    pub fn delete(&mut self, ids: &[DocumentId], dry_run: bool) -> Result<Vec<Change>, StoreError> {
        let Some((directory, applied)) = &self.state else {
            return Err(StoreError::NoDirectory);
        };
        let mut changes = Vec::new();
        let mut gone = Vec::new();
        for id in ids {
            let versions = self.entries.get(id).map(Vec::as_slice).unwrap_or_default();
            let ours = |v: &&super::Version| v.source == SourceName::Applied;
            let before = self.in_force(id).map(|(_, old)| Arc::clone(old));
            if gone.contains(id) || !versions.iter().any(|v| ours(&v)) {
                let problem = match versions.iter().find(|v| !ours(v)) {
                    Some(other) => refusal(
                        Some(id),
                        "not-applied",
                        format!("{id} was not applied; it comes from {}", other.source),
                        "remove it from that file",
                    ),
                    None => refusal(
                        Some(id),
                        "not-found",
                        format!("there is no {id}"),
                        "`egressctl get` lists all documents",
                    ),
                };
                changes.push(Change::rejected(Some(id.clone()), vec![problem]));
                continue;
            }
            let others = versions.iter().filter(|v| !ours(v) && v.valid.is_some());
            let next = others.max_by_key(|v| v.order);
            let problems = next.map(|next| {
                let message = format!("{id} stays, as it also comes from {}", next.source);
                Diagnostic::new(Severity::Warning, "same-document", message)
                    .help("remove it from that file as well")
                    .document(id.to_string())
            });
            gone.push(id.clone());
            changes.push(Change {
                id: Some(id.clone()),
                outcome: Changed::Deleted,
                problems: problems.into_iter().collect(),
                before,
                after: next.and_then(|next| next.valid.clone()),
            });
        }
        if dry_run || gone.is_empty() {
            return Ok(changes);
        }
        if let Err(error) = applied.remove(&gone) {
            let path = directory.clone();
            self.load_applied();
            return Err(StoreError::Directory { path, error });
        }
        for id in gone {
            self.remove(&SourceName::Applied, &id);
            if let Some(held) = self.sources.get_mut(&SourceName::Applied) {
                held.ids.remove(&id);
                held.read_at = Some(SystemTime::now());
            }
        }
        Ok(changes)
    }
}
