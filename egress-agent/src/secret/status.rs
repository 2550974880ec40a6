//! What `egressctl proxy-config secrets` and the expiry metric show.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::config::TlsConfig;
use super::describe::{CertificateSummary, as_text};
use super::error::SecretError;
use crate::policy::model::{ClientTls, Identity, Trust};

/// State of the material of one `tls` block.
#[derive(Clone, Debug, Serialize)]
pub struct SecretStatus {
    /// The credential, the certificate file, the CA file, or `system roots`.
    pub name: String,
    /// Namespace of the clients it is for; empty where that does not matter.
    pub namespace: String,
    /// `SIMPLE`, `MUTUAL` or `ISTIO_MUTUAL`.
    pub mode: &'static str,
    /// `active`; `stale` when a newer version cannot be used; `error` when
    /// nothing can.
    pub state: &'static str,
    /// Why, for `stale` and `error`.
    pub error: Option<String>,
    /// Remarks that do not keep it from working.
    pub warnings: Vec<String>,
    /// Client certificate.
    pub certificate: Option<CertificateSummary>,
    /// Whole days until the client certificate expires, negative after.
    pub days_left: Option<i64>,
    /// Trusted authorities, unless they are the system's.
    pub authorities: Vec<CertificateSummary>,
    /// Where the trusted authorities come from.
    pub trust: String,
    /// `insecureSkipVerify`.
    pub insecure: bool,
    /// Counts the versions that were in force; 0 when none was.
    pub version: u64,
    /// When the version in force was loaded.
    #[serde(serialize_with = "as_text")]
    pub loaded: Timestamp,
}

/// What the material of a `tls` block is called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Labels {
    /// As [`SecretStatus::name`].
    pub name: String,
    /// As [`SecretStatus::mode`].
    pub mode: &'static str,
    /// As [`SecretStatus::trust`].
    pub trust: String,
}

impl Labels {
    /// Those of a block.
    pub fn of(tls: &ClientTls) -> Self {
        let trust = match &tls.trust {
            _ if tls.insecure_skip_verify => "none (insecureSkipVerify)".to_owned(),
            Trust::System { .. } => "system roots".to_owned(),
            Trust::File { ca, .. } => ca.display().to_string(),
            Trust::Secret(name) => format!("credential {name}"),
            Trust::Mesh => "mesh roots".to_owned(),
        };
        let (name, mode) = match &tls.identity {
            Identity::None => (trust.clone(), "SIMPLE"),
            Identity::Files { certificate, .. } => (certificate.display().to_string(), "MUTUAL"),
            Identity::Secret(name) => (name.to_string(), "MUTUAL"),
            Identity::Mesh => ("mesh identity".to_owned(), "ISTIO_MUTUAL"),
        };
        Self { name, mode, trust }
    }
}

impl SecretStatus {
    pub(super) fn new(
        tls: &ClientTls,
        namespace: &str,
        current: &Result<Arc<TlsConfig>, SecretError>,
        refused: Option<&SecretError>,
        version: u64,
        loaded: Timestamp,
    ) -> Self {
        let Labels { name, mode, trust } = Labels::of(tls);
        let (state, error) = match (current, refused) {
            (Ok(_), None) => ("active", None),
            (Ok(_), Some(error)) => ("stale", Some(error.to_string())),
            (Err(error), _) => ("error", Some(error.to_string())),
        };
        let config = current.as_ref().ok();
        let certificate = config.and_then(|config| config.certificate.clone());
        Self {
            name,
            namespace: namespace.to_owned(),
            mode,
            state,
            error,
            warnings: config.map_or_else(Vec::new, |config| config.warnings.clone()),
            days_left: certificate.as_ref().map(|c| c.days_left(Timestamp::now())),
            certificate,
            authorities: config.map_or_else(Vec::new, |config| config.authorities.clone()),
            trust,
            insecure: tls.insecure_skip_verify,
            version,
            loaded,
        }
    }
}
