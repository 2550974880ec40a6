//! Compiling what changed, and what it can act on, and keeping the rest.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::clusters::{Clusters, Policies, Slots};
use super::related::{self, Joint, Related};
use super::{Ids, Part, build, index_hosts};
use crate::numbers::Known;
use crate::policy::Options;
use crate::policy::diagnostic::Diagnostic;
use crate::policy::document::{Document, DocumentId, Spec};
use crate::policy::model::HostPattern;
use crate::policy::snapshot::{Cluster, Service, ServiceId, Snapshot};

/// The documents in force and what they were compiled to.
#[derive(Debug, Default)]
pub struct Compiler {
    ids: Ids,
    related: Related,
    /// Each with the services that come from it.
    documents: HashMap<ById, Box<[ServiceId]>>,
    policies: Policies,
    snapshot: Arc<Snapshot>,
    warnings: Vec<Diagnostic>,
}

/// A document, found by its identity.
#[derive(Debug)]
struct ById(Arc<Document>);

impl Borrow<DocumentId> for ById {
    fn borrow(&self) -> &DocumentId {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

/// What the changed documents are and were.
struct Touched {
    documents: HashSet<DocumentId>,
    /// What joins others to them, or did.
    joints: Vec<Joint>,
    /// Services that came from them as they were.
    services: HashSet<ServiceId>,
}

/// What is compiled again, and what stays as it was.
struct Split {
    stays: Vec<Arc<Service>>,
    goes: Vec<Arc<Service>>,
    clusters: Vec<Arc<Cluster>>,
    /// Places of clusters that go.
    free: Vec<usize>,
}

impl Compiler {
    /// Goes on with the numbers of services that an agent before gave out. To
    /// be called before any document is there.
    pub fn go_on_with(&mut self, known: Known) {
        self.ids.go_on_with(known);
    }

    /// The warnings that came with the snapshot, by place.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// Takes the documents that are new or other (`Some`) or gone (`None`), and
    /// makes the next snapshot. With `anew`, every document is compiled again,
    /// as is needed when `options` are others; `changes` are all documents
    /// then.
    pub fn update(
        &mut self,
        changes: impl IntoIterator<Item = (DocumentId, Option<Arc<Document>>)>,
        options: &Options,
        anew: bool,
    ) -> Arc<Snapshot> {
        if anew {
            self.related = Related::default();
            self.documents.clear();
        }
        let mut secrets: Vec<(DocumentId, Option<Arc<Document>>)> = Vec::new();
        let mut touched = Touched {
            documents: HashSet::new(),
            joints: Vec::new(),
            services: HashSet::new(),
        };
        for (id, document) in changes {
            if let Some((ById(old), services)) = self.documents.remove_entry(&id) {
                touched.joints.extend(self.related.remove(&old, options));
                touched.services.extend(services);
            }
            if let Some(document) = &document {
                touched
                    .joints
                    .extend(self.related.insert(document, options));
                let key = ById(Arc::clone(document));
                self.documents.insert(key, Box::default());
            }
            if id.kind == crate::policy::schema::meta::Kind::Secret {
                secrets.push((id.clone(), document));
            }
            touched.documents.insert(id);
        }
        let generation = self.ids.begin();
        let everything = anew || touched.documents.len() * 2 > self.documents.len();
        let (again, split, part) = self.compile(touched, everything, options);
        self.ids
            .forget(split.goes.iter().map(|service| &service.key));
        self.replace_warnings(&again, part.warnings, everything);
        let mut services: HashMap<DocumentId, Vec<ServiceId>> = HashMap::new();
        for (id, service) in part.origins {
            services.entry(id).or_default().push(service);
        }
        for id in &again {
            if let Some(held) = self.documents.get_mut(id) {
                *held = services.remove(id).unwrap_or_default().into();
            }
        }
        let secrets = self.secrets(secrets, anew);
        let snapshot = assemble(
            &self.snapshot,
            generation,
            split,
            part.services,
            part.clusters,
            part.lost,
            secrets,
        );
        self.snapshot = Arc::new(snapshot);
        self.policies.tidy();
        Arc::clone(&self.snapshot)
    }

    /// Compiles everything that the changed documents can act on, and, when
    /// that leaves gaps among the clusters, also what fills them.
    fn compile(
        &mut self,
        touched: Touched,
        mut everything: bool,
        options: &Options,
    ) -> (HashSet<DocumentId>, Split, Part) {
        let mut again = touched.documents;
        if !everything {
            again.extend(self.related.closure(touched.joints, options));
        }
        loop {
            everything |= again.len() * 2 > self.documents.len();
            let split = if everything {
                self.split_all()
            } else {
                self.split(&again, &touched.services)
            };
            let mut documents: Vec<&Arc<Document>> = if everything {
                self.documents
                    .keys()
                    .map(|ById(document)| document)
                    .collect()
            } else {
                let known = again
                    .iter()
                    .filter_map(|id| self.documents.get_key_value(id));
                known.map(|(ById(document), _)| document).collect()
            };
            documents.sort_by(|a, b| a.by_age(b));
            let next = if everything {
                0
            } else {
                self.snapshot.clusters.len()
            };
            let slots = Slots::new(split.free.clone(), next);
            let policies = std::mem::take(&mut self.policies);
            let clusters = Clusters::new(slots, policies);
            let (part, policies) = build(&mut self.ids, &documents, options, clusters);
            self.policies = policies;
            let total = split.clusters.len() + part.clusters.len();
            let mut joints = Vec::new();
            // What lies behind the end moves into the gaps.
            for cluster in split.clusters.iter().filter(|c| c.index >= total) {
                let service = self.snapshot.by_id.get(&cluster.target.service);
                let origin = service.and_then(|service| origin(&service.entry));
                let document = origin.and_then(|id| self.documents.get_key_value(&id));
                if let Some((ById(document), _)) = document {
                    joints.extend(related::joints(document, options));
                }
            }
            if joints.is_empty() || everything {
                if everything {
                    again.extend(
                        self.documents
                            .keys()
                            .map(|ById(document)| document.id.clone()),
                    );
                }
                return (again, split, part);
            }
            let before = again.len();
            again.extend(self.related.closure(joints, options));
            // Never without end.
            everything |= again.len() == before;
        }
    }

    fn split_all(&self) -> Split {
        Split {
            stays: Vec::new(),
            goes: self.snapshot.services.clone(),
            clusters: Vec::new(),
            free: Vec::new(),
        }
    }

    fn split(&self, again: &HashSet<DocumentId>, former: &HashSet<ServiceId>) -> Split {
        let ids = again.iter().filter_map(|id| self.documents.get(id));
        let ids = ids.flat_map(|services| services.iter()).chain(former);
        let ids: HashSet<ServiceId> = ids.copied().collect();
        let (goes, stays) = (self.snapshot.services.iter().cloned())
            .partition(|service: &Arc<Service>| ids.contains(&service.id));
        let (gone, clusters): (Vec<Arc<Cluster>>, Vec<_>) =
            (self.snapshot.clusters.iter().cloned())
                .partition(|cluster| ids.contains(&cluster.target.service));
        Split {
            stays,
            goes,
            clusters,
            free: gone.iter().map(|cluster| cluster.index).collect(),
        }
    }

    fn replace_warnings(
        &mut self,
        again: &HashSet<DocumentId>,
        new: Vec<Diagnostic>,
        everything: bool,
    ) {
        if everything {
            self.warnings = new;
            return;
        }
        let titles: HashSet<String> = again.iter().map(DocumentId::to_string).collect();
        self.warnings.retain(|warning| {
            warning
                .document
                .as_deref()
                .is_none_or(|title| !titles.contains(title))
        });
        if !new.is_empty() {
            self.warnings.extend(new);
            super::problems::sort(&mut self.warnings);
        }
    }

    fn secrets(
        &self,
        changes: Vec<(DocumentId, Option<Arc<Document>>)>,
        anew: bool,
    ) -> super::SecretMap {
        let mut secrets = if anew {
            BTreeMap::new()
        } else {
            self.snapshot.secrets.clone()
        };
        for (id, document) in changes {
            let key = (id.namespace, id.name);
            match document.as_deref().map(|document| &document.spec) {
                Some(Spec::Secret(secret)) => secrets.insert(key, Arc::clone(secret)),
                _ => secrets.remove(&key),
            };
        }
        secrets
    }
}

/// The document that a service names as its own.
fn origin(reference: &crate::policy::model::DocumentRef) -> Option<DocumentId> {
    let mut kinds = crate::policy::schema::meta::Kind::ALL.into_iter();
    Some(DocumentId {
        kind: kinds.find(|kind| kind.name() == reference.kind)?,
        namespace: Arc::clone(&reference.namespace),
        name: Arc::clone(&reference.name),
    })
}

/// Puts what stays and what is new into one snapshot.
fn assemble(
    before: &Snapshot,
    generation: u64,
    split: Split,
    mut new: Vec<Arc<Service>>,
    new_clusters: Vec<Arc<Cluster>>,
    new_lost: super::LostMap,
    secrets: super::SecretMap,
) -> Snapshot {
    new.sort_by(|a, b| a.key.cmp(&b.key));
    let mut clusters = split.clusters;
    clusters.extend(new_clusters);
    clusters.sort_unstable_by_key(|cluster| cluster.index);

    if split.stays.is_empty() {
        let (by_host, wildcards) = index_hosts(&new);
        return Snapshot {
            generation,
            by_id: new.iter().map(|s| (s.id, Arc::clone(s))).collect(),
            clusters,
            by_host,
            wildcards,
            secrets,
            lost: new_lost,
            services: new,
        };
    }
    let mut by_id = before.by_id.clone();
    let mut by_host = before.by_host.clone();
    let mut lost = before.lost.clone();
    let mut wild = false;
    for service in &split.goes {
        by_id.remove(&service.id);
        lost.remove(&service.id);
        match &service.key.host {
            // All services of a host go together.
            HostPattern::Exact(host) => drop(by_host.remove(host)),
            HostPattern::Suffix(_) => wild = true,
        }
    }
    for service in &new {
        by_id.insert(service.id, Arc::clone(service));
        match &service.key.host {
            HostPattern::Exact(host) => by_host
                .entry(Arc::clone(host))
                .or_insert_with(|| Vec::with_capacity(1))
                .push(Arc::clone(service)),
            HostPattern::Suffix(_) => wild = true,
        }
    }
    lost.extend(new_lost);
    let mut services = split.stays;
    services.extend(new);
    // Two runs, each in order: the sort merges them.
    services.sort_by(|a, b| a.key.cmp(&b.key));
    let wildcards = if wild {
        index_hosts(services.iter().filter(|s| s.key.host.exact().is_none())).1
    } else {
        before.wildcards.clone()
    };
    Snapshot {
        generation,
        services,
        by_id,
        clusters,
        by_host,
        wildcards,
        secrets,
        lost,
    }
}
