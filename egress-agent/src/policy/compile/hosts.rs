//! Host names: patterns, short names, and finding what covers a host.

use std::collections::HashMap;
use std::sync::Arc;

use crate::policy::Options;
use crate::policy::model::HostPattern;

/// A host as written, as a pattern: lower case, without a trailing dot.
pub fn pattern(host: &str) -> HostPattern {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    match host.strip_prefix('*') {
        Some(suffix) => HostPattern::Suffix(suffix.into()),
        None => HostPattern::Exact(host.into()),
    }
}

/// A host of a rule: a name without dots is one of the cluster, in the rule's
/// namespace.
pub fn rule_pattern(host: &str, namespace: &str, options: &Options) -> HostPattern {
    if host.contains('.') || host.starts_with('*') || host.contains(':') {
        return pattern(host);
    }
    let domain = &options.cluster_domain;
    pattern(&format!("{host}.{namespace}.svc.{domain}"))
}

/// Whether a host lies within the cluster, and so is not ours to handle.
pub fn is_cluster_host(host: &HostPattern, options: &Options) -> bool {
    let text = match host {
        HostPattern::Exact(text) | HostPattern::Suffix(text) => text,
    };
    text.strip_suffix(&*options.cluster_domain)
        .is_some_and(|head| head.ends_with(".svc."))
}

/// Things by host, found from the most specific host to the widest.
#[derive(Debug)]
pub struct HostIndex<T> {
    exact: HashMap<Arc<str>, Vec<T>>,
    suffixes: HashMap<Arc<str>, Vec<T>>,
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            suffixes: HashMap::new(),
        }
    }
}

impl<T> HostIndex<T> {
    /// Adds a thing.
    pub fn insert(&mut self, host: &HostPattern, value: T) {
        let (map, text) = match host {
            HostPattern::Exact(text) => (&mut self.exact, text),
            HostPattern::Suffix(text) => (&mut self.suffixes, text),
        };
        map.entry(Arc::clone(text)).or_default().push(value);
    }

    /// Things of exactly this host.
    pub fn same(&self, host: &HostPattern) -> &[T] {
        let found = match host {
            HostPattern::Exact(text) => self.exact.get(text),
            HostPattern::Suffix(text) => self.suffixes.get(text),
        };
        found.map_or(&[], Vec::as_slice)
    }

    /// Lists of things whose host is this one or covers it, the most specific
    /// first.
    pub fn covering<'s>(&'s self, host: &'s HostPattern) -> impl Iterator<Item = &'s [T]> {
        let (exact, text) = match host {
            HostPattern::Exact(text) => (self.exact.get(text), text),
            HostPattern::Suffix(text) => (None, text),
        };
        let wildcard = matches!(host, HostPattern::Suffix(_));
        let starts = 0..=text.len();
        let suffixes = starts
            .take_while(|_| !self.suffixes.is_empty())
            .filter(|at| text.is_char_boundary(*at))
            // `*.a.com` covers `x.a.com` but not `.a.com` itself.
            .filter(move |at| wildcard || *at > 0 || !text.starts_with('.'))
            .filter_map(|at| self.suffixes.get(&text[at..]));
        exact.into_iter().chain(suffixes).map(Vec::as_slice)
    }
}
