//! Why TLS did not start inside a protocol.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::flag::{Flag, Side};
use crate::policy::model::StartTls;

/// Why TLS did not start inside a protocol.
#[derive(Debug)]
pub enum StartTlsFailure {
    /// The server has no TLS to offer, or refuses; its words.
    Refused(StartTls, String),
    /// What the server says is not this protocol.
    NotSpoken(StartTls),
    /// The server sent bytes in the clear after its consent: somebody on the
    /// way may have put them there (CVE-2021-23222 and its like).
    Early(StartTls),
    /// The server takes only authentication with channel binding, which ties
    /// it to a TLS connection that the application does not have.
    ChannelBinding,
    /// The server closed or broke the connection.
    Broken(io::Error),
    /// The application asked for TLS of its own, and would not go on without.
    ClientInsists(StartTls),
    /// The application went away before it had said what it wants.
    ClientLeft,
    /// The application broke the connection.
    ClientBroken(io::Error),
    /// What the application says is not this protocol; why.
    ClientMisspoke(StartTls, &'static str),
    /// The application's password cannot be read; why.
    Password(&'static str),
    /// It took longer than this.
    Late(Duration),
}

impl StartTlsFailure {
    /// Whose side failed.
    pub const fn side(&self) -> Side {
        match self {
            Self::Refused(..)
            | Self::NotSpoken(_)
            | Self::Early(_)
            | Self::ChannelBinding
            | Self::Broken(_) => Side::Upstream,
            Self::ClientInsists(_)
            | Self::ClientLeft
            | Self::ClientBroken(_)
            | Self::ClientMisspoke(..)
            | Self::Password(_)
            | Self::Late(_) => Side::Downstream,
        }
    }

    /// How the record says it.
    pub const fn flag(&self) -> Flag {
        match self {
            Self::ClientMisspoke(..) | Self::Password(_) => Flag::DownstreamProtocolError,
            Self::ClientInsists(_) | Self::ClientLeft | Self::ClientBroken(_) => {
                Flag::DownstreamConnectionTermination
            }
            Self::Late(_) => Flag::StreamIdleTimeout,
            _ => Flag::UpstreamConnectionFailure,
        }
    }

    /// The end of the server's stream, or an error of it.
    pub(super) fn broken(error: io::Error) -> Self {
        Self::Broken(error)
    }

    /// The end of the application's stream, or an error of it.
    pub(super) fn client(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::ClientLeft,
            _ => Self::ClientBroken(error),
        }
    }
}

/// The protocol as people call it.
pub(super) const fn title(protocol: StartTls) -> &'static str {
    match protocol {
        StartTls::Postgres => "PostgreSQL",
        StartTls::Mysql => "MySQL",
        StartTls::Smtp => "SMTP",
        StartTls::Imap => "IMAP",
        StartTls::Ldap => "LDAP",
    }
}

impl fmt::Display for StartTlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(protocol, words) => write!(
                f,
                "the {} server does not start TLS: {words}; turn TLS on there",
                title(*protocol)
            ),
            Self::NotSpoken(protocol) => write!(
                f,
                "the server does not speak {} on this port; check port, targetPort and the \
                 annotation egress-agent.dev/starttls (`none` where TLS comes first)",
                title(*protocol)
            ),
            Self::Early(protocol) => write!(
                f,
                "the {} server sent bytes in the clear after it had agreed to TLS; somebody on \
                 the way may have put them there, so the connection was ended",
                title(*protocol)
            ),
            Self::ChannelBinding => f.write_str(
                "the server takes only authentication with channel binding \
                 (SCRAM-SHA-256-PLUS), which the application cannot do, since the TLS \
                 connection is not its own",
            ),
            Self::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the server closed the connection before TLS could start")
            }
            Self::Broken(error) => {
                write!(f, "the server broke the connection before TLS: {error}")
            }
            Self::ClientInsists(protocol) => {
                write!(
                    f,
                    "the application insists on TLS of its own, and egress originates it here: {}",
                    match protocol {
                        StartTls::Postgres => "set sslmode=disable or sslmode=prefer",
                        StartTls::Mysql => "set ssl-mode=DISABLED or PREFERRED (--skip-ssl)",
                        _ => "let it speak in the clear",
                    }
                )
            }
            Self::ClientLeft => f.write_str(
                "the application closed the connection before it had said what it wants",
            ),
            Self::ClientBroken(error) => {
                write!(f, "the application broke the connection: {error}")
            }
            Self::ClientMisspoke(protocol, why) => write!(
                f,
                "the application does not speak {} as it should: {why}",
                title(*protocol)
            ),
            Self::Password(why) => {
                write!(
                    f,
                    "the password that the application sent is of no use: {why}"
                )
            }
            Self::Late(limit) => write!(
                f,
                "the application and its server did not come to authentication within {limit:?}"
            ),
        }
    }
}

impl std::error::Error for StartTlsFailure {}
