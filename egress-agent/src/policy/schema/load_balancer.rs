//! `loadBalancer`.

use serde::Serialize;

use super::reader::{Fields, Reader};
use super::{Entries, Spanned, Text, Time, entries};
use crate::policy::check;
use crate::policy::diagnostic::Span;
use crate::policy::yaml::{Node, Value};

/// `loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// `simple`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simple: Option<Spanned<Simple>>,
    /// `consistentHash`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<Box<Hash>>,
    /// `localityLbSetting`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality_lb_setting: Option<Box<Locality>>,
    /// `zoneAwareLbSetting`, which is only checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_aware_lb_setting: Option<Box<Locality>>,
    /// `warmup`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Box<Warmup>>,
    /// `warmupDurationSecs`, the old form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_duration_secs: Option<Time>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

words! {
    /// `simple`.
    #[derive(Default)]
    pub enum Simple {
        /// The default.
        #[default]
        Unspecified = "UNSPECIFIED",
        /// Old name of `LEAST_REQUEST`.
        LeastConn = "LEAST_CONN",
        /// Any.
        Random = "RANDOM",
        /// To the address dialled.
        Passthrough = "PASSTHROUGH",
        /// In turn.
        RoundRobin = "ROUND_ROBIN",
        /// The least busy.
        LeastRequest = "LEAST_REQUEST",
    }
}

/// `consistentHash`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hash {
    /// `httpHeaderName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_header_name: Option<Text>,
    /// `httpCookie`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_cookie: Option<Box<Cookie>>,
    /// `useSourceIp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_source_ip: Option<Spanned<bool>>,
    /// `httpQueryParameterName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_query_parameter_name: Option<Text>,
    /// `ringHash`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_hash: Option<RingHash>,
    /// `maglev`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maglev: Option<Maglev>,
    /// `minimumRingSize`, the old form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_ring_size: Option<Spanned<u64>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `httpCookie`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cookie {
    /// `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Text>,
    /// `ttl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Time>,
    /// `attributes`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `attributes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Attribute {
    /// `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `ringHash`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RingHash {
    /// `minimumRingSize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_ring_size: Option<Spanned<u64>>,
}

/// `maglev`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Maglev {
    /// `tableSize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_size: Option<Spanned<u64>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `localityLbSetting`, and the part of `zoneAwareLbSetting` that has rules.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Locality {
    /// `enabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<Spanned<bool>>,
    /// `distribute`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub distribute: Vec<Distribute>,
    /// `failover`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<Failover>,
    /// `failoverPriority`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failover_priority: Vec<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `distribute`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Distribute {
    /// `from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Text>,
    /// `to`: weights in per cent.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub to: Entries<Spanned<u32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `failover`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Failover {
    /// `from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Text>,
    /// `to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `warmup`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Warmup {
    /// `duration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<Time>,
    /// `minimumPercent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_percent: Option<Spanned<f64>>,
    /// `aggression`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggression: Option<Spanned<f64>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// Reads and checks a `loadBalancer`.
pub fn read(reader: &mut Reader<'_>, node: &Node) -> Option<LoadBalancer> {
    let balancer = reader.object(node, |r, f| {
        if let Some(node) = f.take("backendUtilization") {
            r.within("backendUtilization", |r| {
                r.no_meaning(node.span, "backendUtilization", "load reports are not read");
            });
        }
        LoadBalancer {
            simple: r.field(f, "simple", |r, n| r.word(n, Simple::WORDS)),
            consistent_hash: r.boxed(f, "consistentHash", hash),
            locality_lb_setting: r.boxed(f, "localityLbSetting", locality),
            zone_aware_lb_setting: r.boxed(f, "zoneAwareLbSetting", zone_aware),
            warmup: r.boxed(f, "warmup", |r, n| {
                r.object(n, |r, f| Warmup {
                    duration: r.time_field(f, "duration"),
                    minimum_percent: r.nullable(f, "minimumPercent", Reader::number),
                    aggression: r.nullable(f, "aggression", Reader::number),
                    span: f.span,
                })
            }),
            warmup_duration_secs: r.time_field(f, "warmupDurationSecs"),
            span: f.span,
        }
    })?;
    check::load_balancer::check(reader, &balancer);
    Some(balancer)
}

fn hash(reader: &mut Reader<'_>, node: &Node) -> Option<Hash> {
    reader.object(node, |r, f| Hash {
        http_header_name: r.text_field(f, "httpHeaderName"),
        http_cookie: r.boxed(f, "httpCookie", |r, n| {
            r.object(n, |r, f| Cookie {
                name: r.text_field(f, "name"),
                path: r.text_field(f, "path"),
                ttl: r.field(f, "ttl", Reader::any_time),
                attributes: r.list(f, "attributes", |r, n| {
                    r.object(n, |r, f| Attribute {
                        name: r.text_field(f, "name"),
                        value: r.text_field(f, "value"),
                        span: f.span,
                    })
                }),
                span: f.span,
            })
        }),
        use_source_ip: r.field(f, "useSourceIp", Reader::boolean),
        http_query_parameter_name: r.text_field(f, "httpQueryParameterName"),
        ring_hash: r.field(f, "ringHash", |r, n| {
            r.object(n, |r, f| RingHash {
                minimum_ring_size: r.field(f, "minimumRingSize", Reader::integer),
            })
        }),
        maglev: r.field(f, "maglev", |r, n| {
            r.object(n, |r, f| Maglev {
                table_size: r.field(f, "tableSize", Reader::integer),
                span: f.span,
            })
        }),
        minimum_ring_size: r.field(f, "minimumRingSize", Reader::integer),
        span: f.span,
    })
}

/// Reads a `localityLbSetting`.
pub fn locality(reader: &mut Reader<'_>, node: &Node) -> Option<Locality> {
    reader.object(node, locality_fields)
}

fn locality_fields(r: &mut Reader<'_>, f: &mut Fields<'_>) -> Locality {
    Locality {
        distribute: r.list(f, "distribute", |r, n| {
            r.object(n, |r, f| Distribute {
                from: r.text_field(f, "from"),
                to: r.map(f, "to", Reader::integer),
                span: f.span,
            })
        }),
        ..failover_fields(r, f)
    }
}

fn failover_fields(r: &mut Reader<'_>, f: &mut Fields<'_>) -> Locality {
    Locality {
        enabled: r.nullable(f, "enabled", Reader::boolean),
        distribute: Vec::new(),
        failover: r.list(f, "failover", |r, n| {
            r.object(n, |r, f| Failover {
                from: r.text_field(f, "from"),
                to: r.text_field(f, "to"),
                span: f.span,
            })
        }),
        failover_priority: r.texts(f, "failoverPriority"),
        span: f.span,
    }
}

/// Fields that we do not know yet may stand in this one: nothing comes of it.
fn zone_aware(reader: &mut Reader<'_>, node: &Node) -> Option<Locality> {
    let Value::Mapping(entries) = &node.value else {
        return reader.object(node, failover_fields);
    };
    let known = ["enabled", "failover", "failoverPriority"];
    let entries = entries
        .iter()
        .filter(|(key, _)| known.contains(&&*key.name));
    let node = Node {
        span: node.span,
        value: Value::Mapping(entries.cloned().collect()),
    };
    reader.object(&node, failover_fields)
}
