//! Which documents can act on each other: those of one host, of a wildcard
//! that covers it, or of a port without addresses. What no chain of these
//! joins compiles alike together or apart.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::hosts::{pattern, rule_pattern};
use crate::policy::Options;
use crate::policy::check::service_entry::port_protocol;
use crate::policy::document::{Document, DocumentId, Spec};
use crate::policy::model::HostPattern;
use crate::policy::schema::service_entry::{Port, Resolution};
use crate::policy::schema::virtual_service::VirtualService;

/// Something that joins the documents that have it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Joint {
    /// A host.
    Host(HostPattern),
    /// Every address on a port of which nothing tells the host, for clients of
    /// a namespace.
    Anywhere(Arc<str>, u16),
}

/// Documents by what joins them.
#[derive(Debug, Default)]
pub(super) struct Related {
    exact: HashMap<Arc<str>, Members>,
    suffixes: HashMap<Arc<str>, Members>,
    anywhere: HashMap<(Arc<str>, u16), Members>,
}

type Members = Vec<Arc<Document>>;

impl Related {
    fn members(&mut self, joint: &Joint) -> &mut Members {
        match joint {
            Joint::Host(HostPattern::Exact(text)) => self.exact.entry(Arc::clone(text)),
            Joint::Host(HostPattern::Suffix(text)) => self.suffixes.entry(Arc::clone(text)),
            Joint::Anywhere(namespace, port) => {
                return self
                    .anywhere
                    .entry((Arc::clone(namespace), *port))
                    .or_default();
            }
        }
        .or_default()
    }

    fn known(&self, joint: &Joint) -> &[Arc<Document>] {
        match joint {
            Joint::Host(HostPattern::Exact(text)) => self.exact.get(text),
            Joint::Host(HostPattern::Suffix(text)) => self.suffixes.get(text),
            Joint::Anywhere(namespace, port) => self.anywhere.get(&(Arc::clone(namespace), *port)),
        }
        .map_or(&[], Vec::as_slice)
    }

    /// Adds a document that is not there, and gives its joints.
    pub(super) fn insert(&mut self, document: &Arc<Document>, options: &Options) -> Vec<Joint> {
        let joints = joints(document, options);
        for joint in &joints {
            let members = self.members(joint);
            // Seldom more than a ServiceEntry and its rules.
            members.reserve_exact(1);
            members.push(Arc::clone(document));
        }
        joints
    }

    /// Removes a document, and gives the joints that it had.
    pub(super) fn remove(&mut self, document: &Arc<Document>, options: &Options) -> Vec<Joint> {
        let joints = joints(document, options);
        for joint in &joints {
            let members = self.members(joint);
            members.retain(|member| !Arc::ptr_eq(member, document));
            if members.is_empty() {
                match joint {
                    Joint::Host(HostPattern::Exact(text)) => drop(self.exact.remove(text)),
                    Joint::Host(HostPattern::Suffix(text)) => drop(self.suffixes.remove(text)),
                    Joint::Anywhere(namespace, port) => {
                        self.anywhere.remove(&(Arc::clone(namespace), *port));
                    }
                }
            }
        }
        joints
    }

    /// Every document that some chain joins to these joints.
    pub(super) fn closure(&self, mut queue: Vec<Joint>, options: &Options) -> HashSet<DocumentId> {
        let mut seen: HashSet<Joint> = HashSet::new();
        let mut out = HashSet::new();
        while let Some(joint) = queue.pop() {
            if !seen.insert(joint.clone()) {
                continue;
            }
            for document in self.known(&joint) {
                if out.insert(document.id.clone()) {
                    queue.extend(joints(document, options));
                }
            }
            match &joint {
                Joint::Host(HostPattern::Exact(host)) if !self.suffixes.is_empty() => {
                    let ends = (0..=host.len()).filter_map(|at| host.get(at..));
                    let covering = ends.filter_map(|end| self.suffixes.get_key_value(end));
                    queue.extend(covering.map(|(text, _)| suffix(text)));
                }
                Joint::Host(HostPattern::Suffix(wide)) => {
                    let overlap =
                        |text: &&Arc<str>| text.ends_with(&**wide) || wide.ends_with(&***text);
                    queue.extend(self.suffixes.keys().filter(overlap).map(suffix));
                    let covered = |text: &&Arc<str>| text.ends_with(&**wide);
                    let exact = self.exact.keys().filter(covered);
                    queue.extend(exact.map(|text| Joint::Host(HostPattern::Exact(text.clone()))));
                }
                _ => {}
            }
        }
        out
    }
}

fn suffix(text: &Arc<str>) -> Joint {
    Joint::Host(HostPattern::Suffix(Arc::clone(text)))
}

/// What a document is joined by.
pub(super) fn joints(document: &Document, options: &Options) -> Vec<Joint> {
    let namespace = &document.id.namespace;
    let mut out: Vec<Joint> = match &document.spec {
        Spec::ServiceEntry(spec) => {
            let anywhere = spec.addresses.is_empty() && spec.resolution() == Resolution::None;
            let opaque = |port: &&Port| anywhere && !port_protocol(port).client_speaks_first();
            let ports = spec.ports.iter().filter(opaque);
            let ports = ports.filter_map(|port| u16::try_from(port.number?.value).ok());
            let hosts = spec.hosts.iter().map(|host| Joint::Host(pattern(host)));
            hosts
                .chain(ports.map(|port| Joint::Anywhere(Arc::clone(namespace), port)))
                .collect()
        }
        Spec::DestinationRule(spec) => {
            let host = spec.host.iter();
            host.map(|host| Joint::Host(rule_pattern(host, namespace, options)))
                .collect()
        }
        Spec::VirtualService(spec) => virtual_joints(spec, namespace, options),
        Spec::Secret(_) => Vec::new(),
    };
    let mut seen = HashSet::new();
    out.retain(|joint| seen.insert(joint.clone()));
    out
}

fn virtual_joints(spec: &VirtualService, namespace: &str, options: &Options) -> Vec<Joint> {
    let destinations = spec.destinations().filter_map(|to| to.host.as_ref());
    let hosts = spec.hosts.iter().chain(destinations);
    hosts
        .map(|host| Joint::Host(rule_pattern(host, namespace, options)))
        .collect()
}
