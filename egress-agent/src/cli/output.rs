//! Writes results in the form that was asked for.

use std::io::{self, Write};

use serde::Serialize;

use super::args::Output;
use super::table::{Column, table};
use super::yaml::yaml;

/// Writes rows. Without any, a table says so on standard error.
pub(super) fn rows<Row: Serialize>(
    output: Output,
    columns: &[Column<Row>],
    rows: &[Row],
    none: &str,
) -> io::Result<()> {
    match output {
        Output::Table | Output::Wide if rows.is_empty() => {
            anstream::eprintln!("{none}");
            Ok(())
        }
        Output::Table => text(&table(columns, rows, false)),
        Output::Wide => text(&table(columns, rows, true)),
        Output::Yaml | Output::Json => value(output, &rows),
    }
}

/// Writes a value as YAML or JSON.
pub(super) fn value<T: Serialize>(output: Output, value: &T) -> io::Result<()> {
    let value = serde_json::to_value(value)?;
    text(&match output {
        Output::Yaml => yaml(&value),
        _ => format!("{value:#}\n"),
    })
}

/// Writes text with styles, without them where it is not to a terminal. A
/// reader that has seen enough (`egressctl … | head`) is no error.
pub(super) fn text(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
