//! How a server's certificate is judged: the chain first, then the names of
//! the policy; and what is remembered of a chain that was refused.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::describe::CertificateSummary;
use super::error::SecretError;

/// A chain that was refused, as the server presented it.
#[derive(Clone, Debug, Default)]
pub struct RefusedChain {
    /// From the server's own certificate on.
    pub chain: Vec<CertificateSummary>,
    /// Names that would have been accepted.
    pub wanted: Vec<String>,
}

thread_local! {
    /// A verifier is shared by all handshakes, and rustls gives an error no
    /// room for the chain without changing the alert that the server gets.
    /// Verification and its error come in one poll on one thread, so the
    /// chain waits here for [`take_refused`].
    static REFUSED: RefCell<Option<RefusedChain>> = const { RefCell::new(None) };
}

/// The chain refused by the last verification on this thread, once.
pub fn take_refused() -> Option<RefusedChain> {
    REFUSED.with_borrow_mut(Option::take)
}

/// One accepted name.
#[derive(Clone, Debug)]
enum AcceptedName {
    /// A DNS name or IP address, matched as RFC 6125 section 6.4 says (a
    /// wildcard in the certificate covers one label), as Envoy does for an
    /// exact matcher.
    Host(ServerName<'static>),
    /// Anything else (a SPIFFE URI), equal byte for byte.
    Text(Box<str>),
}

/// Verifies chain, validity, revocation, then names.
#[derive(Debug)]
pub(super) struct PolicyVerifier {
    chain: Arc<WebPkiServerVerifier>,
    /// `subjectAltNames`; empty: the server name of the handshake.
    names: Vec<AcceptedName>,
    /// Certificates of `caCertificates`: a self-signed server certificate
    /// that stands there itself is trusted, as OpenSSL does.
    pinned: Vec<CertificateDer<'static>>,
}

impl PolicyVerifier {
    pub(super) fn new(
        chain: Arc<WebPkiServerVerifier>,
        names: &[Arc<str>],
        pinned: Vec<CertificateDer<'static>>,
    ) -> Result<Self, SecretError> {
        let names = names
            .iter()
            .map(|name| match ServerName::try_from(name.to_string()) {
                Ok(host) => Ok(AcceptedName::Host(host)),
                Err(_) if name.is_empty() => Err(SecretError::BadName(String::new())),
                Err(_) => Ok(AcceptedName::Text(Box::from(&**name))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            chain,
            names,
            pinned,
        })
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<(), Error> {
        // The library looks at the name last, so an error about the name says
        // that the chain stands.
        let verdict = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            Ok(_) if self.names.is_empty() => return Ok(()),
            Ok(_) => {}
            Err(error) if is_name_error(&error) && !self.names.is_empty() => {}
            Err(error) if is_authority_as_server(&error) && self.is_pinned(end_entity) => {
                check_validity(end_entity, now)?;
                if self.names.is_empty() {
                    return verify_server_name(
                        &ParsedCertificate::try_from(end_entity)?,
                        server_name,
                    );
                }
            }
            Err(error) => return Err(error),
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let mut texts = None;
        for name in &self.names {
            match name {
                AcceptedName::Host(host) => {
                    if verify_server_name(&parsed, host).is_ok() {
                        return Ok(());
                    }
                }
                AcceptedName::Text(wanted) => {
                    let texts = texts.get_or_insert_with(|| {
                        CertificateSummary::read(end_entity).map_or_else(Vec::new, |c| c.names)
                    });
                    if texts.iter().any(|text| **text == **wanted) {
                        return Ok(());
                    }
                }
            }
        }
        Err(CertificateError::NotValidForName.into())
    }

    fn is_pinned(&self, end_entity: &CertificateDer<'_>) -> bool {
        self.pinned.iter().any(|pinned| pinned == end_entity)
    }

    fn wanted(&self, server_name: &ServerName<'_>) -> Vec<String> {
        if self.names.is_empty() {
            return vec![server_name.to_str().into_owned()];
        }
        self.names
            .iter()
            .map(|name| match name {
                AcceptedName::Host(host) => host.to_str().into_owned(),
                AcceptedName::Text(text) => text.to_string(),
            })
            .collect()
    }
}

fn is_name_error(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

/// webpki's `CaUsedAsEndEntity`, which rustls passes on as an opaque error.
fn is_authority_as_server(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(other))
        if other.to_string().contains("CaUsedAsEndEntity"))
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let summary = CertificateSummary::read(certificate)
        .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if summary.not_after.as_second() < now {
        return Err(CertificateError::Expired.into());
    }
    if summary.not_before.as_second() > now {
        return Err(CertificateError::NotValidYet.into());
    }
    Ok(())
}

impl ServerCertVerifier for PolicyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.judge(end_entity, intermediates, server_name, ocsp_response, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => {
                let chain = std::iter::once(end_entity)
                    .chain(intermediates)
                    .filter_map(|der| CertificateSummary::read(der))
                    .take(8)
                    .collect();
                let wanted = self.wanted(server_name);
                REFUSED.set(Some(RefusedChain { chain, wanted }));
                Err(error)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// `insecureSkipVerify`: any certificate, but still the key that belongs to it.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub(super) WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
