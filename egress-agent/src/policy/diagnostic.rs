//! One problem in what was written: where it is, which rule it breaks, and how
//! to mend it.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

/// A part of a file, or of another text, that holds one document.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Path of the file, or the name of another source.
    pub name: Arc<str>,
    /// Text, to show the line of a problem.
    pub text: Arc<str>,
    /// Lines of the file before the text.
    pub lines_before: u32,
}

impl Source {
    /// A source of which nothing but the name is known.
    pub fn nameless(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            text: "".into(),
            lines_before: 0,
        })
    }
}

/// A place in a [`Source`]: one line, or the first line of several. Lines and
/// columns count from 1, columns in characters; line 0 means that the place is
/// not known. Lines are those of the source's text, not of its file.
///
/// Every value of every document has one, so it is kept small: columns past
/// 65535 are told as that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Span {
    /// Line.
    pub line: u32,
    /// First column.
    pub column: u16,
    /// Column after the last character; 0: to the end of the line and further.
    pub end: u16,
}

impl Span {
    /// From a place to another.
    pub fn new(line: usize, column: usize, end_line: usize, end: usize) -> Self {
        let small = |column| u16::try_from(column).unwrap_or(u16::MAX);
        Self {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: small(column),
            end: if end_line == line { small(end) } else { 0 },
        }
    }

    /// The first column of a line.
    #[must_use]
    pub const fn line(line: u32) -> Self {
        Self {
            line,
            column: 1,
            end: 2,
        }
    }

    /// The first character of the place.
    #[must_use]
    pub const fn start(self) -> Self {
        Self {
            end: self.column.saturating_add(1),
            ..self
        }
    }

    /// Whether the place is known.
    pub const fn is_known(self) -> bool {
        self.line != 0
    }
}

/// A place and the text that it is in.
#[derive(Clone, Debug)]
pub struct Location {
    /// The text.
    pub source: Arc<Source>,
    /// The place.
    pub span: Span,
}

impl Location {
    /// Line in the file, from 1; 0 when it is not known.
    pub fn line(&self) -> u32 {
        if self.span.is_known() {
            self.span.line + self.source.lines_before
        } else {
            0
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// For information: something was passed over on purpose.
    Note,
    /// Accepted, but it will not do what it seems to.
    Warning,
    /// The document is rejected.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One problem.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Stable name of the rule, such as `unknown-field`.
    pub rule: &'static str,
    /// What is wrong, naming the field and the value.
    pub message: Box<str>,
    /// How to mend it.
    pub help: Option<Box<str>>,
    /// Where it is.
    pub location: Option<Location>,
    /// Path of the field inside the document, such as `spec.ports[0].number`.
    pub field: Option<Box<str>>,
    /// The document, as `Kind namespace/name`.
    pub document: Option<Box<str>>,
    /// Other places that matter, each with a word on why.
    pub related: Vec<(Location, Box<str>)>,
}

impl Diagnostic {
    /// A problem with nothing but its message.
    pub fn new(severity: Severity, rule: &'static str, message: impl Into<Box<str>>) -> Self {
        Self {
            severity,
            rule,
            message: message.into(),
            help: None,
            location: None,
            field: None,
            document: None,
            related: Vec::new(),
        }
    }

    /// Says how to mend it.
    #[must_use]
    pub fn help(mut self, help: impl Into<Box<str>>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Says where it is.
    #[must_use]
    pub fn at(mut self, source: &Arc<Source>, span: Span) -> Self {
        self.location = Some(Location {
            source: Arc::clone(source),
            span,
        });
        self
    }

    /// Names the document.
    #[must_use]
    pub fn document(mut self, document: impl Into<Box<str>>) -> Self {
        self.document = Some(document.into());
        self
    }

    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<Box<str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Points at another place.
    #[must_use]
    pub fn related(mut self, source: &Arc<Source>, span: Span, why: impl Into<Box<str>>) -> Self {
        let location = Location {
            source: Arc::clone(source),
            span,
        };
        self.related.push((location, why.into()));
        self
    }

    /// Whether the document is rejected for it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// `file:line:column: severity[rule]: message`, on one line.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{}:", location.source.name)?;
            if location.span.is_known() {
                write!(f, "{}:{}:", location.line(), location.span.column)?;
            }
            f.write_str(" ")?;
        }
        write!(f, "{}[{}]: {}", self.severity, self.rule, self.message)?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        Ok(())
    }
}

impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Place<'a> {
            file: &'a str,
            line: u32,
            column: u16,
            #[serde(skip_serializing_if = "is_zero")]
            end_column: u16,
            #[serde(skip_serializing_if = "Option::is_none")]
            message: Option<&'a str>,
        }
        #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes so")]
        fn is_zero(number: &u16) -> bool {
            *number == 0
        }
        fn place<'a>(location: &'a Location, message: Option<&'a str>) -> Place<'a> {
            let Location { source, span } = location;
            Place {
                file: &source.name,
                line: location.line(),
                column: span.column,
                end_column: span.end,
                message,
            }
        }
        let mut out = serializer.serialize_struct("Diagnostic", 8)?;
        out.serialize_field("severity", &self.severity.to_string())?;
        out.serialize_field("rule", self.rule)?;
        out.serialize_field("message", &self.message)?;
        out.serialize_field("help", &self.help)?;
        out.serialize_field("document", &self.document)?;
        out.serialize_field("field", &self.field)?;
        let location = self.location.as_ref().map(|location| place(location, None));
        out.serialize_field("location", &location)?;
        let related: Vec<_> = self
            .related
            .iter()
            .map(|(location, why)| place(location, Some(why)))
            .collect();
        out.serialize_field("related", &related)?;
        out.end()
    }
}
