//! `DestinationRule` and its traffic policies.

use serde::Serialize;

use super::load_balancer::{LoadBalancer, Locality};
use super::outlier::Outlier;
use super::pool::Pool;
use super::reader::{Fields, Reader};
use super::tls::Tls;
use super::{Entries, Spanned, Text, Time, entries};
use crate::policy::check;
use crate::policy::diagnostic::Span;
use crate::policy::yaml::Node;

/// `spec` of a DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRule {
    /// `host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Text>,
    /// `trafficPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<Box<TrafficPolicy>>,
    /// `subsets`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// `exportTo`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<Text>,
    /// `workloadSelector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<Spanned<Selector>>,
    /// Where `spec` is.
    #[serde(skip)]
    pub span: Span,
}

/// `workloadSelector`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// `matchLabels`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub match_labels: Entries<Text>,
}

/// One of `subsets`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// `labels`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub labels: Entries<Text>,
    /// `trafficPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<Box<TrafficPolicy>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// The four blocks that a port may have of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocks {
    /// `loadBalancer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<Box<LoadBalancer>>,
    /// `connectionPool`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<Box<Pool>>,
    /// `outlierDetection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<Box<Outlier>>,
    /// `tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<Tls>>,
    /// `localityLbSetting` where it does not belong, as many documents have it.
    #[serde(rename = "localityLbSetting", skip_serializing_if = "Option::is_none")]
    pub misplaced_locality: Option<Box<Locality>>,
}

/// `trafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// Blocks for every port.
    #[serde(flatten)]
    pub blocks: Blocks,
    /// `portLevelSettings`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_level_settings: Vec<PortPolicy>,
    /// `tunnel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Box<Tunnel>>,
    /// `proxyProtocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// `retryBudget`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<Box<RetryBudget>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `portLevelSettings`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortPolicy {
    /// `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
    /// Its blocks.
    #[serde(flatten)]
    pub blocks: Blocks,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `port` with its `number`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PortSelector {
    /// `number`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<Spanned<u32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

impl PortSelector {
    /// The number, 0 when absent.
    pub fn number(&self) -> u32 {
        self.number.map_or(0, |number| number.value)
    }
}

/// `tunnel`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// `protocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Text>,
    /// `targetHost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_host: Option<Text>,
    /// `targetPort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<Spanned<u32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `proxyProtocol`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProxyProtocol {
    /// `version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Spanned<ProxyVersion>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

words! {
    /// `proxyProtocol.version`.
    #[derive(Default)]
    pub enum ProxyVersion {
        /// Text.
        #[default]
        V1 = "V1",
        /// Binary.
        V2 = "V2",
    }
}

/// `retryBudget`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// `percent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<Spanned<f64>>,
    /// `minRetryConcurrency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_retry_concurrency: Option<Spanned<u32>>,
    /// `budgetInterval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_interval: Option<Time>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// Reads and checks a `spec`.
pub fn read(reader: &mut Reader<'_>, node: &Node) -> Option<DestinationRule> {
    let rule = reader.object(node, |r, f| DestinationRule {
        host: r.text_field(f, "host"),
        traffic_policy: r.boxed(f, "trafficPolicy", traffic_policy),
        subsets: r.list(f, "subsets", subset),
        export_to: r.texts(f, "exportTo"),
        workload_selector: r.field(f, "workloadSelector", |r, n| {
            let match_labels = r.object(n, |r, f| r.text_map(f, "matchLabels"))?;
            Some(Spanned::new(Selector { match_labels }, n.span))
        }),
        span: f.span,
    })?;
    check::destination_rule::check(reader, &rule);
    Some(rule)
}

fn subset(reader: &mut Reader<'_>, node: &Node) -> Option<Subset> {
    reader.object(node, |r, f| Subset {
        name: r.text_field(f, "name"),
        labels: r.text_map(f, "labels"),
        traffic_policy: r.boxed(f, "trafficPolicy", traffic_policy),
        span: f.span,
    })
}

fn traffic_policy(reader: &mut Reader<'_>, node: &Node) -> Option<TrafficPolicy> {
    let policy = reader.object(node, |r, f| TrafficPolicy {
        blocks: blocks(r, f),
        port_level_settings: r.list(f, "portLevelSettings", port_policy),
        tunnel: r.boxed(f, "tunnel", |r, n| {
            r.object(n, |r, f| Tunnel {
                protocol: r.text_field(f, "protocol"),
                target_host: r.text_field(f, "targetHost"),
                target_port: r.field(f, "targetPort", Reader::integer),
                span: f.span,
            })
        }),
        proxy_protocol: r.field(f, "proxyProtocol", |r, n| {
            r.object(n, |r, f| ProxyProtocol {
                version: r.field(f, "version", |r, n| r.word(n, ProxyVersion::WORDS)),
                span: f.span,
            })
        }),
        retry_budget: r.boxed(f, "retryBudget", |r, n| {
            r.object(n, |r, f| RetryBudget {
                percent: r.nullable(f, "percent", Reader::number),
                min_retry_concurrency: r.field(f, "minRetryConcurrency", Reader::integer),
                budget_interval: r.field(f, "budgetInterval", Reader::any_time),
                span: f.span,
            })
        }),
        span: f.span,
    })?;
    check::destination_rule::check_policy(reader, &policy);
    Some(policy)
}

fn port_policy(reader: &mut Reader<'_>, node: &Node) -> Option<PortPolicy> {
    let policy = reader.object(node, |r, f| PortPolicy {
        port: r.field(f, "port", port_selector),
        blocks: blocks(r, f),
        span: f.span,
    })?;
    check::destination_rule::check_port_policy(reader, &policy);
    Some(policy)
}

/// Reads a `port`.
pub fn port_selector(reader: &mut Reader<'_>, node: &Node) -> Option<PortSelector> {
    reader.object(node, |r, f| PortSelector {
        number: r.field(f, "number", Reader::integer),
        span: f.span,
    })
}

fn blocks(reader: &mut Reader<'_>, fields: &mut Fields<'_>) -> Blocks {
    let blocks = Blocks {
        load_balancer: reader.boxed(fields, "loadBalancer", super::load_balancer::read),
        connection_pool: reader.boxed(fields, "connectionPool", super::pool::read),
        outlier_detection: reader.boxed(fields, "outlierDetection", super::outlier::read),
        tls: reader.boxed(fields, "tls", super::tls::read),
        misplaced_locality: reader.boxed(
            fields,
            "localityLbSetting",
            super::load_balancer::locality,
        ),
    };
    check::destination_rule::check_blocks(reader, &blocks);
    blocks
}
