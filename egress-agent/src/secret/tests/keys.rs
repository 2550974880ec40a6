//! Forms of keys, and what is wrong with one.

use super::*;

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
