//! PEM files read and checked, before any of it reaches a TLS configuration.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use zeroize::Zeroizing;

use super::describe::CertificateSummary;
use super::error::{Purpose, SecretError};
use super::pem_key::{PemKey, without_keys};

/// More than any sensible bundle (the system's roots are about 220 kB).
const LIMIT: u64 = 4 * 1024 * 1024;

/// One piece of material as it was found: a file, or a value held in memory.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// File, or `NAMESPACE/NAME/KEY` for a value in memory.
    pub(super) path: PathBuf,
    /// Content; wiped when dropped, since it may be a key.
    pub(super) bytes: Arc<Zeroizing<Vec<u8>>>,
    /// Others than the owner may read the file.
    pub(super) readable_by_others: bool,
}

impl Piece {
    /// Reads a file of at most 4 MiB.
    pub(super) fn read(purpose: Purpose, path: &Path) -> Result<Self, SecretError> {
        let unreadable = |why: String| SecretError::Unreadable(purpose, path.to_owned(), why);
        let file = File::open(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                SecretError::Missing(purpose, path.to_owned())
            }
            _ => unreadable(error.to_string()),
        })?;
        let facts = file
            .metadata()
            .map_err(|error| unreadable(error.to_string()))?;
        // A pipe would block the reader for ever.
        if !facts.is_file() {
            return Err(unreadable("it is not a regular file".to_owned()));
        }
        // Sized at once: a growing vector would leave copies of a key behind.
        let capacity = usize::try_from(facts.len().min(LIMIT)).unwrap_or(0) + 1;
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
        file.take(LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| unreadable(error.to_string()))?;
        if bytes.len() as u64 > LIMIT {
            return Err(unreadable("it is larger than 4 MiB".to_owned()));
        }
        if bytes.is_empty() {
            return Err(SecretError::Empty(purpose, path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            bytes: Arc::new(bytes),
            readable_by_others: facts.permissions().mode() & 0o077 != 0,
        })
    }

    /// All PEM certificates.
    pub(super) fn certificates(
        &self,
        purpose: Purpose,
    ) -> Result<Vec<CertificateDer<'static>>, SecretError> {
        let found: Vec<_> = CertificateDer::pem_slice_iter(&without_keys(&self.bytes))
            .collect::<Result<_, _>>()
            .map_err(|error| self.malformed(purpose, &error))?;
        if found.is_empty() {
            return Err(SecretError::NoPem(purpose, self.path.clone()));
        }
        for (place, der) in found.iter().enumerate() {
            if CertificateSummary::read(der).is_none() {
                let why = format!("PEM block {} is not an X.509 certificate", place + 1);
                return Err(SecretError::Malformed(purpose, self.path.clone(), why));
            }
        }
        Ok(found)
    }

    /// All PEM revocation lists.
    pub(super) fn revocation_lists(
        &self,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, SecretError> {
        let purpose = Purpose::RevocationList;
        let found: Vec<_> =
            CertificateRevocationListDer::pem_slice_iter(&without_keys(&self.bytes))
                .collect::<Result<_, _>>()
                .map_err(|error| self.malformed(purpose, &error))?;
        if found.is_empty() {
            return Err(SecretError::NoPem(purpose, self.path.clone()));
        }
        Ok(found)
    }

    /// The first private key: PKCS#8, PKCS#1 or SEC1.
    fn key(&self) -> Result<PemKey, SecretError> {
        // RFC 5958 and RFC 1421 section 4.6.1.1 forms of encryption; neither
        // is a key that the PEM reader would return.
        let encrypted = |needle: &[u8]| memchr::memmem::find(&self.bytes, needle).is_some();
        if encrypted(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || encrypted(b"4,ENCRYPTED") {
            return Err(SecretError::EncryptedKey(self.path.clone()));
        }
        if let Some(key) = PemKey::find(&self.bytes) {
            return key.map_err(|why| {
                let why = format!("broken PEM: {why}");
                SecretError::Malformed(Purpose::Key, self.path.clone(), why)
            });
        }
        Err(SecretError::NoPem(Purpose::Key, self.path.clone()))
    }

    fn malformed(&self, purpose: Purpose, error: &pem::Error) -> SecretError {
        SecretError::Malformed(purpose, self.path.clone(), format!("broken PEM: {error}"))
    }
}

/// A client certificate with its key, checked to be a usable pair now.
pub(super) fn certified_key(
    certificate: &Piece,
    key: &Piece,
    now: Timestamp,
) -> Result<(Arc<CertifiedKey>, CertificateSummary), SecretError> {
    let chain = certificate.certificates(Purpose::Certificate)?;
    let signer = any_supported_type(&key.key()?.der()).map_err(|error| {
        let why = format!("not a usable RSA, ECDSA or Ed25519 key: {error}");
        SecretError::Malformed(Purpose::Key, key.path.clone(), why)
    })?;
    let summary = chain
        .first()
        .and_then(|leaf| CertificateSummary::read(leaf))
        .ok_or_else(|| SecretError::NoPem(Purpose::Certificate, certificate.path.clone()))?;
    let pair = CertifiedKey::new(chain, signer);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(SecretError::WrongPair {
                certificate: certificate.path.clone(),
                key: key.path.clone(),
            });
        }
        Err(error) => {
            let path = certificate.path.clone();
            let why = error.to_string();
            return Err(SecretError::Malformed(Purpose::Certificate, path, why));
        }
    }
    if summary.not_after < now {
        return Err(SecretError::Expired {
            path: certificate.path.clone(),
            subject: summary.subject,
            not_after: summary.not_after.to_string(),
        });
    }
    if summary.not_before > now {
        return Err(SecretError::NotYetValid {
            path: certificate.path.clone(),
            subject: summary.subject,
            not_before: summary.not_before.to_string(),
        });
    }
    Ok((Arc::new(pair), summary))
}
