//! `tls` of a traffic policy (`ClientTLSSettings`).

use serde::Serialize;

use super::reader::Reader;
use super::{Spanned, Text};
use crate::policy::check;
use crate::policy::diagnostic::Span;
use crate::policy::yaml::Node;

/// `tls`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// `mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Spanned<Mode>>,
    /// `clientCertificate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<Text>,
    /// `privateKey`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key: Option<Text>,
    /// `caCertificates`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<Text>,
    /// `caCrl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_crl: Option<Text>,
    /// `credentialName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_name: Option<Text>,
    /// `subjectAltNames`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<Text>,
    /// `sni`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<Text>,
    /// `insecureSkipVerify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<Spanned<bool>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

words! {
    /// `mode`.
    #[derive(Default)]
    pub enum Mode {
        /// No TLS.
        #[default]
        Disable = "DISABLE",
        /// The server's certificate is checked.
        Simple = "SIMPLE",
        /// And the client has one as well.
        Mutual = "MUTUAL",
        /// With the mesh's certificates.
        IstioMutual = "ISTIO_MUTUAL",
    }
}

impl Tls {
    /// `mode`, or its default.
    pub fn mode(&self) -> Mode {
        self.mode.map(|mode| mode.value).unwrap_or_default()
    }
}

/// Reads and checks a `tls`.
pub fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Tls> {
    let tls = reader.object(node, |r, f| Tls {
        mode: r.field(f, "mode", |r, n| r.word(n, Mode::WORDS)),
        client_certificate: r.text_field(f, "clientCertificate"),
        private_key: r.text_field(f, "privateKey"),
        ca_certificates: r.text_field(f, "caCertificates"),
        ca_crl: r.text_field(f, "caCrl"),
        credential_name: r.text_field(f, "credentialName"),
        subject_alt_names: r.texts(f, "subjectAltNames"),
        sni: r.text_field(f, "sni"),
        insecure_skip_verify: r.nullable(f, "insecureSkipVerify", Reader::boolean),
        span: f.span,
    })?;
    check::tls::check_tls(reader, &tls);
    Some(tls)
}
