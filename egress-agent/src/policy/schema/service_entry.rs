//! `ServiceEntry`.

use serde::Serialize;

use super::reader::Reader;
use super::{Entries, Spanned, Text, entries};
use crate::policy::check;
use crate::policy::diagnostic::Span;
use crate::policy::yaml::Node;

/// `spec` of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// `hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Text>,
    /// `addresses`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Text>,
    /// `ports`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// `location`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Spanned<Location>>,
    /// `resolution`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Spanned<Resolution>>,
    /// `endpoints`; written, though perhaps empty, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Spanned<Vec<Endpoint>>>,
    /// `workloadSelector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<Spanned<Selector>>,
    /// `exportTo`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<Text>,
    /// `subjectAltNames`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<Text>,
    /// Where `spec` is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `ports`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// `number`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<Spanned<u32>>,
    /// `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// `protocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Text>,
    /// `targetPort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<Spanned<u32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `endpoints`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Text>,
    /// `ports`, by the name of a service port.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "ports")]
    pub ports: Option<Spanned<Entries<Spanned<u32>>>>,
    /// `labels`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub labels: Entries<Text>,
    /// `locality`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Text>,
    /// `network`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Text>,
    /// `serviceAccount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<Text>,
    /// `weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Spanned<u32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

#[expect(clippy::ref_option, reason = "serde passes so")]
fn ports<S: serde::Serializer>(
    ports: &Option<Spanned<Entries<Spanned<u32>>>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match ports {
        Some(ports) => entries(&ports.value, serializer),
        None => serializer.serialize_none(),
    }
}

/// `workloadSelector`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Selector {
    /// `labels`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub labels: Entries<Text>,
}

words! {
    /// `location`.
    pub enum Location {
        /// Outside the mesh.
        External = "MESH_EXTERNAL",
        /// Inside the mesh.
        Internal = "MESH_INTERNAL",
    }
}

words! {
    /// `resolution`.
    #[derive(Default)]
    pub enum Resolution {
        /// To the address dialled.
        #[default]
        None = "NONE",
        /// The endpoints.
        Static = "STATIC",
        /// Every address of the answer.
        Dns = "DNS",
        /// Every address, round robin, connections never drained.
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        /// The name asked for.
        DynamicDns = "DYNAMIC_DNS",
    }
}

impl ServiceEntry {
    /// `resolution`, or its default.
    pub fn resolution(&self) -> Resolution {
        self.resolution.map(|r| r.value).unwrap_or_default()
    }

    /// `endpoints`, empty when absent.
    pub fn endpoints(&self) -> &[Endpoint] {
        self.endpoints.as_ref().map_or(&[], |list| &list.value)
    }
}

/// Reads and checks a `spec`.
pub fn read(reader: &mut Reader<'_>, node: &Node) -> Option<ServiceEntry> {
    let entry = reader.object(node, |r, f| ServiceEntry {
        hosts: r.texts(f, "hosts"),
        addresses: r.texts(f, "addresses"),
        ports: r.list(f, "ports", port),
        location: r.field(f, "location", |r, n| r.word(n, Location::WORDS)),
        resolution: r.field(f, "resolution", |r, n| r.word(n, Resolution::WORDS)),
        endpoints: r.field(f, "endpoints", |r, n| {
            Some(Spanned::new(r.items(n, endpoint), n.span))
        }),
        workload_selector: r.field(f, "workloadSelector", |r, n| {
            let labels = r.object(n, |r, f| r.text_map(f, "labels"))?;
            Some(Spanned::new(Selector { labels }, n.span))
        }),
        export_to: r.texts(f, "exportTo"),
        subject_alt_names: r.texts(f, "subjectAltNames"),
        span: f.span,
    })?;
    check::service_entry::check(reader, &entry);
    Some(entry)
}

fn port(reader: &mut Reader<'_>, node: &Node) -> Option<Port> {
    reader.object(node, |r, f| Port {
        number: r.field(f, "number", Reader::integer),
        name: r.text_field(f, "name"),
        protocol: r.text_field(f, "protocol"),
        target_port: r.field(f, "targetPort", Reader::integer),
        span: f.span,
    })
}

fn endpoint(reader: &mut Reader<'_>, node: &Node) -> Option<Endpoint> {
    reader.object(node, |r, f| {
        let at = f.peek("ports").map(|node| node.span);
        let ports = r.map(f, "ports", Reader::integer);
        Endpoint {
            address: r.text_field(f, "address"),
            ports: at.map(|span| Spanned::new(ports, span)),
            labels: r.text_map(f, "labels"),
            locality: r.text_field(f, "locality"),
            network: r.text_field(f, "network"),
            service_account: r.text_field(f, "serviceAccount"),
            weight: r.field(f, "weight", Reader::integer),
            span: f.span,
        }
    })
}
