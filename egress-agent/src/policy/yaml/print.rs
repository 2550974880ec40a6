//! Printing documents, for `egressctl get -o yaml` and the state directory.

use std::fmt::Write;

use serde_json::Value as Json;

use super::Value;
use super::scalar::resolve;

/// A JSON value as block YAML, with a newline at its end.
pub fn to_yaml(value: &Json) -> String {
    let mut out = String::new();
    match value {
        Json::Object(entries) if !entries.is_empty() => mapping(&mut out, entries, 0),
        Json::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        other => {
            scalar(&mut out, other);
            out.push('\n');
        }
    }
    out
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n(' ', depth));
}

fn mapping(out: &mut String, entries: &serde_json::Map<String, Json>, depth: usize) {
    for (key, value) in entries {
        // The first entry of a list's item stands behind its dash.
        if out.is_empty() || out.ends_with('\n') {
            indent(out, depth);
        }
        text(out, key);
        out.push(':');
        match value {
            Json::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                mapping(out, inner, depth + 2);
            }
            Json::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(out, items, depth);
            }
            other => {
                out.push(' ');
                scalar(out, other);
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Json], depth: usize) {
    for item in items {
        indent(out, depth);
        out.push_str("- ");
        match item {
            Json::Object(inner) if !inner.is_empty() => mapping(out, inner, depth + 2),
            other => {
                // A list in a list does not occur in these documents; the
                // flow form holds any value.
                scalar(out, other);
                out.push('\n');
            }
        }
    }
}

fn scalar(out: &mut String, value: &Json) {
    match value {
        Json::String(value) => text(out, value),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

/// Plain where that reads back as the same text, else in JSON's quotes, which
/// YAML understands.
fn text(out: &mut String, value: &str) {
    let plain = matches!(resolve(value), Value::String(_))
        && value.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.'))
        && value.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'=' | b',')
        })
        && !value.starts_with("---")
        && !value.starts_with("...");
    if plain {
        out.push_str(value);
    } else {
        quoted(out, value);
    }
}

fn quoted(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
