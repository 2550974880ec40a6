//! Material that is replaced.

use super::*;

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
