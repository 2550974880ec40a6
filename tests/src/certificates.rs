//! A certificate authority of the lab's own, and the certificates, good and
//! bad, that its servers show.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
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
    /// Serial number in capital hexadecimal, as OpenSSL and nginx write it.
    pub serial: String,
}

/// Serial numbers grow, so that each certificate has its own.
static SERIAL: AtomicU64 = AtomicU64::new(0x1000);

impl Authority {
    /// Makes an authority called `name`.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        Self::with(lab, name, |_| {})
    }

    /// One that may issue for names below `domain` alone.
    pub fn constrained(lab: &Lab, name: &str, domain: &str) -> Result<Self> {
        Self::with(lab, name, |params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_owned())],
                excluded_subtrees: Vec::new(),
            });
        })
    }

    fn with(lab: &Lab, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::default())?;
        change(&mut params);
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

    /// A valid certificate whose only name is a URI, as SPIFFE's are.
    pub fn issue_uri(&self, uri: &str) -> Result<Certificate> {
        self.make(&[uri], 2100, vec![SanType::URI(uri.try_into()?)])
    }

    /// Writes a revocation list that names `revoked`, and returns its path.
    pub fn revoke(&self, revoked: &[&Certificate]) -> Result<PathBuf> {
        let entry = |certificate: &&Certificate| -> Result<RevokedCertParams> {
            let serial = u64::from_str_radix(&certificate.serial, 16)?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.directory.join(format!("{}.crl.pem", self.name));
        write(&path, &list.signed_by(&self.issuer)?.pem()?)?;
        Ok(path)
    }

    /// One that expired at the end of 2020.
    pub fn issue_expired(&self, names: &[&str]) -> Result<Certificate> {
        self.issue_until(names, 2021)
    }

    /// One that nobody but itself vouches for.
    pub fn self_signed(lab: &Lab, names: &[&str]) -> Result<Certificate> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let first = names.first().context("a certificate needs a name")?;
        let stem = format!("self-signed.{first}");
        let mut params = CertificateParams::new(names.clone())?;
        params.distinguished_name.push(DnType::CommonName, first);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        let key = KeyPair::generate()?;
        let files = Certificate {
            certificate: lab.directory().join(format!("{stem}.pem")),
            key: lab.directory().join(format!("{stem}.key")),
            serial: format!("{serial:X}"),
        };
        write(&files.certificate, &params.self_signed(&key)?.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }

    fn issue_until(&self, names: &[&str], year: i32) -> Result<Certificate> {
        let params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        self.make(names, year, params.subject_alt_names)
    }

    fn make(&self, names: &[&str], year: i32, alternatives: Vec<SanType>) -> Result<Certificate> {
        let first = names.first().context("a certificate needs a name")?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = alternatives;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(serial));
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
            serial: format!("{serial:X}"),
        };
        write(&files.certificate, &certificate.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
