//! What watched files and objects have.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::version::SourceName;
use super::{Held, Store};
use crate::policy::Options;
use crate::policy::diagnostic::{Diagnostic, Location, Severity, Source, Span};
use crate::policy::document::{DocumentId, Outcome};
use crate::policy::load::{read_part, replaced};
use crate::policy::yaml::{self, Limits};

/// A file that changed.
#[derive(Debug)]
pub struct FileChange {
    /// Which.
    pub path: Arc<Path>,
    /// When it was changed, by its own account.
    pub modified: SystemTime,
    /// What is in it now.
    pub content: Content,
}

/// An object of a Kubernetes API server that changed.
#[derive(Debug)]
pub struct ObjectChange {
    /// `KIND/NAMESPACE/NAME`, which stands for the file name in messages.
    pub name: Arc<str>,
    /// When it was changed, by the server's account.
    pub modified: SystemTime,
    /// The document; `None` when it was deleted.
    pub text: Option<String>,
}

/// What is in a file.
#[derive(Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The file is gone, and its documents with it.
    Gone,
    /// It cannot be read; its documents stay in force.
    Unreadable(io::Error),
}

impl Store {
    /// Takes what is in files now. All of them are taken together, so that a
    /// document that moves from one to another is never missing. What comes
    /// back are the problems of these files.
    pub fn replace(&mut self, files: Vec<FileChange>) -> Vec<Diagnostic> {
        let changes = files.into_iter().map(|file| {
            let name = file.path.display().to_string();
            let source = SourceName::File(file.path);
            (source, name, file.modified, file.content)
        });
        self.take_all(changes)
    }

    /// Takes objects of a Kubernetes API server, as [`replace`](Self::replace)
    /// takes files.
    pub fn replace_objects(&mut self, objects: Vec<ObjectChange>) -> Vec<Diagnostic> {
        let changes = objects.into_iter().map(|object| {
            let content = match object.text {
                Some(text) => Content::Bytes(text.into_bytes()),
                None => Content::Gone,
            };
            let name = object.name.to_string();
            let source = SourceName::Object(object.name);
            (source, name, object.modified, content)
        });
        self.take_all(changes)
    }

    fn take_all(
        &mut self,
        changes: impl Iterator<Item = (SourceName, String, SystemTime, Content)>,
    ) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let mut removed: Vec<(SourceName, DocumentId)> = Vec::new();
        for (source, name, modified, content) in changes {
            let stamp = self.stamp(modified);
            match content {
                Content::Gone => {
                    if let Some(held) = self.sources.remove(&source) {
                        removed.extend(held.ids.into_iter().map(|id| (source.clone(), id)));
                    }
                }
                Content::Unreadable(error) => {
                    let message = format!("cannot be read: {error}");
                    let place = Source::nameless(&name);
                    let problem = Diagnostic::new(Severity::Error, "file", message)
                        .help("check the file and its permissions")
                        .at(&place, Span::default());
                    let held = self.sources.entry(source).or_default();
                    found.push(problem.clone());
                    held.problems = vec![problem];
                    held.read_at = Some(SystemTime::now());
                }
                Content::Bytes(bytes) => {
                    let gone = self.take_text(&source, &name, bytes, stamp, &mut found);
                    removed.extend(gone.into_iter().map(|id| (source.clone(), id)));
                }
            }
        }
        for (source, id) in removed {
            self.remove(&source, &id);
        }
        found
    }

    /// Takes a file or object; the documents that it has no more.
    fn take_text(
        &mut self,
        source: &SourceName,
        name: &str,
        bytes: Vec<u8>,
        stamp: (SystemTime, u64),
        found: &mut Vec<Diagnostic>,
    ) -> Vec<DocumentId> {
        let now = SystemTime::now();
        let before = self.sources.remove(source).unwrap_or_default();
        let mut held = Held {
            read_at: Some(now),
            ..Held::default()
        };
        // Something could not be read, so what is missing may be in it.
        let mut unclear = false;
        match read_all(name, bytes, &self.options) {
            Ok(read) => {
                for (outcome, problems) in read {
                    found.extend(problems.iter().cloned());
                    unclear |= self.take_one(source, outcome, problems, stamp, &mut held);
                }
            }
            Err(problem) => {
                found.push((*problem).clone());
                held.problems.push(*problem);
                unclear = true;
            }
        }
        let missing = before.ids.difference(&held.ids).cloned();
        let mut gone: Vec<DocumentId> = missing.collect();
        if unclear {
            for id in gone.drain(..) {
                if let Some(version) = self.version_mut(source, &id) {
                    version.rejected.get_or_insert(0);
                    version.read_at = now;
                    version.problems.clone_from(&held.problems);
                }
                held.ids.insert(id);
            }
        }
        self.sources.insert(source.clone(), held);
        gone
    }

    /// Takes one outcome; whether it is not clear which document it is.
    fn take_one(
        &mut self,
        source: &SourceName,
        outcome: Outcome,
        mut problems: Vec<Diagnostic>,
        stamp: (SystemTime, u64),
        held: &mut Held,
    ) -> bool {
        match outcome {
            Outcome::Skipped => {}
            Outcome::Rejected(None) => {
                held.problems.extend(problems);
                return true;
            }
            Outcome::Rejected(Some(id)) => {
                let line = problems.iter().find_map(|p| p.location.as_ref());
                let line = line.map_or(0, Location::line);
                held.ids.insert(id.clone());
                self.upsert(source, id, Err(line), problems, stamp);
            }
            Outcome::Valid(document) => {
                let id = document.id.clone();
                if !held.ids.insert(id.clone())
                    && let Some(twin) = self.version_mut(source, &id)
                    && let Some(old) = &twin.valid
                {
                    problems.push(replaced(old, &document));
                }
                self.upsert(source, id, Ok(document), problems, stamp);
            }
        }
        false
    }
}

/// Reads every document of a text.
pub(super) fn read_all(
    name: &str,
    bytes: Vec<u8>,
    options: &Options,
) -> Result<Vec<(Outcome, Vec<Diagnostic>)>, Box<Diagnostic>> {
    let text = yaml::text_of(name, bytes, &Limits::default())?;
    let name: Arc<str> = name.into();
    let mut out = Vec::new();
    for (part, lines_before) in yaml::parts(&text) {
        let source = Arc::new(Source {
            name: Arc::clone(&name),
            text: part.into(),
            lines_before,
        });
        out.extend(read_part(&source, options));
    }
    Ok(out)
}
