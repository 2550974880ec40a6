//! Why a connection to a service could not be made, in words that say what to
//! do.

use std::fmt;
use std::io;
use std::time::Duration;

use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};

use super::starttls::StartTlsFailure;
use super::tunnel::TunnelFailure;
use crate::endpoint::Outcome;
use crate::endpoint::resolved::Destination;
use crate::flag::{Flag, Side};
use crate::secret::{CertificateSummary, RefusedChain, SecretError};

/// What was being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Connecting TCP (or a Unix socket).
    Tcp,
    /// The TLS handshake.
    Tls,
}

/// Why a connection to a service could not be made.
#[derive(Debug)]
pub enum ConnectError {
    /// Nothing listens there.
    Refused {
        /// Endpoint.
        to: Destination,
    },
    /// No answer within `connectTimeout`.
    TimedOut {
        /// Endpoint.
        to: Destination,
        /// `connectTimeout`.
        after: Duration,
        /// What was not answered.
        phase: Phase,
    },
    /// No way to the network or host, or a firewall says so.
    Unreachable {
        /// Endpoint.
        to: Destination,
        /// What the kernel said.
        error: io::Error,
    },
    /// This host has no descriptor, port or memory left, or no such address
    /// family.
    Local {
        /// Endpoint.
        to: Destination,
        /// What the kernel said.
        error: io::Error,
    },
    /// It failed otherwise.
    Failed {
        /// Endpoint.
        to: Destination,
        /// What the kernel said.
        error: io::Error,
    },
    /// The proxy of a `tunnel` did not open it.
    Tunnel {
        /// Endpoint: the proxy.
        to: Destination,
        /// How.
        failure: TunnelFailure,
    },
    /// TLS did not start inside the application's protocol.
    StartTls {
        /// Endpoint.
        to: Destination,
        /// How.
        failure: StartTlsFailure,
    },
    /// TLS material cannot be used.
    Secret(SecretError),
    /// The TLS handshake failed.
    Tls {
        /// Endpoint.
        to: Destination,
        /// How.
        failure: Box<TlsFailure>,
    },
}

impl ConnectError {
    pub(super) fn from_io(to: &Destination, error: io::Error) -> Self {
        let to = to.clone();
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Self::Refused { to },
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            // A firewall rule that rejects with "administratively prohibited".
            | io::ErrorKind::PermissionDenied => Self::Unreachable { to, error },
            io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::AddrInUse
            | io::ErrorKind::OutOfMemory => Self::Local { to, error },
            io::ErrorKind::TimedOut => Self::TimedOut {
                to,
                after: Duration::ZERO,
                phase: Phase::Tcp,
            },
            _ => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::EAFNOSUPPORT) => {
                    Self::Local { to, error }
                }
                _ => Self::Failed { to, error },
            },
        }
    }

    /// Whose side failed.
    pub const fn side(&self) -> Side {
        match self {
            Self::Secret(_) => Side::Policy,
            Self::Local { .. } => Side::Internal,
            Self::StartTls { failure, .. } => failure.side(),
            _ => Side::Upstream,
        }
    }

    /// `UF`, unless it was the application's fault.
    pub const fn flag(&self) -> Flag {
        match self {
            Self::StartTls { failure, .. } => failure.flag(),
            _ => Flag::UpstreamConnectionFailure,
        }
    }

    /// What it says about the endpoint.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Refused { .. } | Self::Unreachable { .. } => Outcome::ConnectRefused,
            Self::TimedOut { .. } => Outcome::ConnectTimeout,
            Self::Failed { .. } | Self::Tunnel { .. } => Outcome::ConnectFailed,
            Self::Tls { .. } => Outcome::TlsFailed,
            Self::StartTls { failure, .. } => match failure.side() {
                Side::Upstream => Outcome::TlsFailed,
                _ => Outcome::Cancelled,
            },
            Self::Local { .. } | Self::Secret(_) => Outcome::Cancelled,
        }
    }

    /// Whether another endpoint may do better.
    pub const fn is_of_endpoint(&self) -> bool {
        !matches!(self, Self::Local { .. } | Self::Secret(_))
    }

    /// The TLS failure, if it is one.
    pub fn tls(&self) -> Option<&TlsFailure> {
        match self {
            Self::Tls { failure, .. } => Some(failure),
            _ => None,
        }
    }
}

impl From<SecretError> for ConnectError {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { to } => write!(f, "{to}: connection refused"),
            Self::TimedOut { to, after, phase } => {
                let what = match phase {
                    Phase::Tcp => "no answer to the TCP connect",
                    Phase::Tls => "TCP connected, but the TLS handshake was not finished",
                };
                if after.is_zero() {
                    write!(f, "{to}: {what} (the kernel gave up)")
                } else {
                    write!(f, "{to}: {what} within {after:?} (tcp.connectTimeout)")
                }
            }
            Self::Unreachable { to, error } => write!(f, "{to}: unreachable: {error}"),
            Self::Local { to, error } => {
                write!(f, "{to}: this host cannot open a connection: {error}")
            }
            Self::Failed { to, error } => write!(f, "{to}: connecting failed: {error}"),
            Self::Secret(error) => error.fmt(f),
            Self::Tunnel { to, failure } => write!(f, "{to}: {failure}"),
            Self::Tls { to, failure } => write!(f, "{to}: TLS: {failure}"),
            Self::StartTls { to, failure } => write!(f, "{to}: {failure}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// A TLS handshake that failed, explained.
#[derive(Debug)]
pub struct TlsFailure {
    /// The rule that failed.
    pub rule: String,
    /// How to mend it.
    pub advice: Option<String>,
    /// The chain that the server presented, where it was the chain that was
    /// refused.
    pub chain: Vec<CertificateSummary>,
    /// Names that would have been accepted.
    pub wanted: Vec<String>,
}

impl TlsFailure {
    /// Explains the error of a handshake that wanted `name`.
    pub(super) fn explain(
        error: &io::Error,
        refused: Option<RefusedChain>,
        name: &str,
        mutual: bool,
    ) -> Self {
        let RefusedChain { chain, wanted } = refused.unwrap_or_else(|| RefusedChain {
            chain: Vec::new(),
            wanted: vec![name.to_owned()],
        });
        let (rule, advice) = match tls_error(error) {
            Some(TlsError::InvalidCertificate(error)) => certificate_rule(error, &chain, &wanted),
            Some(error) => protocol_rule(error, mutual),
            None if error.kind() == io::ErrorKind::UnexpectedEof => (
                "the server closed the connection during the handshake".to_owned(),
                Some(format!(
                    "it may not speak TLS on this port, or not know the name {name}"
                )),
            ),
            None => (
                format!("the connection broke during the handshake: {error}"),
                None,
            ),
        };
        Self {
            rule,
            advice,
            chain,
            wanted,
        }
    }
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rule)?;
        if let Some(advice) = &self.advice {
            write!(f, "; {advice}")?;
        }
        for (place, certificate) in self.chain.iter().enumerate() {
            let before = if place == 0 { "; presented:" } else { "," };
            write!(f, "{before} {place}: {certificate}")?;
        }
        Ok(())
    }
}

/// An error on an established TLS connection that is worth words: with TLS 1.3
/// a server refuses the client's certificate only after the handshake.
pub fn explain_broken(error: &io::Error, mutual: bool) -> Option<String> {
    match tls_error(error)? {
        TlsError::AlertReceived(alert) => {
            let (rule, advice) = alert_rule(*alert, mutual);
            Some(match advice {
                Some(advice) => format!("{rule}; {advice}"),
                None => rule,
            })
        }
        other => Some(other.to_string()),
    }
}

fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

type Rule = (String, Option<String>);

fn certificate_rule(
    error: &CertificateError,
    chain: &[CertificateSummary],
    wanted: &[String],
) -> Rule {
    let now = Timestamp::now();
    let leaf = chain.first();
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            let which = chain.iter().find(|c| c.not_after < now).or(leaf);
            (
                match which {
                    Some(c) => format!("certificate \"{}\" expired at {}", c.subject, c.not_after),
                    None => "a certificate of the chain has expired".to_owned(),
                },
                Some("the service must renew it; also check this host's clock".to_owned()),
            )
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            let which = chain.iter().find(|c| c.not_before > now).or(leaf);
            (
                match which {
                    Some(c) => format!(
                        "certificate \"{}\" is not valid before {}",
                        c.subject, c.not_before
                    ),
                    None => "a certificate of the chain is not valid yet".to_owned(),
                },
                Some("check this host's clock".to_owned()),
            )
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let presented = match leaf {
                Some(c) if !c.names.is_empty() => c.names.join(", "),
                _ => "none".to_owned(),
            };
            (
                format!(
                    "the certificate is not for {}: its names are {presented}",
                    wanted.join(" or ")
                ),
                Some(
                    "if the service is the right one, name it in tls.subjectAltNames or tls.sni"
                        .to_owned(),
                ),
            )
        }
        CertificateError::UnknownIssuer => unknown_issuer(chain),
        CertificateError::Revoked => ("the certificate has been revoked".to_owned(), None),
        CertificateError::UnknownRevocationStatus => (
            "the revocation list in force says nothing about this chain".to_owned(),
            Some("caCrl must hold a list of every authority of the chain".to_owned()),
        ),
        CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => (
            "the revocation list has expired".to_owned(),
            Some("renew the file of caCrl".to_owned()),
        ),
        CertificateError::BadSignature => (
            "a certificate was not signed by the authority of that name".to_owned(),
            Some(
                "an authority with the same name but another key is trusted: check \
                caCertificates"
                    .to_owned(),
            ),
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => (
            "the certificate is not meant for servers (extended key usage)".to_owned(),
            None,
        ),
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => (
            "the server presents an authority's certificate as its own".to_owned(),
            Some(
                "trust exactly this certificate with caCertificates, or give the server one \
                with CA:FALSE"
                    .to_owned(),
            ),
        ),
        CertificateError::Other(other) if other.to_string().contains("NameConstraint") => (
            "an authority of the chain may not issue for this name (name constraints)".to_owned(),
            None,
        ),
        other => (format!("the certificate was refused: {other}"), None),
    }
}

fn unknown_issuer(chain: &[CertificateSummary]) -> Rule {
    let rule = "the chain leads to no trusted authority".to_owned();
    let Some(last) = chain.last() else {
        return (rule, None);
    };
    let advice = if chain.len() == 1 && last.subject == last.issuer {
        "the certificate is self-signed: put it into caCertificates to trust it".to_owned()
    } else if chain.len() == 1 {
        format!(
            "put the authority \"{}\" into caCertificates; or the server fails to send its \
             intermediate certificates",
            last.issuer
        )
    } else {
        format!("put the authority \"{}\" into caCertificates", last.issuer)
    };
    (rule, Some(advice))
}

fn protocol_rule(error: &TlsError, mutual: bool) -> Rule {
    match error {
        TlsError::AlertReceived(alert) => alert_rule(*alert, mutual),
        TlsError::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => (
            "the server does not speak TLS on this port".to_owned(),
            Some("check port and targetPort, or set tls.mode DISABLE".to_owned()),
        ),
        TlsError::PeerIncompatible(why) => (
            format!("no common ground with the server: {why:?}"),
            Some(
                "the server is too old, or the policy narrows versions or ciphers too far"
                    .to_owned(),
            ),
        ),
        TlsError::NoApplicationProtocol => (
            "the server accepts none of the protocols offered (ALPN)".to_owned(),
            Some("check the protocol of the port (HTTP2 or GRPC need h2)".to_owned()),
        ),
        other => (other.to_string(), None),
    }
}

fn alert_rule(alert: AlertDescription, mutual: bool) -> Rule {
    let rule = format!("the server refused with alert {alert:?}");
    let advice = match alert {
        AlertDescription::CertificateRequired => {
            Some("it demands a client certificate: use tls.mode MUTUAL")
        }
        AlertDescription::HandshakeFailure if !mutual => Some(
            "it shares no version or cipher with us, or demands a client certificate (tls.mode \
             MUTUAL)",
        ),
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError
            if mutual =>
        {
            Some("it does not accept our client certificate")
        }
        AlertDescription::UnrecognisedName => {
            Some("it knows no host of the name sent: set tls.sni")
        }
        AlertDescription::ProtocolVersion => Some("it speaks neither TLS 1.2 nor 1.3"),
        AlertDescription::NoApplicationProtocol => {
            Some("it accepts none of the protocols offered (ALPN); check the protocol of the port")
        }
        _ => None,
    };
    (rule, advice.map(str::to_owned))
}
