//! Files as texts within bounds, and the documents in them.

use crate::policy::diagnostic::{Diagnostic, Severity, Source, Span};

/// Bounds on what is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one file.
    pub bytes: usize,
    /// Levels of nesting.
    pub depth: usize,
    /// Nodes of one document.
    pub nodes: usize,
    /// Bytes of text that anchors and aliases may copy in one document.
    pub alias_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 32 << 20,
            depth: 64,
            nodes: 500_000,
            alias_bytes: 4 << 20,
        }
    }
}

/// Bytes as text, or why they cannot be: too many, or not UTF-8.
pub fn text_of(name: &str, bytes: Vec<u8>, limits: &Limits) -> Result<String, Box<Diagnostic>> {
    if bytes.len() > limits.bytes {
        let message = format!("the file has more than {} bytes", limits.bytes);
        let failure = Diagnostic::new(Severity::Error, "file-size", message)
            .help("split it into several files")
            .at(&Source::nameless(name), Span::default());
        return Err(Box::new(failure));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let head = error.as_bytes().get(..valid).unwrap_or_default();
        let line = memchr::memchr_iter(b'\n', head).count() + 1;
        let start = head.iter().rposition(|b| *b == b'\n').map_or(0, |p| p + 1);
        let tail = head.get(start..).unwrap_or_default();
        let column = String::from_utf8_lossy(tail).chars().count() + 1;
        let span = Span::new(line, column, line, column + 1);
        let failure = Diagnostic::new(Severity::Error, "encoding", "the file is not UTF-8 text")
            .help("save it as UTF-8")
            .at(&Source::nameless(name), span);
        Box::new(failure)
    })
}

/// The parts of a file that hold a document, each with the number of lines
/// before it. Documents are told apart by lines that start with `---`, as
/// kubectl does, so that one that cannot be read costs the others nothing.
pub fn parts(text: &str) -> Vec<(&str, u32)> {
    split(text)
        .into_iter()
        .map(|(range, line)| (&text[range], line))
        .filter(|(part, _)| !is_blank(part))
        .collect()
}

/// Ranges of text between separator lines, each with the number of lines
/// before it.
fn split(text: &str) -> Vec<(std::ops::Range<usize>, u32)> {
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut at = text.len() - body.len();
    let (mut start, mut start_line, mut line) = (at, 0, 0);
    let mut out = Vec::new();
    for piece in body.split_inclusive('\n') {
        let separates = piece
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if separates && at > start {
            out.push((start..at, start_line));
            (start, start_line) = (at, line);
        }
        at += piece.len();
        line += 1;
    }
    out.push((start..at, start_line));
    out
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%')
    })
}
