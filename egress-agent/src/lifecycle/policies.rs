//! The documents that the agent goes by, read from its policy files.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::policy::compile::{Ids, compile};
use crate::policy::diagnostic::Diagnostic;
use crate::policy::document::{Document, DocumentId, Documents, Outcome};
use crate::policy::load::load_paths;
use crate::policy::snapshot::Snapshot;
use crate::policy::{Options, UnknownFields};
use crate::settings::Settings;
use crate::settings::value::UnknownFields as Setting;

/// Owner of the documents in force.
pub(super) struct Policies {
    ids: Ids,
    held: HashMap<DocumentId, Arc<Document>>,
    /// Documents whose newest version was refused.
    pub(super) rejected: usize,
    /// When the newest snapshot was compiled.
    pub(super) changed: Instant,
}

/// What reading and compiling need to know.
pub(super) fn options(settings: &Settings) -> Options {
    Options {
        default_namespace: Arc::clone(&settings.namespace.0),
        root_namespace: Arc::clone(&settings.root_namespace.0),
        cluster_domain: Arc::clone(&settings.cluster_domain.0),
        unknown_fields: match settings.unknown_fields {
            Setting::Error => UnknownFields::Error,
            Setting::Warn => UnknownFields::Warn,
        },
        locality: settings.locality.clone().unwrap_or_default(),
        mesh_identity: false,
    }
}

impl Policies {
    pub(super) fn new() -> Self {
        Self {
            ids: Ids::default(),
            held: HashMap::new(),
            rejected: 0,
            changed: Instant::now(),
        }
    }

    /// Documents in force.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Reads all files again. A document that is refused leaves its previous
    /// version in force; one that is gone is gone.
    pub(super) fn read(&mut self, paths: &[PathBuf], options: &Options) -> Arc<Snapshot> {
        let loaded = load_paths(paths, options);
        let mut held = HashMap::new();
        self.rejected = 0;
        for outcome in loaded.outcomes {
            match outcome {
                Outcome::Valid(document) => {
                    held.insert(document.id.clone(), document);
                }
                Outcome::Rejected(id) => {
                    self.rejected += 1;
                    if let Some((id, before)) = id.and_then(|id| self.held.remove_entry(&id)) {
                        tracing::warn!("{id}: its previous version stays in force");
                        held.entry(id).or_insert(before);
                    }
                }
                Outcome::Skipped => {}
            }
        }
        self.held = held;
        let documents = Documents {
            list: self.held.values().cloned().collect(),
        };
        let (snapshot, across) = compile(&mut self.ids, &documents, options);
        for problem in loaded.diagnostics.iter().chain(&across) {
            tell(problem);
        }
        self.changed = Instant::now();
        tracing::info!(
            documents = self.held.len(),
            rejected = self.rejected,
            services = snapshot.services.len(),
            generation = snapshot.generation,
            "policy compiled"
        );
        Arc::new(snapshot)
    }
}

fn tell(problem: &Diagnostic) {
    if problem.is_error() {
        tracing::error!("{problem}");
    } else {
        tracing::warn!("{problem}");
    }
}
