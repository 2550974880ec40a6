//! Where a credential is found, and for whom.

use super::*;

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
