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

/// Content of the `n`th element of a DER sequence, from its body.
fn element(mut body: &[u8], n: usize) -> Vec<u8> {
    for place in 0.. {
        let (header, length) = match body[1] {
            short @ 0..=0x7f => (2, usize::from(short)),
            long => {
                let count = usize::from(long & 0x7f);
                let length = body[2..2 + count]
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (2 + count, length)
            }
        };
        if place == n {
            return body[header..header + length].to_vec();
        }
        body = &body[header + length..];
    }
    unreachable!()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// The algorithm's own key inside of PKCS#8 (RFC 5958 section 2).
fn inner_key(key: &KeyPair) -> Vec<u8> {
    element(&element(key.serialized_der(), 0), 2)
}

type Encode<'a> = &'a dyn Fn(&KeyPair) -> String;

#[test]
fn every_form_of_key_is_taken() {
    let rsa =
        || KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let ecdsa = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let as_is = |key: &KeyPair| key.serialize_pem();
    let pkcs1 = |key: &KeyPair| pem("RSA PRIVATE KEY", &inner_key(key));
    let sec1 = |key: &KeyPair| pem("EC PRIVATE KEY", &inner_key(key));

    let cases: [(&str, KeyPair, Encode<'_>); 5] = [
        ("RSA PKCS#8", rsa(), &as_is),
        ("RSA PKCS#1", rsa(), &pkcs1),
        ("ECDSA PKCS#8", ecdsa(), &as_is),
        ("ECDSA SEC1", ecdsa(), &sec1),
        ("Ed25519 PKCS#8", ed25519, &as_is),
    ];
    for (what, key, write) in cases {
        let place = Place::new();
        let made = make_with("client", |_| {}, key);
        let tls = place.mutual(&made);
        place.put("client.key", write(&made.key));
        let config = ask(&place.secrets(), &tls);
        assert!(config.is_ok_and(|config| config.mutual), "{what}");
    }
}

#[test]
fn each_fault_has_its_own_words() {
    let made = make("client");
    let check = |spoil: &dyn Fn(&Place), wanted: &[&str]| {
        let place = Place::new();
        let tls = place.mutual(&made);
        spoil(&place);
        let text = complaint(&place.secrets(), &tls);
        for part in wanted {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    };
    check(
        &|place| fs::remove_file(place.path("client.key")).unwrap(),
        &["private key", "client.key", "does not exist"],
    );
    check(
        &|place| {
            fs::remove_file(place.path("client.pem")).unwrap();
            fs::create_dir(place.path("client.pem")).unwrap();
        },
        &["client certificate", "cannot be read", "not a regular file"],
    );
    check(
        &|place| drop(place.put("client.pem", "")),
        &["client.pem", "empty"],
    );
    check(
        &|place| drop(place.put("client.pem", "not PEM at all\n")),
        &["client.pem", "no PEM block"],
    );
    check(
        &|place| drop(place.put("ca.pem", made.key.serialize_pem())),
        &["CA certificates", "no PEM block"],
    );
    check(
        &|place| drop(place.put("ca.pem", pem("CERTIFICATE", b"junk"))),
        &["CA certificates", "block 1 is not an X.509 certificate"],
    );
    check(
        &|place| drop(place.put("client.key", make("other").key.serialize_pem())),
        &["client.key", "does not belong to", "client.pem"],
    );
    check(
        &|place| drop(place.put("client.key", pem("ENCRYPTED PRIVATE KEY", b"x"))),
        &["client.key", "encrypted"],
    );
    check(
        &|place| {
            let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
                DEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
            place.put("client.key", old);
        },
        &["client.key", "encrypted"],
    );
    check(
        &|place| drop(place.put("client.key", pem("PRIVATE KEY", b"junk"))),
        &["client.key", "not a usable"],
    );
}

#[test]
fn validity_is_checked_at_load() {
    let place = Place::new();
    let old = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2021, 1, 2);
    let tls = place.mutual(&make_with("client", old, KeyPair::generate().unwrap()));
    let text = complaint(&place.secrets(), &tls);
    assert!(text.contains("expired at 2021-01-02"), "{text}");

    let new = |params: &mut CertificateParams| params.not_before = rcgen::date_time_ymd(2999, 1, 2);
    let tls = place.mutual(&make_with("client", new, KeyPair::generate().unwrap()));
    let text = complaint(&place.secrets(), &tls);
    assert!(text.contains("not valid before 2999-01-02"), "{text}");
}

#[test]
fn a_key_that_others_may_read_works_with_a_warning() {
    let place = Place::new();
    let tls = place.mutual(&make("client"));
    let key = place.path("client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let secrets = place.secrets();
    ask(&secrets, &tls).unwrap();
    let status = secrets.status();
    assert!(status[0].warnings[0].contains("chmod 0400"), "{status:?}");
}

#[test]
fn credentials_are_found_in_order_and_absence_is_an_error() {
    let place = Place::new();
    let put = |directory: &str, name: &str, keys: [&str; 3]| {
        let made = make(name);
        place.put(&format!("{directory}/{}", keys[0]), &made.certificate);
        place.put(
            &format!("{directory}/{}", keys[1]),
            made.key.serialize_pem(),
        );
        place.put(&format!("{directory}/{}", keys[2]), authority(name));
    };
    let find = || {
        let config = ask(&place.secrets(), &credential("pay")).unwrap();
        subject(&config).to_owned()
    };
    let text = complaint(&place.secrets(), &credential("pay"));
    for part in [
        "secrets/shop/pay",
        "secrets/rules/pay",
        "secrets/istio-system/pay",
        "credentials/pay",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // From the last to the first, each goes before those behind it.
    let tls_names = ["tls.crt", "tls.key", "ca.crt"];
    put("credentials/pay", "systemd", tls_names);
    assert_eq!(find(), "CN=systemd");
    put("secrets/istio-system/pay", "root", tls_names);
    assert_eq!(find(), "CN=root");
    put("secrets/rules/pay", "rule", tls_names);
    assert_eq!(find(), "CN=rule");
    put("secrets/shop/pay", "own", tls_names);
    assert_eq!(find(), "CN=own");
    // Generic names before those of type TLS.
    put("secrets/shop/pay", "generic", ["cert", "key", "cacert"]);
    assert_eq!(find(), "CN=generic");
}

#[test]
fn systemd_lays_a_directory_out_flat() {
    let place = Place::new();
    let made = make("flat");
    place.put("credentials/pay_tls.crt", &made.certificate);
    place.put("credentials/pay_tls.key", made.key.serialize_pem());
    place.put("credentials/pay_ca.crt", authority("flat"));
    let config = ask(&place.secrets(), &credential("pay")).unwrap();
    assert_eq!(subject(&config), "CN=flat");
}

#[test]
fn a_separate_ca_credential_goes_first() {
    let place = Place::new();
    let tls = block(Identity::None, Trust::Secret("pay".into()));
    place.put("secrets/rules/pay/ca.crt", authority("inside"));
    let secrets = place.secrets();
    ask(&secrets, &tls).unwrap();
    assert_eq!(secrets.status()[0].authorities[0].subject, "CN=inside");
    place.put("secrets/rules/pay-cacert/ca.crt", authority("separate"));
    secrets.refresh(Look::Files);
    assert_eq!(secrets.status()[0].authorities[0].subject, "CN=separate");
}

#[test]
fn incomplete_credentials_say_what_is_missing() {
    let place = Place::new();
    place.put("secrets/shop/pay/tls.crt", make("x").certificate);
    let text = complaint(&place.secrets(), &credential("pay"));
    assert!(text.contains("has no `tls.key` or `key`"), "{text}");
    place.put("secrets/shop/pay/tls.key", make("x").key.serialize_pem());
    place.put("secrets/shop/ca-less/other", "x");
    let text = complaint(
        &place.secrets(),
        &block(Identity::None, Trust::Secret("ca-less".into())),
    );
    assert!(text.contains("no separate `-cacert`"), "{text}");
    place.put("secrets/shop/hollow/cacert", "");
    let text = complaint(
        &place.secrets(),
        &block(Identity::None, Trust::Secret("hollow".into())),
    );
    assert!(text.contains("the value is empty"), "{text}");
    for name in ["../up", "a/b", "", ".hidden"] {
        let text = complaint(&place.secrets(), &credential(name));
        assert!(text.contains("not a plain name"), "{text}");
    }
}

#[test]
fn one_namespace_never_gets_the_identity_of_another() {
    let place = Place::new();
    for namespace in ["red", "blue"] {
        let made = make(namespace);
        let directory = format!("secrets/{namespace}/pay");
        place.put(&format!("{directory}/tls.crt"), &made.certificate);
        place.put(&format!("{directory}/tls.key"), made.key.serialize_pem());
        place.put(&format!("{directory}/ca.crt"), authority("ca"));
    }
    let secrets = place.secrets();
    let of = |namespace: &str| {
        secrets
            .client_config(&credential("pay"), &namespace.into())
            .unwrap()
    };
    assert_eq!(subject(&of("red")), "CN=red");
    assert_eq!(subject(&of("blue")), "CN=blue");
    assert!(!Arc::ptr_eq(&of("red").client, &of("blue").client));
    assert!(Arc::ptr_eq(&of("red").client, &of("red").client));
    assert!(
        secrets
            .client_config(&credential("pay"), &"green".into())
            .is_err()
    );
}

#[test]
fn published_credentials_stand_in_front_and_can_go() {
    let place = Place::new();
    let secrets = place.secrets();
    let publish = |name: &str| {
        let made = make(name);
        let value = |text: String| Arc::new(Zeroizing::new(text.into_bytes()));
        let data = SecretData::from([
            ("tls.crt".into(), value(made.certificate.clone())),
            ("tls.key".into(), value(made.key.serialize_pem())),
            ("ca.crt".into(), value(authority("ca"))),
        ]);
        secrets.publish("shop".into(), "pay".into(), Some(data));
    };
    assert!(ask(&secrets, &credential("pay")).is_err());
    publish("first");
    assert_eq!(
        subject(&ask(&secrets, &credential("pay")).unwrap()),
        "CN=first"
    );
    publish("second");
    let config = ask(&secrets, &credential("pay")).unwrap();
    assert_eq!((subject(&config), config.version), ("CN=second", 2));
    secrets.publish("shop".into(), "pay".into(), None);
    // Gone is a bad new version: what was loaded stays in force, and says so.
    assert_eq!(
        subject(&ask(&secrets, &credential("pay")).unwrap()),
        "CN=second"
    );
    assert_eq!(secrets.status()[0].state, "stale");
}

/// Rotates by replacing the two files one after the other, as people do.
#[test]
fn every_rotation_of_files_is_taken() {
    let place = Place::new();
    let secrets = place.secrets();
    let tls = place.mutual(&make("client 0"));
    assert_eq!(subject(&ask(&secrets, &tls).unwrap()), "CN=client 0");
    for round in 1..=100 {
        let made = make(&format!("client {round}"));
        place.put("client.pem", &made.certificate);
        if round % 3 == 0 {
            // Seen half done.
            secrets.refresh(Look::Files);
            let config = ask(&secrets, &tls).unwrap();
            assert_eq!(subject(&config), format!("CN=client {}", round - 1));
        }
        place.put("client.key", made.key.serialize_pem());
        secrets.refresh(Look::Files);
        // A look that saw nothing move may follow one that saw the change in
        // the same tick of the clock.
        secrets.refresh(Look::Files);
        let config = ask(&secrets, &tls).unwrap();
        assert_eq!(subject(&config), format!("CN=client {round}"));
        assert_eq!(config.version, round + 1);
    }
    assert_eq!(secrets.status()[0].state, "active");
}

/// As the kubelet does it: a link to a directory is swapped.
#[test]
fn every_swap_of_a_directory_link_is_taken() {
    let place = Place::new();
    let secrets = place.secrets();
    let swap = |round: u32| {
        let made = make(&format!("client {round}"));
        let data = format!("secrets/shop/pay/..{round}");
        place.put(&format!("{data}/tls.crt"), &made.certificate);
        place.put(&format!("{data}/tls.key"), made.key.serialize_pem());
        place.put(&format!("{data}/ca.crt"), authority("ca"));
        let link = place.path("secrets/shop/pay/..new");
        symlink(format!("..{round}"), &link).unwrap();
        fs::rename(&link, place.path("secrets/shop/pay/..data")).unwrap();
    };
    swap(0);
    for key in ["tls.crt", "tls.key", "ca.crt"] {
        let path = place.path("secrets/shop/pay").join(key);
        symlink(Path::new("..data").join(key), path).unwrap();
    }
    for round in 0..20 {
        if round > 0 {
            swap(round);
        }
        secrets.refresh(Look::Files);
        let config = ask(&secrets, &credential("pay")).unwrap();
        assert_eq!(subject(&config), format!("CN=client {round}"));
    }
}

#[test]
fn a_bad_version_leaves_the_old_in_force_and_is_told() {
    let place = Place::new();
    let secrets = place.secrets();
    let tls = place.mutual(&make("good"));
    let before = ask(&secrets, &tls).unwrap();
    place.put("client.key", make("other").key.serialize_pem());
    for _ in 0..3 {
        secrets.refresh(Look::Files);
    }
    assert!(Arc::ptr_eq(&before, &ask(&secrets, &tls).unwrap()));
    let status = &secrets.status()[0];
    assert_eq!(status.state, "stale");
    assert!(status.error.as_ref().unwrap().contains("does not belong"));
    assert_eq!(status.certificate.as_ref().unwrap().subject, "CN=good");
    // And mended.
    place.mutual(&make("mended"));
    secrets.refresh(Look::Files);
    assert_eq!(subject(&ask(&secrets, &tls).unwrap()), "CN=mended");
    assert_eq!(secrets.status()[0].state, "active");
}

#[test]
fn what_was_never_usable_becomes_so_when_it_appears() {
    let place = Place::new();
    let secrets = place.secrets();
    assert!(ask(&secrets, &credential("late")).is_err());
    assert_eq!(secrets.status()[0].state, "error");
    let made = make("late");
    place.put("secrets/istio-system/late/tls.crt", &made.certificate);
    place.put(
        "secrets/istio-system/late/tls.key",
        made.key.serialize_pem(),
    );
    place.put("secrets/istio-system/late/ca.crt", authority("ca"));
    secrets.refresh(Look::Files);
    assert_eq!(
        subject(&ask(&secrets, &credential("late")).unwrap()),
        "CN=late"
    );
}

#[tokio::test]
async fn watching_takes_changes_by_itself() {
    let place = Place::new();
    let secrets = place.secrets();
    let tls = place.mutual(&make("old"));
    ask(&secrets, &tls).unwrap();
    let watch = tokio::spawn(secrets.clone().watch());
    place.mutual(&make("new"));
    let taken = async {
        while subject(&ask(&secrets, &tls).unwrap()) != "CN=new" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), taken)
        .await
        .unwrap();
    watch.abort();
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
