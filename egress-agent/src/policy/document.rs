//! One document that was read and found valid, and the set of them all.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::Options;
use super::diagnostic::{Diagnostic, Severity, Source, Span};
use super::model::{DocumentRef, Labels};
use super::schema::destination_rule::DestinationRule;
use super::schema::meta::{self, Kind, Metadata};
use super::schema::reader::{Reader, nearest};
use super::schema::secret::Secret;
use super::schema::service_entry::ServiceEntry;
use super::schema::virtual_service::VirtualService;
use super::schema::{annotation, destination_rule, secret, service_entry, virtual_service};
use super::yaml::{Node, Value};

/// Group of the kinds that we take.
pub const GROUP: &str = "networking.istio.io";
const VERSIONS: [&str; 3] = [
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];

/// What identifies a document: two with the same identity are versions of one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DocumentId {
    /// Kind.
    pub kind: Kind,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}

/// A valid document.
#[derive(Debug)]
pub struct Document {
    /// Kind, namespace and name.
    pub id: DocumentId,
    /// For messages.
    pub reference: Arc<DocumentRef>,
    /// `apiVersion` as written.
    pub api_version: &'static str,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.annotations`, each with its place.
    pub annotations: Vec<(Box<str>, Box<str>, Span)>,
    /// `metadata.creationTimestamp`; none counts as the oldest.
    pub created: Option<jiff::Timestamp>,
    /// What it says.
    pub spec: Spec,
    /// Where it was read from.
    pub source: Arc<Source>,
}

/// What a document says.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// A ServiceEntry.
    ServiceEntry(Arc<ServiceEntry>),
    /// A DestinationRule.
    DestinationRule(Arc<DestinationRule>),
    /// A VirtualService.
    VirtualService(Arc<VirtualService>),
    /// A Secret.
    Secret(Arc<Secret>),
}

impl Document {
    /// An annotation of ours, by its name behind `egress-agent.dev/`.
    pub fn annotation(&self, name: &str) -> Option<(&str, Span)> {
        self.annotations.iter().find_map(|(key, value, span)| {
            let ours = key.strip_prefix("egress-agent.dev/")? == name;
            ours.then_some((&**value, *span))
        })
    }

    /// The first line of the document in its source.
    pub fn first_line(&self) -> Span {
        Span::line(self.reference.line.saturating_sub(self.source.lines_before))
    }

    /// Older first: by creation, then name, then namespace.
    pub fn by_age(&self, other: &Self) -> Ordering {
        self.created
            .cmp(&other.created)
            .then_with(|| self.id.name.cmp(&other.id.name))
            .then_with(|| self.id.namespace.cmp(&other.id.namespace))
    }

    /// The document as it would be written in JSON. A Secret's data is left
    /// out.
    pub fn to_json(&self) -> Json {
        let mut metadata = Map::new();
        metadata.insert("name".into(), json!(*self.id.name));
        metadata.insert("namespace".into(), json!(*self.id.namespace));
        if let Some(created) = self.created {
            metadata.insert("creationTimestamp".into(), json!(created.to_string()));
        }
        if !self.labels.is_empty() {
            metadata.insert("labels".into(), json!(self.labels));
        }
        if !self.annotations.is_empty() {
            let list = self.annotations.iter();
            let map: Map<String, Json> = list.map(|(k, v, _)| (k.to_string(), json!(v))).collect();
            metadata.insert("annotations".into(), Json::Object(map));
        }
        let mut out = Map::new();
        out.insert("apiVersion".into(), json!(self.api_version));
        out.insert("kind".into(), json!(self.id.kind.name()));
        out.insert("metadata".into(), Json::Object(metadata));
        let spec = match &self.spec {
            Spec::ServiceEntry(spec) => serde_json::to_value(&**spec),
            Spec::DestinationRule(spec) => serde_json::to_value(&**spec),
            Spec::VirtualService(spec) => serde_json::to_value(&**spec),
            Spec::Secret(secret) => {
                out.insert("type".into(), json!(secret.kind));
                let keys = secret.data.keys();
                let hidden: Map<String, Json> = keys.map(|k| (k.to_string(), json!(""))).collect();
                out.insert("data".into(), Json::Object(hidden));
                return Json::Object(out);
            }
        };
        out.insert("spec".into(), spec.unwrap_or_default());
        Json::Object(out)
    }
}

/// Every document that is in force.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// In no particular order; no identity occurs twice.
    pub list: Vec<Arc<Document>>,
}

/// What became of one document of a file.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Valid, perhaps with warnings.
    Valid(Arc<Document>),
    /// Of a kind that we take, and refused. Its identity, if it has one.
    Rejected(Option<DocumentId>),
    /// Of another kind.
    Skipped,
}

/// Reads one document. A `List` gives several.
pub fn read(
    options: &Options,
    source: &Arc<Source>,
    root: &Node,
    each: &mut dyn FnMut(Outcome, Vec<Diagnostic>),
) {
    let kind = root.get("kind").and_then(Node::as_str).unwrap_or_default();
    if kind.ends_with("List")
        && let Some(items) = root.get("items")
        && let Value::Sequence(items) = &items.value
    {
        for item in items {
            one(options, source, item, each);
        }
    } else {
        one(options, source, root, each);
    }
}

fn one(
    options: &Options,
    source: &Arc<Source>,
    node: &Node,
    each: &mut dyn FnMut(Outcome, Vec<Diagnostic>),
) {
    let mut out = Vec::new();
    let outcome = match kind_of(node, source, &mut out) {
        Some((kind, version)) => document(options, source, node, kind, version, &mut out),
        None if out.iter().any(Diagnostic::is_error) => Outcome::Rejected(None),
        None => Outcome::Skipped,
    };
    each(outcome, out);
}

/// The kind of a document, if we take it; else a note or an error.
fn kind_of(
    node: &Node,
    source: &Arc<Source>,
    out: &mut Vec<Diagnostic>,
) -> Option<(Kind, &'static str)> {
    let mut report = |severity, rule, span, message: String, help: &str| {
        out.push(
            Diagnostic::new(severity, rule, message)
                .help(help)
                .at(source, span),
        );
    };
    if !matches!(node.value, Value::Mapping(_)) {
        let message = format!("a document must be an object, not {}", node.kind());
        report(
            Severity::Error,
            "type",
            node.span,
            message,
            "write `apiVersion: …`, `kind: …` and so on",
        );
        return None;
    }
    let mut field = |name: &str| {
        let value = node.get(name);
        let text = value.and_then(Node::as_str);
        if text.is_none_or(str::is_empty) {
            let span = value.map_or(node.span.start(), |value| value.span);
            let message = format!("`{name}` is missing or not a string");
            let example = if name == "kind" {
                "ServiceEntry"
            } else {
                "networking.istio.io/v1"
            };
            report(
                Severity::Error,
                "required",
                span,
                message,
                &format!("add `{name}: {example}`"),
            );
        }
        text.map(|text| (text, value.map_or(node.span, |value| value.span)))
    };
    let version = field("apiVersion");
    let kind = field("kind");
    let ((version, version_span), (kind, kind_span)) = (version?, kind?);
    let (group, number) = version.rsplit_once('/').unwrap_or(("", version));
    if group.is_empty() && kind == "Secret" && number == "v1" {
        return Some((Kind::Secret, "v1"));
    }
    if group != GROUP {
        let message = format!("{kind} ({version}) is passed over");
        report(
            Severity::Note,
            "other-kind",
            kind_span,
            message,
            "nothing of it is needed for egress",
        );
        return None;
    }
    let known = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Secret);
    let Some(known) = known.into_iter().find(|known| known.name() == kind) else {
        let names = ["ServiceEntry", "DestinationRule", "VirtualService"];
        let others = [
            "Gateway",
            "Sidecar",
            "EnvoyFilter",
            "WorkloadEntry",
            "WorkloadGroup",
            "ProxyConfig",
        ];
        if others.contains(&kind) {
            let message = format!("{kind} ({version}) is passed over");
            report(
                Severity::Note,
                "other-kind",
                kind_span,
                message,
                "nothing of it is needed for egress",
            );
        } else {
            let help = match nearest(kind, names.into_iter()) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("kinds here are: {}", names.join(", ")),
            };
            let message = format!("{GROUP} has no kind {kind:?}");
            report(Severity::Error, "kind", kind_span, message, &help);
        }
        return None;
    };
    let Some(version) = VERSIONS.into_iter().find(|known| *known == version) else {
        let message = format!("{version:?} is not a version of {kind} that is known");
        let help = "use networking.istio.io/v1, v1beta1 or v1alpha3";
        report(Severity::Error, "api-version", version_span, message, help);
        return None;
    };
    Some((known, version))
}

fn document(
    options: &Options,
    source: &Arc<Source>,
    node: &Node,
    kind: Kind,
    api_version: &'static str,
    out: &mut Vec<Diagnostic>,
) -> Outcome {
    let plain = |name: &str| {
        let value = node.get("metadata").and_then(|meta| meta.get(name));
        value.and_then(Node::as_str).filter(|text| !text.is_empty())
    };
    let namespace: Arc<str> =
        plain("namespace").map_or_else(|| options.default_namespace.clone(), Arc::from);
    let title = format!(
        "{} {}/{}",
        kind.name(),
        namespace,
        plain("name").unwrap_or("?")
    );
    let mut reader = Reader::new(options, source, out, namespace, title.into());
    let read = reader.object(node, |r, f| {
        f.take("apiVersion");
        f.take("kind");
        r.field(f, "status", |r, n| match n.value {
            Value::Mapping(_) => Some(()),
            _ => r.object(n, |_, _| ()),
        });
        let at = f
            .peek("metadata")
            .map_or(f.span.start(), |node| node.span.start());
        let meta = r.field(f, "metadata", meta::read).unwrap_or_default();
        r.within("metadata", |r| {
            meta::check_name(r, &meta, at);
            r.within("annotations", |r| annotation::check(r, kind, &meta));
        });
        let label = |name: &str| meta.labels.iter().find(|(key, _)| &***key == name);
        r.allocates = label("networking.istio.io/enable-autoallocate-ip")
            .is_none_or(|(_, value)| !value.eq_ignore_ascii_case("false"));
        r.waypoint = label("istio.io/use-waypoint").is_some_and(|(_, name)| &***name != "none");
        if kind != Kind::Secret && f.peek("spec").is_none() {
            r.required(f.span.start(), "spec");
        }
        let spec = match kind {
            Kind::ServiceEntry => r
                .field(f, "spec", service_entry::read)
                .map(|spec| Spec::ServiceEntry(Arc::new(spec))),
            Kind::DestinationRule => r
                .field(f, "spec", destination_rule::read)
                .map(|spec| Spec::DestinationRule(Arc::new(spec))),
            Kind::VirtualService => r
                .field(f, "spec", virtual_service::read)
                .map(|spec| Spec::VirtualService(Arc::new(spec))),
            Kind::Secret => Some(Spec::Secret(Arc::new(secret::read(r, f)))),
        };
        (meta, spec)
    });
    let rejected = out.iter().any(Diagnostic::is_error);
    let Some((meta, spec)) = read else {
        return Outcome::Rejected(None);
    };
    let id = id_of(kind, &meta, options);
    match (rejected, spec, id) {
        (false, Some(spec), Some(id)) => Outcome::Valid(Arc::new(Document {
            reference: Arc::new(DocumentRef {
                kind: kind.name(),
                namespace: Arc::clone(&id.namespace),
                name: Arc::clone(&id.name),
                source: Arc::clone(&source.name),
                line: source.lines_before + node.span.line.max(1),
            }),
            id,
            api_version,
            labels: meta
                .labels
                .into_iter()
                .map(|(k, v)| (k.value, v.value))
                .collect(),
            annotations: meta
                .annotations
                .into_iter()
                .map(|(k, v)| (k.value, v.value, v.span))
                .collect(),
            created: meta.created,
            spec,
            source: Arc::clone(source),
        })),
        (_, _, id) => Outcome::Rejected(id),
    }
}

fn id_of(kind: Kind, meta: &Metadata, options: &Options) -> Option<DocumentId> {
    let name = meta.name.as_ref().filter(|name| !name.is_empty())?;
    Some(DocumentId {
        kind,
        namespace: meta::namespace(meta, &options.default_namespace),
        name: Arc::from(&***name),
    })
}
