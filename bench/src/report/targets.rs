//! What egress is to reach beside its peers, and whether it did.

use serde::Serialize;

use super::Report;
use crate::measure::Measured;
use crate::peer::Name;
use crate::statistics::Metric;

/// One line of the table of targets.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) target: f64,
    /// Whether less is better.
    pub(crate) at_most: bool,
    /// None when it was not measured.
    pub(crate) verdict: Option<Verdict>,
    /// The best of the others, by the same measure.
    pub(crate) best: Option<(Name, f64)>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Met(f64),
    Missed(f64),
    /// The rounds lie too far apart, or others used the machine.
    Noisy,
    /// egress or the base failed.
    Void,
}

struct Target {
    what: &'static str,
    workload: &'static str,
    metric: Metric,
    base: Name,
    at_most: bool,
    value: f64,
}

const fn cpu(what: &'static str, workload: &'static str, value: f64) -> Target {
    Target {
        what,
        workload,
        metric: Metric::Cpu,
        base: Name::Envoy,
        at_most: true,
        value,
    }
}

const fn rate(what: &'static str, workload: &'static str, base: Name, value: f64) -> Target {
    Target {
        what,
        workload,
        metric: Metric::Rate,
        base,
        at_most: false,
        value,
    }
}

const fn latency(
    what: &'static str,
    workload: &'static str,
    metric: Metric,
    base: Name,
    value: f64,
) -> Target {
    Target {
        what,
        workload,
        metric,
        base,
        at_most: true,
        value,
    }
}

const TARGETS: [Target; 12] = [
    cpu("opaque TCP, 4 streams: CPU/GB to Envoy", "tcp-bulk-4", 0.5),
    cpu("opaque TCP, 1 stream: CPU/GB to Envoy", "tcp-bulk-1", 0.9),
    cpu(
        "connect, 1 KB, close: CPU/connection to Envoy",
        "tcp-connect",
        0.45,
    ),
    cpu("HTTP/1.1 1 KB: CPU/request to Envoy", "http1-1k", 0.33),
    rate(
        "HTTP/1.1 1 KB: maximum rate to Envoy",
        "http1-1k",
        Name::Envoy,
        3.0,
    ),
    latency(
        "HTTP/1.1 1 KB at 2,000/s: p99 to Envoy",
        "http1-1k-2000",
        Metric::P99,
        Name::Envoy,
        0.6,
    ),
    cpu("HTTP/2 1 KB: CPU/request to Envoy", "http2-1k", 0.55),
    cpu("TLS origination 1 KB: CPU/request to Envoy", "tls-1k", 0.40),
    cpu("TLS origination bulk: CPU/GB to Envoy", "tls-bulk", 0.9),
    rate(
        "TLS full handshakes/s to Envoy",
        "tls-full",
        Name::Envoy,
        1.0,
    ),
    cpu("TLS full handshake: CPU to Envoy", "tls-full", 1.0),
    cpu("TLS resumed handshake: CPU to Envoy", "tls-resumed", 1.0),
];

/// All rows; those of workloads that did not run have no verdict.
pub(crate) fn all(report: &Report) -> Vec<Row> {
    let mut rows: Vec<Row> = TARGETS
        .iter()
        .map(|target| {
            let measured = report
                .measured
                .iter()
                .find(|measured| measured.name == target.workload);
            Row {
                what: target.what.to_owned(),
                target: target.value,
                at_most: target.at_most,
                verdict: measured.map(|measured| verdict(target, measured)),
                best: measured.and_then(|measured| best(target, measured)),
            }
        })
        .collect();
    rows.extend(
        report
            .extra
            .iter()
            .flat_map(|extra| &extra.rows)
            .filter_map(|row| {
                let (target, at_most) = row.target?;
                let verdict = match &row.value {
                    Err(_) => Verdict::Void,
                    Ok(value) => judge(*value, target, at_most),
                };
                Some(Row {
                    what: format!("{}, {}", row.what, row.unit),
                    target,
                    at_most,
                    verdict: Some(verdict),
                    best: None,
                })
            }),
    );
    rows
}

fn verdict(target: &Target, measured: &Measured) -> Verdict {
    let Some(figure) = measured.ratio(Name::Egress, target.base, target.metric) else {
        return Verdict::Void;
    };
    if figure.is_noisy() || (target.metric != Metric::Cpu && measured.is_crowded()) {
        return Verdict::Noisy;
    }
    judge(figure.median, target.value, target.at_most)
}

fn judge(value: f64, target: f64, at_most: bool) -> Verdict {
    let met = if at_most {
        value <= target
    } else {
        value >= target
    };
    if met {
        Verdict::Met(value)
    } else {
        Verdict::Missed(value)
    }
}

fn best(target: &Target, measured: &Measured) -> Option<(Name, f64)> {
    Name::ALL
        .into_iter()
        .filter(|name| !(name.is_floor() || matches!(name, Name::Egress | Name::Direct)))
        .filter_map(|name| {
            let figure = measured.ratio(name, target.base, target.metric)?;
            Some((name, figure.median))
        })
        .min_by(|(_, one), (_, other)| {
            if target.at_most {
                one.total_cmp(other)
            } else {
                other.total_cmp(one)
            }
        })
}
