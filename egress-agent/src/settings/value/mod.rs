//! Typed values of settings, each read from text once. A message says what is
//! accepted; the caller puts before it which file, variable or flag it was.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::policy::model::Locality;

mod address;
mod count;
mod dns;
mod name;
mod outbound;
mod word;

pub use address::{ADMIN_PATH_LIMIT, AdminSocket, MetricsListener, NameServer};
pub use count::{ConnectionLimit, Workers};
pub use dns::{NamespaceSearch, NamespaceServer, SearchDomain};
pub use name::{ClusterDomain, LogFilter, NamespaceName, NodeName};
pub use outbound::{AllowedDestination, NamespaceOutbound};
pub use word::{LogFormat, Outbound, RefusalErrno, Switch, UnknownFields};

/// A value as it was written, with its place in the file where it has one.
#[derive(Clone, PartialEq, Debug)]
pub struct Raw {
    /// What.
    pub form: Form,
    /// Byte range in the settings file.
    pub span: Option<Range<usize>>,
}

/// The two forms that a value can have.
#[derive(Clone, PartialEq, Debug)]
pub enum Form {
    /// Text, or a number or boolean as its text.
    Text(String),
    /// A table of the settings file.
    Table(Vec<(String, Range<usize>, Raw)>),
}

/// Why a value cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What is wrong and what would be right.
    pub message: String,
    /// Closer place than that of the whole value, where known.
    pub span: Option<Range<usize>>,
}

impl Fault {
    /// A fault of the whole value.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span: None,
        }
    }

    /// A fault at this place.
    pub fn at(message: impl Into<String>, span: Option<Range<usize>>) -> Self {
        Self {
            message: message.into(),
            span,
        }
    }
}

/// A setting of one value.
pub trait Scalar: Sized {
    /// Reads it from text.
    fn parse(text: &str) -> Result<Self, Fault>;

    /// Reads it from a table of the settings file.
    fn table(_fields: &[(String, Range<usize>, Raw)]) -> Result<Self, Fault> {
        Err(Fault::new("this setting is a value, not a table"))
    }
}

/// A setting of any shape. `raw` is empty only where there is no default.
pub trait Value: Sized {
    /// Reads it.
    fn read(raw: &[Raw]) -> Result<Self, Fault>;
}

fn scalar<T: Scalar>(raw: &Raw) -> Result<T, Fault> {
    match &raw.form {
        Form::Text(text) => T::parse(text),
        Form::Table(fields) => T::table(fields),
    }
    .map_err(|mut fault| {
        fault.span = fault.span.or_else(|| raw.span.clone());
        fault
    })
}

impl<T: Scalar> Value for T {
    fn read(raw: &[Raw]) -> Result<Self, Fault> {
        match raw {
            [one] => scalar(one),
            _ => Err(Fault::new("takes exactly one value")),
        }
    }
}

impl<T: Scalar> Value for Option<T> {
    fn read(raw: &[Raw]) -> Result<Self, Fault> {
        match raw {
            [] => Ok(None),
            some => T::read(some).map(Some),
        }
    }
}

impl<T: Scalar> Value for Vec<T> {
    fn read(raw: &[Raw]) -> Result<Self, Fault> {
        raw.iter().map(scalar).collect()
    }
}

impl Scalar for PathBuf {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text.is_empty() {
            return Err(Fault::new("the path is empty"));
        }
        Ok(Self::from(text))
    }
}

impl Scalar for Duration {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text == "0" {
            return Ok(Self::ZERO);
        }
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|signed| signed.try_into().ok())
            .ok_or_else(|| {
                Fault::new(format!(
                    "`{text}` is not a duration; write a number and a unit, as in `30s`, `500ms` or `1m30s`"
                ))
            })
    }
}

impl Scalar for Locality {
    fn parse(text: &str) -> Result<Self, Fault> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| !part.is_empty() && !part.contains('*');
        if parts.len() > 3 || !parts.iter().all(plain) {
            return Err(Fault::new(format!(
                "`{text}` is not a locality; write `region`, `region/zone` or `region/zone/subzone`"
            )));
        }
        Ok(Self::parse(text))
    }
}

/// Where the access log goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

impl Scalar for AccessLog {
    fn parse(text: &str) -> Result<Self, Fault> {
        match text {
            "off" => Ok(Self::Off),
            "-" => Ok(Self::Stdout),
            path => PathBuf::parse(path).map(Self::File),
        }
    }
}

/// The candidate that `text` was most likely meant to be, if any is close.
pub fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = text.to_ascii_lowercase().replace('_', "-");
    candidates
        .map(|candidate| {
            let near = strsim::jaro_winkler(&folded, &candidate.to_ascii_lowercase());
            (near, candidate)
        })
        .filter(|(near, _)| *near >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
