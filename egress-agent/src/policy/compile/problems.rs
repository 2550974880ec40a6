//! Warnings that come up between documents.

use std::collections::HashSet;
use std::sync::Arc;

use crate::policy::diagnostic::Source;
use crate::policy::diagnostic::{Diagnostic, Severity, Span};
use crate::policy::document::Document;

/// The warnings so far; one place gets one of a kind.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: Vec<Diagnostic>,
    seen: HashSet<(&'static str, Arc<str>, u32, Span)>,
}

/// A warning that can still be added to.
pub(super) struct Pending<'p>(Option<&'p mut Diagnostic>);

impl Problems {
    /// Warns about a place in a document.
    pub(super) fn warn(
        &mut self,
        rule: &'static str,
        document: &Document,
        span: Span,
        message: impl Into<Box<str>>,
    ) -> Pending<'_> {
        // A source is told from others of its file by its first line.
        let name = Arc::clone(&document.source.name);
        let place = (rule, name, document.source.lines_before, span);
        if !self.seen.insert(place) {
            return Pending(None);
        }
        let span = if span.is_known() {
            span
        } else {
            document.first_line()
        };
        self.list.push(
            Diagnostic::new(Severity::Warning, rule, message)
                .at(&document.source, span)
                .document(document.id.to_string()),
        );
        Pending(self.list.last_mut())
    }

    pub(super) fn into_list(self) -> Vec<Diagnostic> {
        let mut list = self.list;
        sort(&mut list);
        list
    }
}

/// Puts warnings in the order of their places.
pub(super) fn sort(list: &mut [Diagnostic]) {
    let place = |d: &Diagnostic| {
        let location = d.location.as_ref();
        location.map(|l| (Arc::clone(&l.source.name), l.line(), l.span.column))
    };
    list.sort_by_cached_key(place);
}

impl Pending<'_> {
    /// Says how to mend it.
    pub(super) fn help(mut self, help: impl Into<Box<str>>) -> Self {
        if let Some(diagnostic) = &mut self.0 {
            diagnostic.help = Some(help.into());
        }
        self
    }

    /// Points at another place.
    pub(super) fn related(mut self, source: &Arc<Source>, span: Span, why: &str) -> Self {
        if let Some(diagnostic) = &mut self.0 {
            **diagnostic = diagnostic.clone().related(source, span, why);
        }
        self
    }
}
