//! The documents of the running agent: what each source has, which version of
//! each is in force, and why another is not.
//!
//! A document that is rejected leaves its previous version in force. One that
//! two sources have is taken from the source where it changed last. Nothing
//! here waits or watches; see [`source`](super::source).

mod applied;
mod change;
mod error;
mod files;
mod report;
mod version;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::Options;
use super::compile::Compiler;
use super::diagnostic::Diagnostic;
use super::document::{Document, DocumentId};
use super::load::replaced;
use super::snapshot::Snapshot;
use crate::numbers::Known;
use applied::{Applied, Kept};
use version::{Version, same_content, same_text};

pub use change::{Change, Changed};
pub use error::StoreError;
use files::read_all;
pub use files::{Content, FileChange, ObjectChange};
pub use report::Counts;
pub use version::{Condition, DocumentStatus, SourceName};

/// What a source has.
#[derive(Debug, Default)]
struct Held {
    ids: BTreeSet<DocumentId>,
    /// Problems of text of which it cannot be told which document it is.
    problems: Vec<Diagnostic>,
    read_at: Option<SystemTime>,
}

/// All documents.
#[derive(Debug)]
pub struct Store {
    options: Options,
    entries: BTreeMap<DocumentId, Vec<Version>>,
    sources: BTreeMap<SourceName, Held>,
    state: Option<(PathBuf, Applied)>,
    compiler: Compiler,
    sequence: u64,
    /// Documents that differ from those of the snapshot.
    dirty: BTreeSet<DocumentId>,
    /// Documents are read in another way than for the snapshot.
    anew: bool,
    /// The first snapshot was made: what comes now came later than it.
    started: bool,
    snapshot: Arc<Snapshot>,
    /// Warnings about documents of which other versions are in force.
    overridden: BTreeMap<DocumentId, Vec<Diagnostic>>,
    /// All warnings that came with the snapshot.
    warnings: Vec<Diagnostic>,
}

impl Store {
    /// A store that keeps applied documents in a state directory, with those
    /// that are there already.
    ///
    /// # Errors
    /// When the directory cannot be used. A file in it that is corrupt is no
    /// error: it is told with the documents.
    pub fn open(options: Options, state: &Path) -> Result<Self, StoreError> {
        let applied = Applied::open(state).map_err(|error| StoreError::Directory {
            path: state.to_owned(),
            error,
        })?;
        let mut store = Self::new(options);
        store.state = Some((state.to_owned(), applied));
        store.load_applied();
        Ok(store)
    }

    /// A store that takes files only.
    pub fn new(options: Options) -> Self {
        let mut compiler = Compiler::default();
        let snapshot = compiler.update([], &options, true);
        Self {
            options,
            entries: BTreeMap::new(),
            sources: BTreeMap::new(),
            state: None,
            compiler,
            sequence: 0,
            dirty: BTreeSet::new(),
            anew: true,
            started: false,
            snapshot,
            overridden: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    /// Goes on with the numbers of services that an agent before gave out. To be
    /// called before the first snapshot is made.
    pub fn go_on_with(&mut self, known: Known) {
        self.compiler.go_on_with(known);
    }

    /// How documents are read.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Changes how documents are read. Applied ones are read again at once;
    /// the files must be given again.
    pub fn set_options(&mut self, options: Options) {
        self.options = options;
        self.anew = true;
        self.load_applied();
    }

    fn load_applied(&mut self) {
        let Some((_, applied)) = &self.state else {
            return;
        };
        let (kept, problems) = applied.load(&self.options);
        let before = self
            .sources
            .remove(&SourceName::Applied)
            .unwrap_or_default();
        for one in kept {
            self.keep(one);
        }
        let held = self.sources.entry(SourceName::Applied).or_default();
        held.problems = problems;
        held.read_at = Some(SystemTime::now());
        let missing: Vec<_> = before.ids.difference(&held.ids).cloned().collect();
        for id in missing {
            self.remove(&SourceName::Applied, &id);
        }
    }

    fn keep(&mut self, kept: Kept) {
        let stamp = self.stamp(kept.at.into());
        let id = kept.id;
        let outcome = match kept.document {
            Some(document) => Ok(document),
            None => Err(0),
        };
        self.upsert(
            &SourceName::Applied,
            id.clone(),
            outcome,
            kept.problems,
            stamp,
        );
        let held = self.sources.entry(SourceName::Applied).or_default();
        held.ids.insert(id);
    }

    /// Later than all that came before, once the agent runs; before that, by
    /// the clock of the files.
    fn stamp(&mut self, modified: SystemTime) -> (SystemTime, u64) {
        self.sequence += 1;
        let now = SystemTime::now();
        let time = if self.started { now } else { modified.min(now) };
        (time, self.sequence)
    }

    fn version_mut(&mut self, source: &SourceName, id: &DocumentId) -> Option<&mut Version> {
        let versions = self.entries.get_mut(id)?;
        versions.iter_mut().find(|v| v.source == *source)
    }

    /// Takes what a source has of a document now: a valid version, or the line
    /// of one that is rejected.
    fn upsert(
        &mut self,
        source: &SourceName,
        id: DocumentId,
        outcome: Result<Arc<Document>, u32>,
        problems: Vec<Diagnostic>,
        order: (SystemTime, u64),
    ) {
        // Nearly always one.
        let versions = self.entries.entry(id.clone());
        let versions = versions.or_insert_with(|| Vec::with_capacity(1));
        let place = if let Some(place) = versions.iter().position(|v| v.source == *source) {
            place
        } else {
            versions.push(Version {
                source: source.clone(),
                order,
                read_at: SystemTime::now(),
                valid: None,
                since: None,
                rejected: None,
                problems: Vec::new(),
            });
            versions.len() - 1
        };
        let Some(version) = versions.get_mut(place) else {
            return;
        };
        version.read_at = SystemTime::now();
        version.problems = problems;
        match outcome {
            Err(line) => version.rejected = Some(line),
            Ok(document) => {
                version.rejected = None;
                let old = version.valid.as_ref();
                if old.is_some_and(|old| same_text(old, &document)) {
                    return;
                }
                if !old.is_some_and(|old| same_content(old, &document)) {
                    version.order = order;
                    version.since = None;
                }
                version.valid = Some(document);
                self.dirty.insert(id);
            }
        }
    }

    /// Removes the version of a source. When the document stands in another
    /// file where it was never valid, it was moved there and broken: its last
    /// valid version stays in force.
    fn remove(&mut self, source: &SourceName, id: &DocumentId) {
        let Some(versions) = self.entries.get_mut(id) else {
            return;
        };
        let Some(place) = versions.iter().position(|v| v.source == *source) else {
            return;
        };
        let old = versions.remove(place);
        let is_file = |source: &SourceName| matches!(source, SourceName::File(_));
        let mut heirs = versions.iter_mut().filter(|v| is_file(&v.source));
        if is_file(&old.source)
            && let Some(heir) = heirs.next()
            && heir.valid.is_none()
        {
            heir.valid = old.valid;
            heir.order = old.order;
            heir.since = old.since;
        }
        if versions.is_empty() {
            self.entries.remove(id);
        }
        self.dirty.insert(id.clone());
    }

    /// Whether the next snapshot will be another one.
    pub fn is_changed(&self) -> bool {
        self.anew || !self.dirty.is_empty()
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Compiles the documents that changed and those that they can act on.
    /// What comes with the snapshot are warnings about documents that do not
    /// fit each other.
    pub fn compile(&mut self) -> (Arc<Snapshot>, &[Diagnostic]) {
        if self.is_changed() {
            let anew = std::mem::take(&mut self.anew);
            let mut dirty = std::mem::take(&mut self.dirty);
            if anew {
                dirty = self.entries.keys().cloned().collect();
                self.overridden.clear();
            }
            let entries = &self.entries;
            let changes = dirty.iter().map(|id| {
                let version = entries.get(id).and_then(|versions| winner(versions));
                (id.clone(), version.and_then(|v| v.valid.clone()))
            });
            self.snapshot = self.compiler.update(changes, &self.options, anew);
            for id in dirty {
                self.settle(id);
            }
            self.warnings = self.compiler.warnings().to_vec();
            self.warnings
                .extend(self.overridden.values().flatten().cloned());
            self.started = true;
        }
        (Arc::clone(&self.snapshot), &self.warnings)
    }

    /// Notes which version of a document the snapshot has.
    fn settle(&mut self, id: DocumentId) {
        let Some(versions) = self.entries.get_mut(&id) else {
            self.overridden.remove(&id);
            return;
        };
        let source = winner(versions).map(|v| v.source.clone());
        for version in versions.iter_mut() {
            if source.as_ref() == Some(&version.source) {
                version.since.get_or_insert(self.snapshot.generation);
            } else {
                version.since = None;
            }
        }
        let warnings = overridden(versions);
        if warnings.is_empty() {
            self.overridden.remove(&id);
        } else {
            self.overridden.insert(id, warnings);
        }
    }
}

/// The version that is in force.
fn winner(versions: &[Version]) -> Option<&Version> {
    let valid = versions.iter().filter(|v| v.valid.is_some());
    valid.max_by_key(|v| v.order)
}

/// A warning for every version that another source's overrides.
fn overridden(versions: &[Version]) -> Vec<Diagnostic> {
    let Some(new) = winner(versions) else {
        return Vec::new();
    };
    let others = versions.iter().filter(|v| v.source != new.source);
    let pairs = others.filter_map(|old| Some((old.valid.as_ref()?, new.valid.as_ref()?)));
    pairs.map(|(old, new)| replaced(old, new)).collect()
}
