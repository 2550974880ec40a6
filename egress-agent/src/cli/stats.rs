//! `stats`: the metrics, one value a line.

use regex::Regex;
use serde::Serialize;

use super::Failure;
use super::args::OutputArgument;
use super::client::Client;
use super::output;
use super::table::Column;

/// One value of a metric.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: String,
    pub(super) value: String,
}

const COLUMNS: &[Column<Sample>] = &[
    Column::new("METRIC", |s| s.name.clone()),
    Column::new("VALUE", |s| s.value.clone()),
    Column::new("LABELS", |s| s.labels.clone()),
];

/// `stats`.
pub(super) async fn stats(
    client: &Client,
    filter: Option<&str>,
    output: OutputArgument,
) -> Result<(), Failure> {
    let filter = filter.map(Regex::new).transpose().map_err(|error| {
        Failure::Said(format!("the filter is not a regular expression: {error}"))
    })?;
    let text = client.text("/v1/stats").await?;
    let samples: Vec<Sample> = samples(&text)
        .filter(|sample| {
            filter.as_ref().is_none_or(|filter| {
                filter.is_match(&format!("{}{{{}}}", sample.name, sample.labels))
            })
        })
        .collect();
    output::rows(output.output, COLUMNS, &samples, "no metric matches")?;
    Ok(())
}

/// The samples of OpenMetrics text; buckets of histograms are left to tools
/// that can draw.
pub(super) fn samples(text: &str) -> impl Iterator<Item = Sample> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .filter_map(|line| {
            // A label value may hold blanks and braces, but no bare quote.
            let (name, rest) = line.split_at(line.find(['{', ' '])?);
            let (labels, rest) = match rest.strip_prefix('{') {
                Some(inner) => {
                    let end = end_of_labels(inner)?;
                    (inner.get(..end)?, inner.get(end + 1..)?)
                }
                None => ("", rest),
            };
            let value = rest.split_ascii_whitespace().next()?;
            Some(Sample {
                name: name.to_owned(),
                labels: labels.to_owned(),
                value: value.to_owned(),
            })
        })
        .filter(|sample| !sample.name.ends_with("_bucket"))
}

fn end_of_labels(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.char_indices()
        .find(|&(_, c)| {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => quoted = !quoted,
                '}' => return !quoted,
                _ => {}
            }
            false
        })
        .map(|(at, _)| at)
}
