//! TLS to originate, and credentials that requests are given.

use std::path::PathBuf;
use std::sync::Arc;

/// `tls` of a trafficPolicy, when its mode is not DISABLE.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClientTls {
    /// Client certificate, if any.
    pub identity: Identity,
    /// What the server's chain must lead to.
    pub trust: Trust,
    /// `sni`; `None`: the host requested.
    pub sni: Option<Arc<str>>,
    /// `subjectAltNames` (of the rule, else of the ServiceEntry); empty: the
    /// name sent as SNI.
    pub subject_alt_names: Vec<Arc<str>>,
    /// `insecureSkipVerify`.
    pub insecure_skip_verify: bool,
    /// Namespaces where a `credentialName` is looked for, first match wins:
    /// the rule's and the root namespace (the client's goes before them).
    pub secret_namespaces: Vec<Arc<str>>,
    /// Knobs that Istio has no field for.
    pub extra: TlsExtra,
}

impl ClientTls {
    /// `mode: SIMPLE` with nothing else: the system's roots, and the name of
    /// the host requested.
    pub fn simple() -> Self {
        Self {
            identity: Identity::None,
            trust: Trust::System { crl: None },
            sni: None,
            subject_alt_names: Vec::new(),
            insecure_skip_verify: false,
            secret_namespaces: Vec::new(),
            extra: TlsExtra::default(),
        }
    }
}

/// `egress-agent.dev/` annotations on TLS.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct TlsExtra {
    /// `egress-agent.dev/tls-min-version`: true for 1.3 only.
    pub only_tls13: bool,
    /// `egress-agent.dev/tls-cipher-suites`, IANA names; empty: the defaults.
    pub cipher_suites: Vec<Box<str>>,
    /// `egress-agent.dev/starttls`.
    pub starttls: Option<StartTls>,
}

/// A protocol whose TLS starts inside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StartTls {
    /// PostgreSQL's SSLRequest.
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
    /// SMTP.
    Smtp,
    /// IMAP.
    Imap,
    /// LDAP.
    Ldap,
}

impl StartTls {
    /// As the annotation says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Smtp => "smtp",
            Self::Imap => "imap",
            Self::Ldap => "ldap",
        }
    }
}

/// Client certificate.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Identity {
    /// `mode: SIMPLE`.
    None,
    /// `clientCertificate` and `privateKey`.
    Files {
        /// PEM chain.
        certificate: PathBuf,
        /// PEM key.
        key: PathBuf,
    },
    /// `credentialName` with `mode: MUTUAL`.
    Secret(Arc<str>),
    /// `mode: ISTIO_MUTUAL`.
    Mesh,
}

/// Trust anchors and revocation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Trust {
    /// The operating system's roots, and an optional `caCrl`.
    System {
        /// `caCrl`.
        crl: Option<PathBuf>,
    },
    /// `caCertificates`, and an optional `caCrl`.
    File {
        /// PEM certificates.
        ca: PathBuf,
        /// `caCrl`.
        crl: Option<PathBuf>,
    },
    /// The CA of a `credentialName`.
    Secret(Arc<str>),
    /// The mesh's own roots.
    Mesh,
}

/// `egress-agent.dev/inject-credential`: a header that the agent gives to
/// requests, with a value that the application never sees.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HeaderCredential {
    /// Name of the header.
    pub header: http::HeaderName,
    /// How the value is made.
    pub form: CredentialForm,
    /// Name of the secret.
    pub secret: Arc<str>,
    /// Where the secret is looked for after the client's namespace.
    pub secret_namespaces: Vec<Arc<str>>,
}

/// How the value of a [`HeaderCredential`] is made.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum CredentialForm {
    /// `Bearer TOKEN` (RFC 6750).
    Bearer {
        /// The secret's key that holds the token.
        key: Box<str>,
    },
    /// `Basic USER:PASSWORD` in base64 (RFC 7617).
    Basic {
        /// The secret's key that holds the user's name.
        username: Box<str>,
        /// The secret's key that holds the password.
        password: Box<str>,
    },
    /// The secret's value as it is.
    Plain {
        /// The secret's key that holds it.
        key: Box<str>,
    },
}
