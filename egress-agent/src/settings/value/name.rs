//! Names and filters.

use std::fmt;
use std::sync::Arc;

use super::{Fault, Scalar, nearest};

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceName(pub Arc<str>);

impl Scalar for NamespaceName {
    fn parse(text: &str) -> Result<Self, Fault> {
        // RFC 1123 section 2.1 labels in lower case, as Kubernetes names them.
        if is_label(text) {
            Ok(Self(text.into()))
        } else {
            Err(Fault::new(format!(
                "`{text}` is not a namespace; it takes 1 to 63 of a-z, 0-9 and `-`, and begins and ends with a letter or digit"
            )))
        }
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| inner(b) || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Name of a Node object: a DNS subdomain (RFC 1123) in lower case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeName(pub Arc<str>);

impl Scalar for NodeName {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() <= 253 && text.split('.').all(is_label) {
            Ok(Self(text.into()))
        } else {
            Err(Fault::new(format!(
                "`{text}` is not the name of a node; it takes a-z, 0-9, `-` and `.`"
            )))
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The cluster domain, without a dot at either end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterDomain(pub Arc<str>);

impl Scalar for ClusterDomain {
    fn parse(text: &str) -> Result<Self, Fault> {
        let bare = text.strip_suffix('.').unwrap_or(text);
        if bare.len() <= 253 && bare.split('.').all(is_label) {
            Ok(Self(bare.into()))
        } else {
            Err(Fault::new(format!(
                "`{text}` is not a domain in lower case, as in `cluster.local`"
            )))
        }
    }
}

/// Levels of log lines.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A filter of log lines, known to be well formed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFilter(Arc<str>);

impl LogFilter {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for LogFilter {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text.trim().is_empty() {
            return Err(Fault::new("the filter is empty; `off` logs nothing"));
        }
        // A bare word would be taken for a target, so that a mistyped level
        // turned off all lines.
        let bare = text.split(',').map(str::trim).find(|part| {
            !part.contains(['=', '[']) && !LEVELS.contains(&part.to_ascii_lowercase().as_str())
        });
        if let Some(bare) = bare {
            return Err(Fault::new(format!(
                "`{bare}` is not a log level{}; it takes {}, or `TARGET=LEVEL`",
                nearest(bare, LEVELS.into_iter())
                    .map(|level| format!("; did you mean `{level}`?"))
                    .unwrap_or_default(),
                LEVELS.map(|level| format!("`{level}`")).join(", ")
            )));
        }
        tracing_subscriber::filter::EnvFilter::builder()
            .parse(text)
            .map(|_| Self(text.into()))
            .map_err(|error| {
                Fault::new(format!(
                    "`{text}` is not a log filter ({error}); write a level such as `info`, or `info,egress_agent::dns=debug`"
                ))
            })
    }
}
