//! Tables for people: columns as wide as they must be, colours where they say
//! something.

use std::fmt::Write;

use clap::builder::styling::{AnsiColor, Style};

/// One column of a table of `Row`s.
pub(super) struct Column<Row> {
    title: &'static str,
    /// Only in the wide form.
    wide: bool,
    cell: fn(&Row) -> String,
}

impl<Row> Column<Row> {
    /// A column of every table.
    pub(super) const fn new(title: &'static str, cell: fn(&Row) -> String) -> Self {
        Self {
            title,
            wide: false,
            cell,
        }
    }

    /// A column of the wide form.
    pub(super) const fn wide(title: &'static str, cell: fn(&Row) -> String) -> Self {
        Self {
            title,
            wide: true,
            cell,
        }
    }

    /// Its title.
    pub(super) const fn title(&self) -> &'static str {
        self.title
    }

    /// What it shows of a row.
    pub(super) fn text(&self, row: &Row) -> String {
        cell(&(self.cell)(row))
    }
}

/// Space between columns.
const GAP: usize = 2;

/// Writes a table, with the styles that [`mood`] gives to its words.
pub(super) fn table<Row>(columns: &[Column<Row>], rows: &[Row], wide: bool) -> String {
    let columns: Vec<&Column<Row>> = columns.iter().filter(|c| wide || !c.wide).collect();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|c| cell(&(c.cell)(row))).collect())
        .collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(n, column)| {
            let widest = cells.iter().filter_map(|row| row.get(n)).map(|c| width(c));
            widest.max().unwrap_or(0).max(column.title.len())
        })
        .collect();
    let mut text = String::new();
    let bold = Style::new().bold();
    let titles: Vec<(&str, Style)> = columns.iter().map(|c| (c.title, bold)).collect();
    line(&mut text, &titles, &widths);
    for row in &cells {
        let styled: Vec<(&str, Style)> = row.iter().map(|c| (c.as_str(), mood(c))).collect();
        line(&mut text, &styled, &widths);
    }
    text
}

fn line(text: &mut String, cells: &[(&str, Style)], widths: &[usize]) {
    for (n, ((cell, style), &wide)) in cells.iter().zip(widths).enumerate() {
        let _ = write!(text, "{style}{cell}{style:#}");
        // No blanks at the end of a line.
        if n + 1 < cells.len() {
            let blanks = wide.saturating_sub(width(cell)) + GAP;
            text.extend(std::iter::repeat_n(' ', blanks));
        }
    }
    text.push('\n');
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A cell never breaks its line or the terminal: control characters are
/// escaped, and an empty cell is `-`.
fn cell(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Green for good words, yellow for those to look at, red for bad ones.
pub(super) fn mood(word: &str) -> Style {
    let color = match word {
        "ready" | "healthy" | "accepted" | "valid" => AnsiColor::Green,
        "draining" | "starting" | "warning" | "expires soon" => AnsiColor::Yellow,
        "ejected" | "unhealthy" | "rejected" | "expired" | "error" | "failed" => AnsiColor::Red,
        _ => return Style::new(),
    };
    color.on_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_wide_ones_can_be_left_out() {
        type Row = (&'static str, &'static str);
        let columns: [Column<Row>; 3] = [
            Column::new("NAME", |row| row.0.to_owned()),
            Column::wide("WHY", |_| "because".to_owned()),
            Column::new("STATE", |row| row.1.to_owned()),
        ];
        let rows = [("a", "healthy"), ("longer", ""), ("\u{1b}[2J\n", "x")];
        let plain = anstream::adapter::strip_str(&table(&columns, &rows, false)).to_string();
        assert_eq!(
            plain,
            "NAME         STATE\n\
             a            healthy\n\
             longer       -\n\
             \\u{1b}[2J\\n  x\n"
        );
        let wide = anstream::adapter::strip_str(&table(&columns, &rows[..1], true)).to_string();
        assert_eq!(wide, "NAME  WHY      STATE\na     because  healthy\n");
    }
}
