//! What the bench hands out: Markdown, JSON, SVG.

mod json;
mod markdown;
mod plot;
pub(crate) mod targets;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::extra::Extra;
use crate::measure::Measured;

/// All that was measured.
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) rounds: usize,
    /// Which CPUs did what.
    pub(crate) cpus: String,
    pub(crate) measured: Vec<Measured>,
    pub(crate) extra: Vec<Extra>,
}

impl Report {
    /// Writes `bench.md`, `bench.json` and one plot a metric to `folder`;
    /// returns the Markdown.
    pub(crate) fn write(&self, folder: &Path) -> Result<String> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let markdown = markdown::render(self);
        fs::write(folder.join("bench.md"), &markdown)?;
        fs::write(
            folder.join("bench.json"),
            serde_json::to_string_pretty(&json::value(self))?,
        )?;
        for (name, picture) in plot::all(self) {
            fs::write(folder.join(format!("{name}.svg")), picture)?;
        }
        Ok(markdown)
    }

    /// Cells that hold no figure because the rounds lay too far apart, and
    /// all cells.
    pub(crate) fn noise(&self) -> (usize, usize) {
        let verdicts: Vec<bool> = targets::all(self)
            .iter()
            .filter_map(|row| row.verdict.as_ref())
            .map(|verdict| matches!(verdict, targets::Verdict::Noisy))
            .collect();
        (
            verdicts.iter().filter(|noisy| **noisy).count(),
            verdicts.len(),
        )
    }
}

/// A number with three digits that count.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if digits > 0 {
        return text;
    }
    // Thousands apart.
    let (sign, whole) = text.strip_prefix('-').map_or(("", &*text), |w| ("-", w));
    let mut out = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(0.333_3), "0.33");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(1_234_567.8), "1,234,568");
    }
}
