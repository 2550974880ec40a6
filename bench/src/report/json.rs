//! Everything, for programs.

use serde_json::{Value, json};

use super::Report;
use super::targets;
use crate::machine;
use crate::peer::Name;
use crate::statistics::Metric;

pub(super) fn value(report: &Report) -> Value {
    let workloads: Vec<Value> = report
        .measured
        .iter()
        .map(|measured| {
            let rows: Vec<Value> = Name::ALL
                .iter()
                .flat_map(|path| {
                    Metric::ALL.iter().filter_map(move |metric| {
                        let figure = measured.figure(*path, *metric)?;
                        Some(json!({
                            "path": path,
                            "metric": metric,
                            "figure": figure,
                            "toDirect": measured.ratio(*path, Name::Direct, *metric),
                            "toEnvoy": measured.ratio(*path, Name::Envoy, *metric),
                        }))
                    })
                })
                .collect();
            json!({
                "name": measured.name,
                "title": measured.title,
                "unit": measured.unit,
                "foreign": measured.foreign(),
                "stalled": measured.stalled(),
                "void": measured.void.iter().map(|(path, why)| json!({"path": path, "why": why})).collect::<Vec<_>>(),
                "rows": rows,
                "samples": measured.samples,
            })
        })
        .collect();
    json!({
        "date": machine::date(),
        "command": report.command,
        "machine": machine::describe(),
        "versions": machine::versions(),
        "rounds": report.rounds,
        "cpus": report.cpus,
        "workloads": workloads,
        "extra": report.extra,
        "targets": targets::all(report),
    })
}
