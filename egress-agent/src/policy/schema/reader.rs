//! Reading nodes as typed values, with every problem reported where it is.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::Arc;

use super::{Entries, Interval, Spanned, Text, Time, parse_duration};
use crate::policy::diagnostic::{Diagnostic, Severity, Source, Span};
use crate::policy::yaml::{Node, Value};
use crate::policy::{Options, UnknownFields};

/// A step into a document.
#[derive(Clone, Debug)]
enum Step {
    Field(Cow<'static, str>),
    Key(Box<str>),
    Index(usize),
}

/// Reads one document: holds where we are in it, and the problems so far.
pub struct Reader<'a> {
    /// Settings.
    pub options: &'a Options,
    /// The text.
    pub source: &'a Arc<Source>,
    /// Problems.
    pub out: &'a mut Vec<Diagnostic>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// The labels do not object to virtual addresses
    /// (`networking.istio.io/enable-autoallocate-ip`).
    pub allocates: bool,
    /// The labels name a waypoint (`istio.io/use-waypoint`).
    pub waypoint: bool,
    document: Box<str>,
    path: Vec<Step>,
}

/// The fields of an object that is being read.
pub struct Fields<'n> {
    /// Where the object is.
    pub span: Span,
    entries: &'n [(crate::policy::yaml::Key, Node)],
    known: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The value of a field, which is then a known one.
    pub fn take(&mut self, name: &'static str) -> Option<&'n Node> {
        self.known.push(name);
        self.peek(name)
    }

    /// The value of a field.
    pub fn peek(&self, name: &str) -> Option<&'n Node> {
        self.entries
            .iter()
            .find(|(key, _)| *key.name == *name)
            .map(|(_, node)| node)
    }
}

impl<'a> Reader<'a> {
    /// A reader at the root of a document.
    pub fn new(
        options: &'a Options,
        source: &'a Arc<Source>,
        out: &'a mut Vec<Diagnostic>,
        namespace: Arc<str>,
        document: Box<str>,
    ) -> Self {
        Self {
            options,
            source,
            out,
            namespace,
            allocates: true,
            waypoint: false,
            document,
            path: Vec::new(),
        }
    }

    /// Reports a problem at the current place in the document.
    pub fn report(
        &mut self,
        severity: Severity,
        rule: &'static str,
        span: Span,
        message: impl Into<Box<str>>,
        help: impl Into<Box<str>>,
    ) {
        let diagnostic = Diagnostic::new(severity, rule, message)
            .help(help)
            .at(self.source, span)
            .document(self.document.clone())
            .field(self.field_path());
        self.out.push(diagnostic);
    }

    /// Reports an error.
    pub fn error(
        &mut self,
        rule: &'static str,
        span: Span,
        message: impl Into<Box<str>>,
        help: impl Into<Box<str>>,
    ) {
        self.report(Severity::Error, rule, span, message, help);
    }

    /// Reports a warning.
    pub fn warn(
        &mut self,
        rule: &'static str,
        span: Span,
        message: impl Into<Box<str>>,
        help: impl Into<Box<str>>,
    ) {
        self.report(Severity::Warning, rule, span, message, help);
    }

    /// Reports that a field has no meaning here.
    pub fn no_meaning(&mut self, span: Span, name: &str, why: &str) {
        let message = format!("`{name}` has no effect here: {why}");
        self.warn(
            "no-effect",
            span,
            message,
            "it can stay; nothing depends on it",
        );
    }

    /// `spec.http[0].route`.
    pub fn field_path(&self) -> Box<str> {
        let mut out = String::new();
        for step in &self.path {
            let _ = match step {
                Step::Field(name) if out.is_empty() => write!(out, "{name}"),
                Step::Field(name) => write!(out, ".{name}"),
                Step::Key(name) => write!(out, "[{name:?}]"),
                Step::Index(index) => write!(out, "[{index}]"),
            };
        }
        out.into()
    }

    /// Runs `read` one step further in.
    pub fn within<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(Step::Field(Cow::Borrowed(name)));
        let value = read(self);
        self.path.pop();
        value
    }

    /// Runs `read` at an element of the current list.
    pub fn at_index<T>(&mut self, index: usize, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(Step::Index(index));
        let value = read(self);
        self.path.pop();
        value
    }

    /// Runs `read` at an entry of the current map.
    pub fn at_key<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(Step::Key(key.into()));
        let value = read(self);
        self.path.pop();
        value
    }

    fn wrong_type(&mut self, node: &Node, wanted: &str) {
        let (rule, help) = match &node.value {
            Value::Null => ("null", "give it a value, or leave the field out".to_owned()),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) if wanted == "a string" => {
                ("type", "put it in quotes to make it a string".to_owned())
            }
            Value::String(_) if wanted != "an object" && wanted != "a list" => {
                ("type", "write it without quotes".to_owned())
            }
            _ => ("type", format!("write {wanted}")),
        };
        let message = format!(
            "`{}` must be {wanted}, not {}",
            self.path.last().map_or("document".into(), Step::to_string),
            node.kind()
        );
        self.error(rule, node.span, message, help);
    }

    /// Reads an object; fields that `read` did not ask for are unknown.
    pub fn object<'n, T>(
        &mut self,
        node: &'n Node,
        read: impl FnOnce(&mut Self, &mut Fields<'n>) -> T,
    ) -> Option<T> {
        let Value::Mapping(entries) = &node.value else {
            self.wrong_type(node, "an object");
            return None;
        };
        let mut fields = Fields {
            span: node.span,
            entries,
            known: Vec::with_capacity(entries.len().max(8)),
        };
        let value = read(self, &mut fields);
        for (key, _) in entries {
            if !fields.known.contains(&&*key.name) {
                self.unknown(&key.name, key.span, &fields.known);
            }
        }
        Some(value)
    }

    fn unknown(&mut self, name: &str, span: Span, known: &[&'static str]) {
        let nearest = nearest(name, known.iter().copied());
        let help = if let Some(nearest) = nearest {
            format!("did you mean `{nearest}`?")
        } else {
            let mut names: Vec<&str> = known.to_vec();
            names.sort_unstable();
            names.dedup();
            format!("fields here are: {}", names.join(", "))
        };
        self.path.push(Step::Field(Cow::Owned(name.to_owned())));
        let message = format!("unknown field `{}`", self.field_path());
        let severity = match self.options.unknown_fields {
            UnknownFields::Error => Severity::Error,
            UnknownFields::Warn => Severity::Warning,
        };
        self.report(severity, "unknown-field", span, message, help);
        self.path.pop();
    }

    /// Reads a field that must not be null.
    pub fn field<'n, T>(
        &mut self,
        fields: &mut Fields<'n>,
        name: &'static str,
        read: impl FnOnce(&mut Self, &'n Node) -> Option<T>,
    ) -> Option<T> {
        let node = fields.take(name)?;
        self.within(name, |reader| read(reader, node))
    }

    /// Reads a field that must not be null, and is seldom there or large.
    pub fn boxed<'n, T>(
        &mut self,
        fields: &mut Fields<'n>,
        name: &'static str,
        read: impl FnOnce(&mut Self, &'n Node) -> Option<T>,
    ) -> Option<Box<T>> {
        self.field(fields, name, read).map(Box::new)
    }

    /// Reads a field of a wrapper type, whose null means that it is unset.
    pub fn nullable<'n, T>(
        &mut self,
        fields: &mut Fields<'n>,
        name: &'static str,
        read: impl FnOnce(&mut Self, &'n Node) -> Option<T>,
    ) -> Option<T> {
        let node = fields.take(name)?;
        if node.value == Value::Null {
            return None;
        }
        self.within(name, |reader| read(reader, node))
    }

    /// Reports that a required field is missing.
    pub fn required(&mut self, span: Span, name: &'static str) {
        self.within(name, |reader| {
            let message = format!("`{}` is required", reader.field_path());
            reader.error("required", span, message, format!("add `{name}`"));
        });
    }

    /// Reads the items of a list field; absent reads as empty.
    pub fn list<'n, T>(
        &mut self,
        fields: &mut Fields<'n>,
        name: &'static str,
        read: impl FnMut(&mut Self, &'n Node) -> Option<T>,
    ) -> Vec<T> {
        self.field(fields, name, |reader, node| Some(reader.items(node, read)))
            .unwrap_or_default()
    }

    /// Reads the items of a list.
    pub fn items<'n, T>(
        &mut self,
        node: &'n Node,
        mut read: impl FnMut(&mut Self, &'n Node) -> Option<T>,
    ) -> Vec<T> {
        let Value::Sequence(items) = &node.value else {
            self.wrong_type(node, "a list");
            return Vec::new();
        };
        let mut out = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            out.extend(self.at_index(index, |reader| read(reader, item)));
        }
        out
    }

    /// Reads a map field; absent reads as empty.
    pub fn map<'n, T>(
        &mut self,
        fields: &mut Fields<'n>,
        name: &'static str,
        mut read: impl FnMut(&mut Self, &'n Node) -> Option<T>,
    ) -> Entries<T> {
        self.field(fields, name, |reader, node| {
            let Value::Mapping(entries) = &node.value else {
                reader.wrong_type(node, "an object");
                return None;
            };
            let mut out = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let name = Spanned::new(key.name.clone(), key.span);
                let value = reader.at_key(&key.name, |reader| read(reader, value));
                out.extend(value.map(|value| (name, value)));
            }
            Some(out)
        })
        .unwrap_or_default()
    }

    /// A string.
    pub fn text(&mut self, node: &Node) -> Option<Text> {
        if let Value::String(text) = &node.value {
            return Some(Spanned::new(text.clone(), node.span));
        }
        self.wrong_type(node, "a string");
        None
    }

    /// A string field.
    pub fn text_field(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Text> {
        self.field(fields, name, Self::text)
    }

    /// A list of strings.
    pub fn texts(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Vec<Text> {
        self.list(fields, name, Self::text)
    }

    /// A map of strings.
    pub fn text_map(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Entries<Text> {
        self.map(fields, name, Self::text)
    }

    /// A boolean.
    pub fn boolean(&mut self, node: &Node) -> Option<Spanned<bool>> {
        if let Value::Bool(value) = node.value {
            return Some(Spanned::new(value, node.span));
        }
        self.wrong_type(node, "true or false");
        None
    }

    /// A whole number that fits the type of the field.
    pub fn integer<T: TryFrom<i64> + Bounds>(&mut self, node: &Node) -> Option<Spanned<T>> {
        let value = match node.value {
            Value::Integer(value) => value,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "only whole numbers within 53 bits pass"
            )]
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => value as i64,
            Value::Float(value) if value.abs() >= 9e15 => i64::MAX,
            _ => {
                self.wrong_type(node, "a whole number");
                return None;
            }
        };
        if let Ok(value) = T::try_from(value) {
            return Some(Spanned::new(value, node.span));
        }
        let message = format!(
            "`{}` is {}; it must be {}",
            self.field_path(),
            value,
            T::BOUNDS
        );
        self.error(
            "number-range",
            node.span,
            message,
            "choose a number in that range",
        );
        None
    }

    /// A number.
    pub fn number(&mut self, node: &Node) -> Option<Spanned<f64>> {
        let value = match node.value {
            #[expect(clippy::cast_precision_loss, reason = "percentages; far below 53 bits")]
            Value::Integer(value) => value as f64,
            Value::Float(value) if value.is_finite() => value,
            _ => {
                self.wrong_type(node, "a number");
                return None;
            }
        };
        Some(Spanned::new(value, node.span))
    }

    /// A duration of any size.
    pub fn any_time(&mut self, node: &Node) -> Option<Time> {
        let Value::String(text) = &node.value else {
            self.wrong_type(node, "a duration such as \"10s\"");
            return None;
        };
        if let Some(value) = parse_duration(text) {
            return Some(Spanned::new(value, node.span));
        }
        let unit = text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty();
        let help = if unit {
            format!("a unit is needed, such as `{text}s`")
        } else {
            "write a number and a unit, such as `300ms`, `1.5s` or `1h30m`".to_owned()
        };
        let message = format!(
            "`{}` is {text:?}, which is not a duration",
            self.field_path()
        );
        self.error("duration", node.span, message, help);
        None
    }

    /// A duration of at least 1ms and in whole milliseconds.
    pub fn time(&mut self, node: &Node) -> Option<Time> {
        let time = self.any_time(node)?;
        self.check_time(time)
    }

    /// A duration in whole milliseconds, or zero for none. What is less than a
    /// millisecond either way is zero, as Istio counts.
    pub fn time_or_off(&mut self, node: &Node) -> Option<Time> {
        let time = self.any_time(node)?;
        if time.nanoseconds.abs() < 1_000_000 {
            return Some(Spanned::new(Interval::default(), time.span));
        }
        self.check_time(time)
    }

    fn check_time(&mut self, time: Time) -> Option<Time> {
        let Interval { nanoseconds } = time.value;
        let problem = if nanoseconds < 1_000_000 {
            "at least 1ms"
        } else if nanoseconds % 1_000_000 != 0 {
            "in whole milliseconds"
        } else {
            return Some(time);
        };
        let message = format!("`{}` must be {problem}", self.field_path());
        let help = if nanoseconds == 0 {
            "to have none, leave the field out"
        } else {
            "write it as, for example, `250ms`"
        };
        self.error("duration-range", time.span, message, help);
        None
    }

    /// A duration field of at least 1ms.
    pub fn time_field(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Time> {
        self.field(fields, name, Self::time)
    }

    /// One of several words.
    pub fn word<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<Spanned<T>> {
        let text = self.text(node)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == &**text) {
            return Some(Spanned::new(*value, node.span));
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let help = match nearest(&text.to_uppercase(), names.iter().copied()) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => format!("one of {}", names.join(", ")),
        };
        let message = format!(
            "`{}` is {:?}; it must be one of {}",
            self.field_path(),
            &**text,
            names.join(", ")
        );
        self.error("enum", node.span, message, help);
        None
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => f.write_str(name),
            Self::Key(name) => f.write_str(name),
            Self::Index(index) => write!(f, "item {index}"),
        }
    }
}

/// Number types of the API, for messages.
pub trait Bounds {
    /// The range in words.
    const BOUNDS: &'static str;
}

impl Bounds for i32 {
    const BOUNDS: &'static str = "between -2147483648 and 2147483647";
}

impl Bounds for u32 {
    const BOUNDS: &'static str = "between 0 and 4294967295";
}

impl Bounds for u64 {
    const BOUNDS: &'static str = "0 or more";
}

/// The known word that a mistyped one most resembles.
pub fn nearest<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let lower = text.to_lowercase().replace(['_', '-'], "");
    words
        .map(|word| {
            let plain = word.to_lowercase().replace(['_', '-'], "");
            (strsim::damerau_levenshtein(&lower, &plain), word)
        })
        .filter(|(distance, word)| *distance <= 1 + word.len().min(lower.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}
