//! What is wrong with the settings, told all at once.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::flag::Side;

/// Settings that cannot be used: one problem or more.
#[derive(Debug)]
pub struct SettingsError {
    pub(super) problems: Vec<Problem>,
    /// The settings file, to show lines of.
    pub(super) file: Option<(PathBuf, String)>,
}

/// One thing that is wrong.
#[derive(Debug)]
pub enum Problem {
    /// The settings file cannot be read.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Something at a place in the settings file.
    InFile {
        /// What.
        message: String,
        /// Where.
        span: Range<usize>,
        /// How to mend it.
        help: Option<String>,
    },
    /// A bad value in a variable or flag.
    Elsewhere {
        /// `environment variable EGRESS_…` or `flag --…`.
        place: String,
        /// What.
        message: String,
    },
}

impl SettingsError {
    /// The problems.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whose side this is.
    pub const fn side(&self) -> Side {
        Side::Policy
    }

    /// The problems as text, with the lines of the file that they are in.
    pub fn render(&self, renderer: &Renderer) -> String {
        let parts: Vec<String> = self
            .problems
            .iter()
            .map(|problem| match (problem, &self.file) {
                (
                    Problem::InFile {
                        message,
                        span,
                        help,
                    },
                    Some((path, source)),
                ) => in_file(renderer, path, source, message, span, help.as_deref()),
                (other, _) => {
                    let title = Level::ERROR.primary_title(other.to_string());
                    renderer.render(&[annotate_snippets::Group::with_title(title)])
                }
            })
            .collect();
        parts.join("\n")
    }
}

fn in_file(
    renderer: &Renderer,
    path: &Path,
    source: &str,
    message: &str,
    span: &Range<usize>,
    help: Option<&str>,
) -> String {
    // A parser may point past the end, or between the bytes of a character.
    let end = (span.end.min(source.len())..=source.len())
        .find(|&at| source.is_char_boundary(at))
        .unwrap_or(source.len());
    let start = (0..=span.start.min(end))
        .rev()
        .find(|&at| source.is_char_boundary(at))
        .unwrap_or(0);
    let snippet = Snippet::source(source)
        .path(path.display().to_string())
        .annotation(AnnotationKind::Primary.span(start..end));
    let mut group = Level::ERROR.primary_title(message).element(snippet);
    if let Some(help) = help {
        group = group.element(Level::HELP.message(help));
    }
    renderer.render(&[group])
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, error } => {
                write!(f, "cannot read settings file {}: {error}", path.display())
            }
            Self::InFile { message, help, .. } => {
                f.write_str(message)?;
                help.as_ref().map_or(Ok(()), |help| write!(f, " ({help})"))
            }
            Self::Elsewhere { place, message } => write!(f, "{place}: {message}"),
        }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

impl std::error::Error for SettingsError {}
