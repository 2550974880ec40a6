//! Why TLS material cannot be used: each cause its own plain sentence, naming
//! the file and what to do.

use std::fmt;
use std::path::PathBuf;

use crate::flag::{Flag, Side};

/// What a file was read for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A client certificate chain.
    Certificate,
    /// The private key of the client certificate.
    Key,
    /// Trusted authorities.
    Authorities,
    /// Revocation lists.
    RevocationList,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "client certificate",
            Self::Key => "private key",
            Self::Authorities => "CA certificates",
            Self::RevocationList => "revocation list",
        })
    }
}

/// Why TLS material cannot be used. Connections that need it fail; they are
/// never sent in the clear.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretError {
    /// The file does not exist.
    Missing(Purpose, PathBuf),
    /// The file exists and cannot be read; the text is the system's.
    Unreadable(Purpose, PathBuf, String),
    /// The file is empty.
    Empty(Purpose, PathBuf),
    /// The file holds no PEM block of the kind wanted.
    NoPem(Purpose, PathBuf),
    /// A PEM block cannot be decoded.
    Malformed(Purpose, PathBuf, String),
    /// The key is encrypted with a pass phrase.
    EncryptedKey(PathBuf),
    /// The key belongs to another certificate.
    WrongPair {
        /// Certificate file.
        certificate: PathBuf,
        /// Key file.
        key: PathBuf,
    },
    /// The client certificate's `notAfter` has passed.
    Expired {
        /// File.
        path: PathBuf,
        /// Subject.
        subject: String,
        /// `notAfter`.
        not_after: String,
    },
    /// The client certificate's `notBefore` lies ahead.
    NotYetValid {
        /// File.
        path: PathBuf,
        /// Subject.
        subject: String,
        /// `notBefore`.
        not_before: String,
    },
    /// No system root could be loaded; the text says what was tried.
    NoSystemRoots(String),
    /// A `credentialName` that is nowhere; the text lists the places.
    NoCredential {
        /// `credentialName`.
        name: String,
        /// Where it was looked for.
        searched: String,
    },
    /// The credential exists and lacks this key.
    NoKeyInCredential {
        /// `credentialName`.
        name: String,
        /// Where it was found.
        place: String,
        /// The key names that would do.
        wanted: &'static str,
    },
    /// A `credentialName` that is no plain name.
    BadCredentialName(String),
    /// `ISTIO_MUTUAL` with no identity in the settings.
    NoMeshIdentity,
    /// The SPIFFE Workload API of this socket has given no identity; why.
    NoSvid(PathBuf, String),
    /// A cipher suite that does not exist or is not offered.
    UnknownCipherSuite(String),
    /// A name in `subjectAltNames` or `sni` that cannot be checked.
    BadName(String),
    /// The TLS library refused the configuration.
    Library(String),
}

impl SecretError {
    /// Always the operator's: credentials are policy.
    pub const fn side(&self) -> Side {
        Side::Policy
    }

    /// Always `UF`: the TLS connection cannot be made.
    pub const fn flag(&self) -> Flag {
        Flag::UpstreamConnectionFailure
    }
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(purpose, path) => {
                write!(f, "{purpose} {}: the file does not exist", path.display())
            }
            Self::Unreadable(purpose, path, error) => {
                write!(f, "{purpose} {}: cannot be read: {error}", path.display())
            }
            Self::Empty(purpose, path) => {
                write!(f, "{purpose} {}: the value is empty", path.display())
            }
            Self::NoPem(purpose, path) => write!(
                f,
                "{purpose} {}: no PEM block of that kind in it; convert DER with `openssl`",
                path.display()
            ),
            Self::Malformed(purpose, path, why) => {
                write!(f, "{purpose} {}: {why}", path.display())
            }
            Self::EncryptedKey(path) => write!(
                f,
                "private key {}: it is encrypted with a pass phrase; store it decrypted and \
                 readable by the agent alone (`openssl pkey -in OLD -out NEW`)",
                path.display()
            ),
            Self::WrongPair { certificate, key } => write!(
                f,
                "private key {} does not belong to the certificate {}",
                key.display(),
                certificate.display()
            ),
            Self::Expired {
                path,
                subject,
                not_after,
            } => write!(
                f,
                "client certificate {} (\"{subject}\") expired at {not_after}; renew it",
                path.display()
            ),
            Self::NotYetValid {
                path,
                subject,
                not_before,
            } => write!(
                f,
                "client certificate {} (\"{subject}\") is not valid before {not_before}; \
                 check it and this host's clock",
                path.display()
            ),
            Self::NoSystemRoots(why) => write!(
                f,
                "no system root certificates: {why}; install ca-certificates or set caCertificates"
            ),
            Self::NoCredential { name, searched } => write!(
                f,
                "credentialName {name}: no such credential (looked in {searched})"
            ),
            Self::NoKeyInCredential {
                name,
                place,
                wanted,
            } => write!(f, "credentialName {name}: {place} has no {wanted}"),
            Self::BadCredentialName(name) => write!(
                f,
                "credentialName {name:?} is not a plain name of letters, digits, `-`, `_` and `.`"
            ),
            Self::NoMeshIdentity => f.write_str(
                "tls mode ISTIO_MUTUAL needs an identity, and the settings name none: set \
                 mesh-identity to a directory of certificate, key and roots, or to the socket of \
                 a SPIFFE Workload API",
            ),
            Self::NoSvid(socket, why) => write!(
                f,
                "tls mode ISTIO_MUTUAL: no identity from the SPIFFE Workload API at {}: {why}",
                socket.display()
            ),
            Self::UnknownCipherSuite(name) => write!(
                f,
                "cipher suite {name} is not offered; use IANA names such as TLS_AES_128_GCM_SHA256"
            ),
            Self::BadName(name) => write!(f, "{name:?} is not a name that TLS can check"),
            Self::Library(why) => write!(f, "TLS settings refused: {why}"),
        }
    }
}

impl std::error::Error for SecretError {}
