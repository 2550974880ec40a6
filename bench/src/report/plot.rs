//! Bars: one picture a metric, one group of bars a workload.

use std::fmt::Write as _;

use super::{Report, short};
use crate::peer::Name;
use crate::statistics::Metric;

const BAR: u32 = 14;
const GAP: u32 = 34;
const LEFT: u32 = 150;
const WIDTH: u32 = 860;

/// File name and picture of each plot that has something to show.
pub(super) fn all(report: &Report) -> Vec<(&'static str, String)> {
    [
        (
            "cpu",
            Metric::Cpu,
            "CPU for each unit of work, as part of Envoy's (less is better)",
        ),
        (
            "rate",
            Metric::Rate,
            "Rate, as part of Envoy's (more is better)",
        ),
        (
            "p99",
            Metric::P99,
            "p99 latency, as part of Envoy's (less is better)",
        ),
    ]
    .into_iter()
    .filter_map(|(name, metric, title)| Some((name, plot(report, metric, title)?)))
    .collect()
}

fn plot(report: &Report, metric: Metric, title: &str) -> Option<String> {
    let mut body = String::new();
    let mut y = 40;
    let mut longest: f64 = 1.0;
    let mut groups = Vec::new();
    for measured in &report.measured {
        if metric != Metric::Cpu && measured.is_crowded() {
            continue;
        }
        let bars: Vec<(Name, f64)> = Name::ALL
            .into_iter()
            .filter_map(|path| {
                let ratio = measured.ratio(path, Name::Envoy, metric)?;
                (!ratio.is_noisy()).then_some((path, ratio.median))
            })
            .collect();
        if bars.len() > 1 {
            longest = bars.iter().fold(longest, |longest, bar| longest.max(bar.1));
            groups.push((measured.name, bars));
        }
    }
    if groups.is_empty() {
        return None;
    }
    let scale = f64::from(WIDTH - LEFT - 120) / longest;
    for (workload, bars) in groups {
        let _ = writeln!(
            body,
            r#"<text x="8" y="{}" class="w">{workload}</text>"#,
            y + 11
        );
        for (path, value) in bars {
            let length = value * scale;
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y}" width="{length:.1}" height="{}" fill="{}"/><text x="{:.1}" y="{}">{} {}</text>"#,
                BAR - 2,
                colour(path),
                f64::from(LEFT) + length + 5.0,
                y + 10,
                path.title(),
                short(value)
            );
            y += BAR;
        }
        y += GAP - BAR;
    }
    let at_one = f64::from(LEFT) + scale;
    Some(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="11">
<style>.w {{ font-weight: bold }}</style>
<rect width="100%" height="100%" fill="white"/>
<text x="8" y="20" font-size="14">{title}</text>
<line x1="{at_one:.1}" x2="{at_one:.1}" y1="32" y2="{y}" stroke="#999" stroke-dasharray="3 3"/>
{body}</svg>
"##
    ))
}

const fn colour(path: Name) -> &'static str {
    match path {
        Name::Direct => "#9aa0a6",
        Name::Egress => "#1a73e8",
        Name::Envoy => "#c2185b",
        Name::Haproxy => "#f9a825",
        Name::Nginx => "#2e7d32",
        Name::Bare => "#5f6368",
        Name::Bytes => "#9aa0a6",
    }
}
