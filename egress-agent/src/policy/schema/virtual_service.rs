//! `VirtualService`: everything but what a single HTTP route does.

use serde::Serialize;

use super::destination_rule::{PortSelector, port_selector};
use super::reader::Reader;
use super::route::{HttpRoute, http_route};
use super::{Entries, Spanned, Text, entries};
use crate::policy::check;
use crate::policy::diagnostic::Span;
use crate::policy::yaml::Node;

/// `spec` of a VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualService {
    /// `hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Text>,
    /// `gateways`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<Text>,
    /// `http`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpRoute>,
    /// `tls`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<OpaqueRoute>,
    /// `tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<OpaqueRoute>,
    /// `exportTo`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<Text>,
    /// Where `spec` is.
    #[serde(skip)]
    pub span: Span,
}

impl VirtualService {
    /// Whether it is bound to gateways alone, and so is not for egress.
    pub fn for_gateways_only(&self) -> bool {
        !self.gateways.is_empty() && !self.gateways.iter().any(|name| &***name == "mesh")
    }

    /// Every destination of every route, mirrors included.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let http = self.http.iter().flat_map(|route| {
            let to = route.route.iter();
            let to = to.filter_map(|entry| entry.destination.as_ref());
            let mirrors = route.mirrors.iter();
            let mirrors = mirrors.filter_map(|mirror| mirror.destination.as_ref());
            to.chain(route.mirror.as_deref()).chain(mirrors)
        });
        let opaque = self.tls.iter().chain(&self.tcp);
        let opaque = opaque.flat_map(|route| route.route.iter());
        http.chain(opaque.filter_map(|entry| entry.destination.as_ref()))
    }
}

/// One of `tls` or `tcp`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OpaqueRoute {
    /// `match`.
    #[serde(rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<OpaqueMatch>,
    /// `route`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Weighted>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `match` of a `tls` or `tcp` route.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OpaqueMatch {
    /// `sniHosts`; only of `tls`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sni_hosts: Vec<Text>,
    /// `destinationSubnets`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_subnets: Vec<Text>,
    /// `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Spanned<u32>>,
    /// `sourceSubnet`; only of `tcp`, and without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_subnet: Option<Text>,
    /// `sourceLabels`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub source_labels: Entries<Text>,
    /// `sourceNamespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<Text>,
    /// `gateways`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `route` of a `tls` or `tcp` route.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Weighted {
    /// `destination`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// `weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Spanned<i32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `destination`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Destination {
    /// `host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Text>,
    /// `subset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<Text>,
    /// `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// Reads and checks a `spec`.
pub fn read(reader: &mut Reader<'_>, node: &Node) -> Option<VirtualService> {
    let service = reader.object(node, |r, f| VirtualService {
        hosts: r.texts(f, "hosts"),
        gateways: r.texts(f, "gateways"),
        http: r.list(f, "http", http_route),
        tls: r.list(f, "tls", |r, n| opaque_route(r, n, true)),
        tcp: r.list(f, "tcp", |r, n| opaque_route(r, n, false)),
        export_to: r.texts(f, "exportTo"),
        span: f.span,
    })?;
    check::virtual_service::check(reader, &service);
    Some(service)
}

/// Reads a `destination`.
pub fn destination(reader: &mut Reader<'_>, node: &Node) -> Option<Destination> {
    let destination = reader.object(node, |r, f| Destination {
        host: r.text_field(f, "host"),
        subset: r.text_field(f, "subset"),
        port: r.field(f, "port", port_selector),
        span: f.span,
    })?;
    check::route::check_destination(reader, &destination);
    Some(destination)
}

fn opaque_route(reader: &mut Reader<'_>, node: &Node, tls: bool) -> Option<OpaqueRoute> {
    reader.object(node, |r, f| OpaqueRoute {
        matches: r.list(f, "match", |r, n| opaque_match(r, n, tls)),
        route: r.list(f, "route", |r, n| {
            r.object(n, |r, f| Weighted {
                destination: r.field(f, "destination", destination),
                weight: r.field(f, "weight", Reader::integer),
                span: f.span,
            })
        }),
        span: f.span,
    })
}

fn opaque_match(reader: &mut Reader<'_>, node: &Node, tls: bool) -> Option<OpaqueMatch> {
    reader.object(node, |r, f| OpaqueMatch {
        sni_hosts: if tls {
            r.texts(f, "sniHosts")
        } else {
            Vec::new()
        },
        source_subnet: if tls {
            None
        } else {
            r.text_field(f, "sourceSubnet")
        },
        destination_subnets: r.texts(f, "destinationSubnets"),
        port: r.field(f, "port", Reader::integer),
        source_labels: r.text_map(f, "sourceLabels"),
        source_namespace: r.text_field(f, "sourceNamespace"),
        gateways: r.texts(f, "gateways"),
        span: f.span,
    })
}
