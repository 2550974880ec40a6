//! The tables that people read.

use std::fmt::Write as _;

use super::targets::{self, Verdict};
use super::{Report, short};
use crate::machine;
use crate::measure::Measured;
use crate::peer::Name;
use crate::statistics::{CROWDED, Figure, Metric, TOO_NOISY};
use crate::workloads::Unit;

pub(super) fn render(report: &Report) -> String {
    let mut text = format!(
        "# Benchmarks\n\n{}, `{}`, {} rounds.\n{}. {}\n{}.\n\n",
        machine::date(),
        report.command,
        report.rounds,
        machine::describe(),
        report.cpus,
        machine::versions().join(", ")
    );
    text.push_str(
        "Figures are medians of interleaved rounds; `±` is the part of the median within which \
         half of the rounds lie. Ratios are medians of the ratios of each round. CPU is that of \
         the proxy's own process alone. Latency counts from when a request was due; at a steady \
         pace it leaves out requests that were due or under way while the machine stood still, \
         and a round with many of these is measured again.\n\n",
    );
    targets_table(&mut text, report);
    for measured in &report.measured {
        workload(&mut text, measured);
    }
    for extra in &report.extra {
        let _ = write!(
            text,
            "\n## {}\n\n| what | value |\n|---|---|\n",
            extra.title
        );
        for row in &extra.rows {
            let value = match &row.value {
                Ok(value) => format!("{} {}", short(*value), row.unit),
                Err(why) => format!("void: {why}"),
            };
            let _ = writeln!(text, "| {} | {value} |", row.what);
        }
    }
    text
}

fn targets_table(text: &mut String, report: &Report) {
    let rows = targets::all(report);
    if rows.is_empty() {
        return;
    }
    text.push_str("## egress beside its targets\n\n| work | target | measured | best peer | |\n|---|---|---|---|---|\n");
    for row in rows {
        let (measured, word) = match &row.verdict {
            None => continue,
            Some(Verdict::Noisy) => ("not told".to_owned(), "too noisy"),
            Some(Verdict::Void) => ("not told".to_owned(), "void"),
            Some(Verdict::Met(value)) => (short(*value), "met"),
            Some(Verdict::Missed(value)) => (short(*value), "**missed**"),
        };
        let best = row.best.map_or_else(String::new, |(name, value)| {
            format!("{} {}", name.title(), short(value))
        });
        let _ = writeln!(
            text,
            "| {} | {} {} | {measured} | {best} | {word} |",
            row.what,
            if row.at_most { "≤" } else { "≥" },
            short(row.target),
        );
    }
}

fn workload(text: &mut String, measured: &Measured) {
    let (rate, cpu) = match measured.unit {
        Unit::Request => ("requests/s", "CPU µs/request"),
        Unit::Connection => ("connections/s", "CPU µs/connection"),
        Unit::Gigabyte => ("GB/s", "CPU ms/GB"),
    };
    let _ = write!(
        text,
        "\n## {}\n\n`{}`; others used {:.0} % of the machine{}{}.\n\n\
         | path | {cpu} | to Envoy | {rate} | to direct | to Envoy | p50 µs | p99 µs | p99 to Envoy |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        measured.title,
        measured.name,
        measured.foreign() * 100.0,
        if measured.is_crowded() {
            format!(
                ", more than {:.0} %: rates and latencies are not told",
                CROWDED * 100.0
            )
        } else {
            String::new()
        },
        if measured.stalled() > 0.0 {
            format!(
                "; latencies leave out {:.0} % of the requests",
                measured.stalled() * 100.0
            )
        } else {
            String::new()
        }
    );
    let crowded = measured.is_crowded();
    for path in Name::ALL {
        if let Some((_, why)) = measured.void.iter().find(|(void, _)| *void == path) {
            let _ = writeln!(text, "| {} | void: {why} | | | | | | | |", path.title());
            continue;
        }
        if measured.figure(path, Metric::Rate).is_none() {
            continue;
        }
        let figure = |metric| measured.figure(path, metric);
        let timed = |figure: Option<Figure>| {
            if crowded {
                "–".to_owned()
            } else {
                cell(figure, 1.0)
            }
        };
        let cpu_scale = if measured.unit == Unit::Gigabyte {
            1e-3
        } else {
            1.0
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            path.title(),
            cell(figure(Metric::Cpu), cpu_scale),
            ratio(measured.ratio(path, Name::Envoy, Metric::Cpu)),
            timed(figure(Metric::Rate)),
            timed(measured.ratio(path, Name::Direct, Metric::Rate)),
            timed(measured.ratio(path, Name::Envoy, Metric::Rate)),
            timed(figure(Metric::P50)),
            timed(figure(Metric::P99)),
            timed(measured.ratio(path, Name::Envoy, Metric::P99)),
        );
    }
}

fn cell(figure: Option<Figure>, scale: f64) -> String {
    match figure {
        None => String::new(),
        Some(figure) if figure.is_noisy() => {
            format!(
                "too noisy (± {:.0} % > {:.0} %)",
                figure.spread * 100.0,
                TOO_NOISY * 100.0
            )
        }
        Some(figure) => format!(
            "{} ± {:.0} %",
            short(figure.median * scale),
            figure.spread * 100.0
        ),
    }
}

fn ratio(figure: Option<Figure>) -> String {
    match figure {
        None => String::new(),
        Some(figure) if figure.is_noisy() => "too noisy".to_owned(),
        Some(figure) => format!("{} ×", short(figure.median)),
    }
}
