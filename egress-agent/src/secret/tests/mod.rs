#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;
use crate::policy::model::TlsExtra;

mod credentials;
mod keys;
mod rotation;

struct Made {
    certificate: String,
    key: KeyPair,
}

fn make(name: &str) -> Made {
    make_with(name, |_| {}, KeyPair::generate().unwrap())
}

fn make_with(name: &str, change: impl FnOnce(&mut CertificateParams), key: KeyPair) -> Made {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap().pem();
    Made { certificate, key }
}

fn authority(name: &str) -> String {
    let ca = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    make_with(name, ca, KeyPair::generate().unwrap()).certificate
}

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn secrets(&self) -> Arc<Secrets> {
        Secrets::new(SecretSettings {
            directory: Some(self.path("secrets")),
            credentials: Some(self.path("credentials")),
            mesh: None,
        })
    }

    /// MUTUAL by files.
    fn mutual(&self, made: &Made) -> ClientTls {
        let certificate = self.put("client.pem", &made.certificate);
        let key = self.put("client.key", made.key.serialize_pem());
        files(&certificate, &key, &self.put("ca.pem", authority("ca")))
    }
}

fn block(identity: Identity, trust: Trust) -> ClientTls {
    ClientTls {
        identity,
        trust,
        sni: None,
        subject_alt_names: Vec::new(),
        insecure_skip_verify: false,
        secret_namespaces: vec!["rules".into(), "istio-system".into()],
        extra: TlsExtra::default(),
    }
}

fn files(certificate: &Path, key: &Path, ca: &Path) -> ClientTls {
    block(
        Identity::Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        },
        Trust::File {
            ca: ca.to_owned(),
            crl: None,
        },
    )
}

fn credential(name: &str) -> ClientTls {
    block(Identity::Secret(name.into()), Trust::Secret(name.into()))
}

fn ask(secrets: &Secrets, tls: &ClientTls) -> Result<Arc<TlsConfig>, SecretError> {
    secrets.client_config(tls, &"shop".into())
}

fn complaint(secrets: &Secrets, tls: &ClientTls) -> String {
    ask(secrets, tls).unwrap_err().to_string()
}

fn subject(config: &TlsConfig) -> &str {
    &config.certificate.as_ref().unwrap().subject
}

#[test]
fn status_shows_what_a_person_needs() {
    let place = Place::new();
    let secrets = place.secrets();
    ask(&secrets, &place.mutual(&make("client.example.com"))).unwrap();
    let status = serde_json::to_value(secrets.status()).unwrap();
    let status = &status[0];
    assert_eq!(status["mode"], "MUTUAL");
    assert_eq!(status["certificate"]["names"][0], "client.example.com");
    assert!(!status["certificate"]["serial"].as_str().unwrap().is_empty());
    assert!(status["days_left"].as_i64().unwrap() > 300_000, "{status}");
    assert!(!status.to_string().contains("PRIVATE"), "{status}");
    assert_eq!(status["authorities"][0]["ca"], true);
}

#[test]
fn cipher_suites_and_versions_follow_the_policy() {
    let place = Place::new();
    let mut tls = block(
        Identity::None,
        Trust::File {
            ca: place.put("ca.pem", authority("ca")),
            crl: None,
        },
    );
    let suites = |tls: &ClientTls| -> Vec<String> {
        ask(&place.secrets(), tls)
            .unwrap()
            .client
            .crypto_provider()
            .cipher_suites
            .iter()
            .map(|suite| iana_name(suite.suite()))
            .collect()
    };
    let all = suites(&tls);
    assert_eq!(all[0], "TLS_AES_128_GCM_SHA256");
    assert_eq!(all.len(), 9, "{all:?}");
    tls.extra.cipher_suites = vec![
        "TLS_AES_256_GCM_SHA384".into(),
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".into(),
    ];
    let suites = suites(&tls);
    assert_eq!(suites[0], "TLS_AES_256_GCM_SHA384");
    assert_eq!(suites.len(), 2);
    tls.extra.only_tls13 = true;
    tls.extra.cipher_suites = vec!["TLS_AES_128_CBC_SHA".into()];
    let text = complaint(&place.secrets(), &tls);
    assert!(
        text.contains("TLS_AES_128_CBC_SHA is not offered"),
        "{text}"
    );
}

#[test]
fn mesh_mode_without_an_identity_is_refused() {
    let place = Place::new();
    let text = complaint(&place.secrets(), &block(Identity::Mesh, Trust::Mesh));
    assert!(text.contains("ISTIO_MUTUAL needs an identity"), "{text}");
}

#[test]
fn forgotten_blocks_are_no_longer_shown() {
    let place = Place::new();
    let secrets = place.secrets();
    let tls = place.mutual(&make("client"));
    ask(&secrets, &tls).unwrap();
    secrets.retain(|_| true);
    assert_eq!(secrets.status().len(), 1);
    secrets.retain(|used| *used != tls);
    assert!(secrets.status().is_empty());
}

#[test]
fn metrics_tell_expiry_and_state() {
    let place = Place::new();
    let secrets = place.secrets();
    let mut tls = place.mutual(&make("client"));
    ask(&secrets, &tls).unwrap();
    assert!(ask(&secrets, &credential("gone")).is_err());
    tls.insecure_skip_verify = true;
    ask(&secrets, &tls).unwrap();
    let mut registry = prometheus_client::registry::Registry::default();
    secrets.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(
        lines("egress_tls_certificate_not_after_timestamp_seconds{"),
        1,
        "{text}"
    );
    assert_eq!(lines("egress_tls_verification_skipped{"), 1, "{text}");
    assert!(
        text.contains(r#"egress_tls_material_state{name="gone",namespace="shop",state="error"} 1"#),
        "{text}"
    );
}
