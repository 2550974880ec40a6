//! A certificate authority of the lab's own, and the certificates, good and
//! bad, that its servers show.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use crate::{Context, Lab, Result};

/// An authority; its certificate is a PEM file in the lab's folder.
pub struct Authority {
    directory: PathBuf,
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Certificate and key of a server or client, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority called `name`.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::default())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let authority = Self {
            directory: lab.directory().to_owned(),
            name: name.to_owned(),
            issuer: Issuer::new(params, key),
        };
        write(&authority.path(), &certificate.pem())?;
        Ok(authority)
    }

    /// Its own certificate, for `caCertificates` and `curl --cacert`.
    pub fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.ca.pem", self.name))
    }

    /// A valid certificate for `names` (host names or addresses).
    pub fn issue(&self, names: &[&str]) -> Result<Certificate> {
        self.issue_until(names, 2100)
    }

    /// One that expired at the end of 2020.
    pub fn issue_expired(&self, names: &[&str]) -> Result<Certificate> {
        self.issue_until(names, 2021)
    }

    fn issue_until(&self, names: &[&str], year: i32) -> Result<Certificate> {
        let first = names.first().context("a certificate needs a name")?;
        let mut params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, *first);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let stem = format!("{}.{first}.{year}", self.name).replace(['*', '/', ':'], "_");
        let files = Certificate {
            certificate: self.directory.join(format!("{stem}.pem")),
            key: self.directory.join(format!("{stem}.key")),
        };
        write(&files.certificate, &certificate.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
