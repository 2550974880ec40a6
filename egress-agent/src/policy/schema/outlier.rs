//! `outlierDetection`.

use serde::Serialize;

use super::reader::Reader;
use super::{Spanned, Time};
use crate::policy::check;
use crate::policy::diagnostic::Span;
use crate::policy::yaml::Node;

/// `outlierDetection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outlier {
    /// `consecutiveErrors`, which does nothing any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_errors: Option<Spanned<i32>>,
    /// `splitExternalLocalOriginErrors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_external_local_origin_errors: Option<Spanned<bool>>,
    /// `consecutiveLocalOriginFailures`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_local_origin_failures: Option<Spanned<u32>>,
    /// `consecutiveGatewayErrors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<Spanned<u32>>,
    /// `consecutive5xxErrors`.
    #[serde(
        rename = "consecutive5xxErrors",
        skip_serializing_if = "Option::is_none"
    )]
    pub consecutive_5xx_errors: Option<Spanned<u32>>,
    /// `interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Time>,
    /// `baseEjectionTime`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<Time>,
    /// `maxEjectionPercent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<Spanned<i32>>,
    /// `minHealthPercent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_health_percent: Option<Spanned<i32>>,
    /// `outlierDetectionHttpErrorCodes`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outlier_detection_http_error_codes: Vec<Spanned<u32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// Reads and checks an `outlierDetection`.
pub fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Outlier> {
    let outlier = reader.object(node, |r, f| Outlier {
        consecutive_errors: r.field(f, "consecutiveErrors", Reader::integer),
        split_external_local_origin_errors: r.field(
            f,
            "splitExternalLocalOriginErrors",
            Reader::boolean,
        ),
        consecutive_local_origin_failures: r.nullable(
            f,
            "consecutiveLocalOriginFailures",
            Reader::integer,
        ),
        consecutive_gateway_errors: r.nullable(f, "consecutiveGatewayErrors", Reader::integer),
        consecutive_5xx_errors: r.nullable(f, "consecutive5xxErrors", Reader::integer),
        interval: r.time_field(f, "interval"),
        base_ejection_time: r.time_field(f, "baseEjectionTime"),
        max_ejection_percent: r.field(f, "maxEjectionPercent", Reader::integer),
        min_health_percent: r.field(f, "minHealthPercent", Reader::integer),
        outlier_detection_http_error_codes: r.list(
            f,
            "outlierDetectionHttpErrorCodes",
            Reader::integer,
        ),
        span: f.span,
    })?;
    check::destination_rule::check_outlier(reader, &outlier);
    Some(outlier)
}
