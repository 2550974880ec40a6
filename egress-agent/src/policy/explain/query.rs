//! What is asked: a destination, and who would go there.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::policy::model::Labels;
use crate::policy::snapshot::Client;

/// A question to a snapshot.
#[derive(Clone, Debug)]
pub struct Query {
    /// Where to.
    pub target: Target,
    /// Who goes there, as policy sees it.
    pub client: Client,
    /// Who that is for people (`pid 4711, unit payments.service`), where the
    /// caller was given as something else than a namespace.
    pub caller: Option<Box<str>>,
    /// Method of the request, for HTTP routes.
    pub method: Method,
    /// Headers of the request, for HTTP routes.
    pub headers: HeaderMap,
}

impl Query {
    /// A GET request, or a connection, to a destination.
    pub fn new(target: Target, client: Client) -> Self {
        Self {
            target,
            client,
            caller: None,
            method: Method::GET,
            headers: HeaderMap::new(),
        }
    }

    /// Sets the method.
    ///
    /// # Errors
    /// When it is no method.
    pub fn method(mut self, method: &str) -> Result<Self, QueryError> {
        self.method = Method::from_str(method)
            .map_err(|_| QueryError::Method(method.escape_debug().to_string()))?;
        Ok(self)
    }

    /// Adds a header, written `Name: value`.
    ///
    /// # Errors
    /// When it is no header.
    pub fn header(mut self, line: &str) -> Result<Self, QueryError> {
        let wrong = || QueryError::Header(line.escape_debug().to_string());
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let name = HeaderName::from_str(name.trim()).map_err(|_| wrong())?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
        self.headers.append(name, value);
        Ok(self)
    }
}

/// A destination: `URL`, `HOST:PORT`, or `HOST` alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// As it was written.
    pub text: Box<str>,
    /// Scheme of a URL, lower case.
    pub scheme: Option<Box<str>>,
    /// Name (lower case, no trailing dot) or address as text.
    pub host: Arc<str>,
    /// Port, if the text or its scheme says one.
    pub port: Option<u16>,
    /// Path and query of a URL; they start with `/`.
    pub path_and_query: Option<Box<str>>,
}

impl Target {
    /// Reads a destination.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let wrong = |why| QueryError::Target(text.escape_debug().to_string(), why);
        if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(wrong("it is empty or has blanks in it"));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if scheme.is_none() && !tail.is_empty() {
            return Err(wrong("a path needs a URL, such as http://HOST/PATH"));
        }
        let authority = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        let (host, port) = host_and_port(authority)
            .ok_or_else(|| wrong("write URL or HOST:PORT, with a port of 1 to 65535"))?;
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if host.parse::<IpAddr>().is_err() && (host.is_empty() || !host.chars().all(plain)) {
            return Err(wrong("its host is neither a name nor an address"));
        }
        let known = scheme.as_deref().map(default_port);
        let path_and_query = match &scheme {
            Some(scheme) if is_http(scheme) => {
                let tail = tail.split('#').next().unwrap_or_default();
                let path = if tail.starts_with('/') {
                    tail.to_owned()
                } else {
                    format!("/{tail}")
                };
                path.parse::<Uri>()
                    .map_err(|_| wrong("its path has characters that must be escaped"))?;
                Some(path.into())
            }
            _ => None,
        };
        Ok(Self {
            text: text.into(),
            port: port.or(known.flatten()),
            scheme: scheme.map(Into::into),
            host: host.into(),
            path_and_query,
        })
    }

    /// The address, where the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// What the application speaks, as far as the scheme says.
    pub(super) fn speaks(&self) -> Option<Speech> {
        match self.scheme.as_deref()? {
            "http" | "ws" | "grpc" => Some(Speech::Http),
            "https" | "wss" | "grpcs" | "tls" => Some(Speech::Tls),
            _ => None,
        }
    }
}

/// What an application speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Speech {
    /// HTTP in the clear.
    Http,
    /// TLS of its own.
    Tls,
    /// Anything else.
    Other,
}

fn is_http(scheme: &str) -> bool {
    ["http", "https", "ws", "wss", "grpc", "grpcs"].contains(&scheme)
}

fn default_port(scheme: &str) -> Option<u16> {
    Some(match scheme {
        "http" | "ws" | "grpc" => 80,
        "https" | "wss" | "grpcs" | "tls" => 443,
        "postgres" | "postgresql" => 5432,
        "mysql" | "mariadb" => 3306,
        "mongodb" => 27017,
        "redis" => 6379,
        "ldap" => 389,
        "ldaps" => 636,
        "smtp" => 25,
        "amqp" => 5672,
        _ => return None,
    })
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT`, or an IPv6 address alone.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port != 0)
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (host, tail) = rest.split_once(']')?;
        return match tail.strip_prefix(':') {
            Some(text) => Some((host, Some(port(text)?))),
            None => tail.is_empty().then_some((host, None)),
        };
    }
    if text.matches(':').count() > 1 {
        return Some((text, None));
    }
    match text.split_once(':') {
        Some((host, text)) => Some((host, Some(port(text)?))),
        None => Some((text, None)),
    }
}

/// `--from`: who would go there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum From {
    /// A process.
    Process(u32),
    /// A cgroup, by its path in the hierarchy or in the file system.
    Cgroup(Box<str>),
    /// A client of this namespace, and of these labels.
    Client(Client),
}

impl From {
    /// Reads a process id, a cgroup path (anything with a `/`), or
    /// `NAMESPACE[,LABEL=VALUE]…`.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let wrong = || QueryError::From(text.escape_debug().to_string());
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Process).map_err(|_| wrong());
        }
        let mut parts = text.split(',');
        let namespace = parts.next().unwrap_or_default();
        let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !namespace.is_empty() && namespace.chars().all(name) {
            let label = |part: &str| {
                let (key, value) = part.split_once('=').ok_or_else(wrong)?;
                Ok((key.into(), value.into()))
            };
            let labels: Labels = parts.map(label).collect::<Result<_, _>>()?;
            return Ok(Self::Client(Client {
                namespace: namespace.into(),
                labels: Arc::new(labels),
            }));
        }
        if text.contains('/') && !text.contains('\0') {
            return Ok(Self::Cgroup(text.into()));
        }
        Err(wrong())
    }
}

/// Why a question is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueryError {
    /// The destination is none, and why.
    Target(String, &'static str),
    /// Not a caller.
    From(String),
    /// Not a method.
    Method(String),
    /// Not a header.
    Header(String),
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(text, why) => write!(f, "`{text}` is no destination: {why}"),
            Self::From(text) => write!(
                f,
                "`{text}` is no caller: name a process id, a cgroup path with `/`, or NAMESPACE[,LABEL=VALUE]"
            ),
            Self::Method(text) => write!(f, "`{text}` is no HTTP method"),
            Self::Header(text) => write!(f, "`{text}` is no header: write `Name: value`"),
        }
    }
}

impl std::error::Error for QueryError {}
