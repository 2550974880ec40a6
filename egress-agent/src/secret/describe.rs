//! What a certificate says about itself, for status pages and error texts.

use std::fmt;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// The parts of a certificate that a person needs to recognise it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CertificateSummary {
    /// Subject, as `CN=…, O=…`.
    pub subject: String,
    /// Issuer, in the same form.
    pub issuer: String,
    /// Subject alternative names; URIs and IP addresses as text.
    pub names: Vec<String>,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// `notBefore`.
    #[serde(serialize_with = "as_text")]
    pub not_before: Timestamp,
    /// `notAfter`.
    #[serde(serialize_with = "as_text")]
    pub not_after: Timestamp,
    /// Basic constraints say that it is an authority.
    pub ca: bool,
}

impl CertificateSummary {
    /// Reads a DER certificate; `None` when it is not one.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            names: alternative_names(&parsed),
            serial: hex(parsed.raw_serial()),
            not_before: timestamp(parsed.validity().not_before.timestamp()),
            not_after: timestamp(parsed.validity().not_after.timestamp()),
            ca: parsed.is_ca(),
        })
    }

    /// Whole days until `notAfter`; negative once it has passed.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        (self.not_after.as_second() - now.as_second()).div_euclid(86_400)
    }
}

impl fmt::Display for CertificateSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "subject \"{}\", issuer \"{}\", valid {} to {}",
            self.subject, self.issuer, self.not_before, self.not_after
        )
    }
}

/// Writes a time as RFC 3339 text.
pub(super) fn as_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names),
            _ => None,
        })
        .flat_map(|names| &names.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
                Some((*text).to_owned())
            }
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
                Err(_) => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|v6| std::net::Ipv6Addr::from(v6).to_string()),
            },
            _ => None,
        })
        .collect()
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(if seconds < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    // A leading zero byte only keeps the DER integer positive.
    let digits = match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    digits.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
