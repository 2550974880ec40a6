//! What every document has: version, kind, `metadata`.

use std::sync::Arc;

use super::reader::Reader;
use super::{Entries, Text};
use crate::policy::diagnostic::Span;
use crate::policy::yaml::{Node, Value};

/// `metadata`, as far as we look at it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// `name`.
    pub name: Option<Text>,
    /// `namespace`.
    pub namespace: Option<Text>,
    /// `labels`.
    pub labels: Entries<Text>,
    /// `annotations`.
    pub annotations: Entries<Text>,
    /// `creationTimestamp`.
    pub created: Option<jiff::Timestamp>,
}

/// The kinds that we take.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `ServiceEntry`.
    ServiceEntry,
    /// `DestinationRule`.
    DestinationRule,
    /// `VirtualService`.
    VirtualService,
    /// `Secret`, for `credentialName`.
    Secret,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ServiceEntry,
        Self::DestinationRule,
        Self::VirtualService,
        Self::Secret,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ServiceEntry => "ServiceEntry",
            Self::DestinationRule => "DestinationRule",
            Self::VirtualService => "VirtualService",
            Self::Secret => "Secret",
        }
    }

    /// The kind that a user means: its name, plural or short name in any case,
    /// as kubectl takes them.
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "serviceentry" | "serviceentries" | "se" => Some(Self::ServiceEntry),
            "destinationrule" | "destinationrules" | "dr" => Some(Self::DestinationRule),
            "virtualservice" | "virtualservices" | "vs" => Some(Self::VirtualService),
            "secret" | "secrets" => Some(Self::Secret),
            _ => None,
        }
    }
}

/// Annotations that Istio keeps for itself and refuses here.
const REFUSED: [&str; 4] = [
    "istio.io/dry-run",
    "internal.istio.io/parents",
    "internal.istio.io/parent-namespace",
    "internal.istio.io/webhook-always-reject",
];

/// Fields of Kubernetes' ObjectMeta that say nothing to us.
const OTHER: [&str; 10] = [
    "generateName",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// Reads a `metadata`.
pub fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Metadata> {
    let meta = reader.object(node, |r, f| {
        for name in OTHER {
            f.take(name);
        }
        Metadata {
            name: r.text_field(f, "name"),
            namespace: r.text_field(f, "namespace"),
            labels: optional_map(r, f, "labels"),
            annotations: optional_map(r, f, "annotations"),
            created: r.nullable(f, "creationTimestamp", |r, n| {
                let text = r.text(n)?;
                let time = text.parse();
                if time.is_err() {
                    let message = format!("{:?} is not a time", &**text);
                    r.error(
                        "timestamp",
                        n.span,
                        message,
                        "write it as 2026-01-31T12:00:00Z",
                    );
                }
                time.ok()
            }),
        }
    })?;
    for (name, value) in &meta.annotations {
        if REFUSED.contains(&&***name) {
            reader.within("annotations", |reader| {
                reader.at_key(name, |reader| {
                    let message = format!("the annotation {:?} cannot stand here", &***name);
                    reader.error("annotation", value.span, message, "remove it");
                });
            });
        }
    }
    Some(meta)
}

/// A map of strings that may be null, as tools write it.
fn optional_map(
    reader: &mut Reader<'_>,
    fields: &mut super::reader::Fields<'_>,
    name: &'static str,
) -> Entries<Text> {
    if fields
        .peek(name)
        .is_some_and(|node| node.value == Value::Null)
    {
        fields.take(name);
        return Vec::new();
    }
    reader.text_map(fields, name)
}

/// Reports a name that is none.
pub fn check_name(reader: &mut Reader<'_>, meta: &Metadata, span: Span) {
    match &meta.name {
        None => reader.required(span, "name"),
        Some(name) if name.is_empty() => reader.required(name.span, "name"),
        Some(name) => {
            let label = |label: &str| {
                let edge = |b: Option<&u8>| {
                    b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                };
                edge(label.as_bytes().first())
                    && edge(label.as_bytes().last())
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            };
            if name.len() > 253 || !name.split('.').all(label) {
                let message = format!("Kubernetes would refuse the name {:?}", &***name);
                let help = "use small letters, digits, `-` and `.`";
                reader.within("name", |reader| {
                    reader.warn("name", name.span, message, help);
                });
            }
        }
    }
    if let Some(namespace) = &meta.namespace
        && !namespace.is_empty()
        && !crate::policy::check::names::is_dns_label(namespace)
    {
        let message = format!("{:?} is not a namespace", &***namespace);
        reader.within("namespace", |reader| {
            reader.error(
                "namespace",
                namespace.span,
                message,
                "letters, digits and `-`, at most 63",
            );
        });
    }
}

/// `metadata.namespace`, or the default.
pub fn namespace(meta: &Metadata, default: &Arc<str>) -> Arc<str> {
    match &meta.namespace {
        Some(namespace) if !namespace.is_empty() => Arc::from(&***namespace),
        _ => Arc::clone(default),
    }
}
