//! A checked TLS configuration from the pieces that were found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use rustls::client::{ClientSessionMemoryCache, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuite, ClientConfig, RootCertStore, version};
use rustls_pki_types::CertificateDer;

use super::describe::CertificateSummary;
use super::error::{Purpose, SecretError};
use super::material::certified_key;
use super::source::Pieces;
use super::verify::{AnyCertificate, PolicyVerifier};
use crate::policy::model::{ClientTls, TlsExtra};

/// Server names whose sessions one configuration remembers.
const SESSIONS: usize = 256;

/// Client settings of one identity and one trust, with a session store of
/// their own: tickets never cross from one identity to another.
#[derive(Debug)]
pub struct TlsConfig {
    /// For rustls, without ALPN, which each handshake sets.
    pub client: Arc<ClientConfig>,
    /// `sni` of the policy.
    pub sni: Option<Arc<str>>,
    /// A client certificate is presented when asked for.
    pub mutual: bool,
    /// Grows with each rotation.
    pub version: u64,
    /// Set once another is in force in its place.
    pub replaced: Replaced,
    /// Client certificate.
    pub(super) certificate: Option<CertificateSummary>,
    /// Trusted authorities, unless they are the system's.
    pub(super) authorities: Vec<CertificateSummary>,
    /// Remarks that do not keep it from working.
    pub(super) warnings: Vec<String>,
}

/// Whether the material that a connection was made with has been replaced since.
/// That of a connection in the clear, the default, never is.
#[derive(Clone, Debug, Default)]
pub struct Replaced(Option<Arc<AtomicBool>>);

impl Replaced {
    /// Of material that is in force.
    pub fn not_yet() -> Self {
        Self(Some(Arc::default()))
    }

    /// From now on it is.
    pub fn set(&self) {
        if let Some(flag) = &self.0 {
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is.
    pub fn is_set(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

impl TlsConfig {
    /// The client certificate.
    pub fn certificate(&self) -> Option<&CertificateSummary> {
        self.certificate.as_ref()
    }
}

pub(super) fn build(
    tls: &ClientTls,
    pieces: &Pieces,
    system: impl FnOnce() -> Result<Arc<RootCertStore>, SecretError>,
    version: u64,
) -> Result<TlsConfig, SecretError> {
    let provider = provider(&tls.extra)?;
    let mut warnings = Vec::new();
    let versions: &[&rustls::SupportedProtocolVersion] = if tls.extra.only_tls13 {
        &[&version::TLS13]
    } else {
        &[&version::TLS13, &version::TLS12]
    };
    let library = |error: rustls::Error| SecretError::Library(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(library)?
        .dangerous();
    let mut authorities = Vec::new();
    let builder = if tls.insecure_skip_verify {
        let algorithms = provider.signature_verification_algorithms;
        warnings.push("insecureSkipVerify: the server is not verified".to_owned());
        builder.with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
    } else {
        let (roots, pinned) = match &pieces.authorities {
            None => (system()?, Vec::new()),
            Some(piece) => {
                let found = piece.certificates(Purpose::Authorities)?;
                authorities = found
                    .iter()
                    .filter_map(|der| CertificateSummary::read(der))
                    .collect();
                let mut roots = RootCertStore::empty();
                let (added, _) = roots.add_parsable_certificates(found.iter().cloned());
                if added == 0 {
                    let why = "none of its certificates can be a trust anchor".to_owned();
                    let path = piece.path.clone();
                    return Err(SecretError::Malformed(Purpose::Authorities, path, why));
                }
                (Arc::new(roots), found)
            }
        };
        let verifier = verifier(tls, pieces, roots, pinned, provider)?;
        builder.with_custom_certificate_verifier(Arc::new(verifier))
    };
    let (mut client, certificate) = match &pieces.identity {
        None => (builder.with_no_client_auth(), None),
        Some((certificate, key)) => {
            if key.readable_by_others {
                warnings.push(format!(
                    "private key {}: others than its owner may read it; chmod 0400",
                    key.path.display()
                ));
            }
            let (pair, summary) = certified_key(certificate, key, Timestamp::now())?;
            let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(pair));
            (builder.with_client_cert_resolver(resolver), Some(summary))
        }
    };
    client.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
    Ok(TlsConfig {
        client: Arc::new(client),
        sni: tls.sni.clone(),
        mutual: certificate.is_some(),
        version,
        replaced: Replaced::not_yet(),
        certificate,
        authorities,
        warnings,
    })
}

fn verifier(
    tls: &ClientTls,
    pieces: &Pieces,
    roots: Arc<RootCertStore>,
    pinned: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<PolicyVerifier, SecretError> {
    let mut chain = WebPkiServerVerifier::builder_with_provider(roots, provider);
    if let Some(piece) = &pieces.revocation {
        chain = chain.with_crls(piece.revocation_lists()?);
    }
    let chain = chain.build().map_err(|error| match &pieces.revocation {
        Some(piece) => {
            let why = error.to_string();
            SecretError::Malformed(Purpose::RevocationList, piece.path.clone(), why)
        }
        None => SecretError::Library(error.to_string()),
    })?;
    PolicyVerifier::new(chain, &tls.subject_alt_names, pinned)
}

/// aws-lc-rs with the cipher suites that the policy asks for. Without a choice
/// AES-128 comes first, as browsers, Go and Envoy have it: its records cost
/// less than those of AES-256, and key derivation is hashing, for which
/// processors have instructions for SHA-256 far more often than for SHA-384.
fn provider(extra: &TlsExtra) -> Result<Arc<CryptoProvider>, SecretError> {
    let mut provider = aws_lc_rs::default_provider();
    if extra.cipher_suites.is_empty() {
        provider
            .cipher_suites
            .sort_by_key(|suite| !is_aes128(suite.suite()));
    } else {
        provider.cipher_suites = extra
            .cipher_suites
            .iter()
            .map(|name| {
                aws_lc_rs::ALL_CIPHER_SUITES
                    .iter()
                    .copied()
                    .find(|suite| iana_name(suite.suite()) == **name)
                    .ok_or_else(|| SecretError::UnknownCipherSuite(name.to_string()))
            })
            .collect::<Result<_, _>>()?;
    }
    Ok(Arc::new(provider))
}

fn is_aes128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// IANA's name of a suite: rustls writes `TLS13_` where IANA writes `TLS_`.
pub(crate) fn iana_name(suite: CipherSuite) -> String {
    let name = format!("{suite:?}");
    match name.strip_prefix("TLS13_") {
        Some(rest) => format!("TLS_{rest}"),
        None => name,
    }
}
