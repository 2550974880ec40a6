//! Diagnostics as a person reads them: the source line with a caret under it.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::diagnostic::{Diagnostic, Location, Severity};

/// Characters of a line that are shown; a longer one is cut around the place.
const LINE_MAX: usize = 160;

/// The diagnostic over several lines, with styles or without.
pub fn render(diagnostic: &Diagnostic, styled: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let excerpt = diagnostic.location.as_ref().map(Excerpt::of);
    let related: Vec<(Excerpt, &str)> = diagnostic
        .related
        .iter()
        .map(|(location, why)| (Excerpt::of(location), &**why))
        .collect();
    let field = diagnostic.field.as_deref().unwrap_or_default();
    let title = level
        .clone()
        .primary_title(&*diagnostic.message)
        .id(diagnostic.rule);
    let mut group = Group::with_title(title);
    if let Some(excerpt) = &excerpt {
        group = if excerpt.text.is_empty() {
            group.element(Level::NOTE.no_name().message(excerpt.place()))
        } else {
            group.element(excerpt.snippet(AnnotationKind::Primary, ""))
        };
    }
    for (excerpt, why) in &related {
        group = if excerpt.text.is_empty() {
            let text = format!("{}: {why}", excerpt.place());
            group.element(Level::NOTE.message(text))
        } else {
            group.element(excerpt.snippet(AnnotationKind::Context, why))
        };
    }
    if let Some(document) = &diagnostic.document {
        let text = match field {
            "" => format!("in {document}"),
            field => format!("in {document}, {field}"),
        };
        group = group.element(Level::NOTE.message(text));
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(&**help));
    }
    let renderer = if styled {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    renderer.render(&[group])
}

/// The line of a place.
struct Excerpt {
    name: String,
    line: usize,
    column: usize,
    text: String,
    range: std::ops::Range<usize>,
}

impl Excerpt {
    fn of(location: &Location) -> Self {
        let Location { source, span } = location;
        let number = span.line as usize;
        let whole = number
            .checked_sub(1)
            .and_then(|index| source.text.split('\n').nth(index))
            .unwrap_or_default();
        let whole = whole.strip_suffix('\r').unwrap_or(whole);
        let count = whole.chars().count();
        let start = usize::from(span.column).saturating_sub(1).min(count);
        let end = if span.end > 0 {
            usize::from(span.end) - 1
        } else {
            whole.trim_end().chars().count()
        };
        let end = end.clamp(start, count).max((start + 1).min(count));
        // Of a line of thousands of characters only the part around the place.
        let from = if count > LINE_MAX {
            start.saturating_sub(LINE_MAX / 4)
        } else {
            0
        };
        let to = (from + LINE_MAX).min(count);
        let part: String = whole.chars().skip(from).take(to - from).collect();
        let byte = |at: usize| {
            let at = at.saturating_sub(from);
            part.char_indices()
                .nth(at)
                .map_or(part.len(), |(byte, _)| byte)
        };
        let range = byte(start)..byte(end.min(to));
        Self {
            name: source.name.to_string(),
            line: location.line() as usize,
            column: start + 1,
            text: part,
            range,
        }
    }

    fn place(&self) -> String {
        if self.line == 0 {
            self.name.clone()
        } else {
            format!("{}:{}:{}", self.name, self.line, self.column)
        }
    }

    fn snippet<'s>(
        &'s self,
        kind: AnnotationKind,
        label: &'s str,
    ) -> Snippet<'s, annotate_snippets::Annotation<'s>> {
        let mut annotation = kind.span(self.range.clone());
        if !label.is_empty() {
            annotation = annotation.label(label);
        }
        Snippet::source(&self.text)
            .line_start(self.line)
            .path(&self.name)
            .annotation(annotation)
    }
}
