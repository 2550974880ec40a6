//! Typed values of settings, each read from text once. A message says what is
//! accepted; the caller puts before it which file, variable or flag it was.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::policy::model::Locality;

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

/// Connections that may be open at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionLimit {
    /// What the limit of open descriptors allows.
    Auto,
    /// This many.
    At(NonZeroU32),
}

impl Scalar for ConnectionLimit {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::At).map_err(|_| {
            Fault::new(format!(
                "`{text}` is neither `auto` nor a whole number from 1 to {}",
                u32::MAX
            ))
        })
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

/// Declares an enum that is written as one of a few words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal $(| $also:literal)*,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            /// As written in settings.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Scalar for $name {
            fn parse(text: &str) -> Result<Self, Fault> {
                match text {
                    $($word $(| $also)* => Ok(Self::$variant),)+
                    _ => Err(not_a_word(text, &[$($word),+])),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

fn not_a_word(text: &str, words: &[&str]) -> Fault {
    let listed = words
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ");
    let meant = nearest(text, words.iter().copied())
        .map(|word| format!("; did you mean `{word}`?"))
        .unwrap_or_default();
    Fault::new(format!("`{text}` is not one of {listed}{meant}"))
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

words! {
    /// On or off.
    Switch {
        /// `on`; TOML's `true` is taken too.
        On = "on" | "true",
        /// `off`; TOML's `false` is taken too.
        Off = "off" | "false",
    }
}

impl Switch {
    /// Whether it is on.
    pub const fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

words! {
    /// What an unknown field in a policy document is.
    UnknownFields {
        /// The document is rejected.
        Error = "error",
        /// The document is loaded without the field.
        Warn = "warn",
    }
}

words! {
    /// What happens to connections to unregistered destinations.
    Outbound {
        /// They pass untouched.
        AllowAny = "allow-any" | "ALLOW_ANY",
        /// They are refused.
        RegistryOnly = "registry-only" | "REGISTRY_ONLY",
    }
}

words! {
    /// Form of log lines.
    LogFormat {
        /// For people.
        Text = "text",
        /// One object a line.
        Json = "json",
    }
}

words! {
    /// Error of a refused `connect` or `sendmsg`.
    RefusalErrno {
        /// As if nothing listened there; clients give up at once.
        ConnectionRefused = "ECONNREFUSED",
        /// Operation not permitted, as a firewall gives.
        NotPermitted = "EPERM",
        /// Permission denied.
        AccessDenied = "EACCES",
        /// No route to host.
        HostUnreachable = "EHOSTUNREACH",
        /// Network unreachable; clients try another address family.
        NetworkUnreachable = "ENETUNREACH",
    }
}

impl RefusalErrno {
    /// The kernel's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::ConnectionRefused => Errno::CONNREFUSED,
            Self::NotPermitted => Errno::PERM,
            Self::AccessDenied => Errno::ACCESS,
            Self::HostUnreachable => Errno::HOSTUNREACH,
            Self::NetworkUnreachable => Errno::NETUNREACH,
        }
    }
}

/// Number of worker threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workers(pub NonZeroUsize);

/// More workers than any machine has CPUs are a mistake, not a wish.
const MAX_WORKERS: usize = 1024;

impl Scalar for Workers {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text == "auto" {
            return Ok(Self(
                std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            ));
        }
        text.parse::<NonZeroUsize>()
            .ok()
            .filter(|n| n.get() <= MAX_WORKERS)
            .map(Self)
            .ok_or_else(|| {
                Fault::new(format!(
                    "`{text}` is neither `auto` nor a whole number from 1 to {MAX_WORKERS}"
                ))
            })
    }
}

/// Path of the admin socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminSocket(pub PathBuf);

/// `sockaddr_un.sun_path` holds 108 bytes with the closing zero. The socket is
/// made under a name that is longer by up to this much, then renamed.
pub const ADMIN_PATH_LIMIT: usize = 107 - 12;

impl Scalar for AdminSocket {
    fn parse(text: &str) -> Result<Self, Fault> {
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"))
            .filter(|path| path.starts_with('/') && !path.ends_with('/'))
            .ok_or_else(|| {
                Fault::new(format!(
                    "`{text}` is not a Unix socket; write `unix:` and an absolute path, as in `unix:/run/egress/admin.sock`"
                ))
            })?;
        if path.len() > ADMIN_PATH_LIMIT {
            return Err(Fault::new(format!(
                "the path has {} bytes; the kernel allows a socket path of {ADMIN_PATH_LIMIT} here",
                path.len()
            )));
        }
        Ok(Self(PathBuf::from(path)))
    }
}

impl fmt::Display for AdminSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

/// Where metrics are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricsListener {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl Scalar for MetricsListener {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| {
            Fault::new(format!(
                "`{text}` is neither `off` nor an address and port, as in `127.0.0.1:15090` or `[::1]:15090`"
            ))
        })
    }
}

/// A name server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameServer(pub SocketAddr);

impl Scalar for NameServer {
    fn parse(text: &str) -> Result<Self, Fault> {
        text.parse::<SocketAddr>()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
            .map(Self)
            .map_err(|_| {
                Fault::new(format!(
                    "`{text}` is not the address of a name server, as in `9.9.9.9`, `10.0.0.2:5353` or `[2620:fe::fe]:53`"
                ))
            })
    }
}

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
