use super::*;

fn dial(set: &Arc<EndpointSet>, original: &str) -> Result<Picked, PickError> {
    let original = original.parse().unwrap();
    pick_with(set, |c| c.original = original)
}

#[tokio::test(start_paused = true)]
async fn the_dialled_address_is_used_with_the_target_port() {
    let set = set_of(Resolution::None, policy());
    let picked = dial(&set, "192.0.2.9:443").unwrap();
    assert_eq!(picked.destination.to_string(), "192.0.2.9:8443");
    let again = dial(&set, "192.0.2.9:443").unwrap();
    assert_eq!(picked.endpoint.id, again.endpoint.id);
    assert_eq!(again.endpoint.active_requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn passthrough_ignores_endpoints_but_for_virtual_addresses() {
    let set = set(balanced(Algorithm::Passthrough), many(2));
    let real = dial(&set, "192.0.2.9:443").unwrap();
    assert_eq!(real.destination.to_string(), "192.0.2.9:8443");
    for dialled in [
        "240.240.3.4:443",
        "[2001:2::7]:443",
        "[::ffff:240.240.3.4]:443",
    ] {
        assert!(number(&dial(&set, dialled).unwrap()) < 2);
    }
    let none = set_of(Resolution::None, policy());
    let error = dial(&none, "240.240.3.4:443").unwrap_err();
    assert_eq!(error, PickError::Virtual);
}

#[tokio::test(start_paused = true)]
async fn ejection_works_by_address() {
    let set = set_of(Resolution::None, ejecting(|_| {}));
    for n in 1..=3 {
        drop(dial(&set, &format!("192.0.2.{n}:443")).unwrap());
    }
    for _ in 0..5 {
        dial(&set, "192.0.2.2:443")
            .unwrap()
            .report(Outcome::ConnectTimeout);
    }
    let error = dial(&set, "192.0.2.2:443").unwrap_err();
    assert_eq!(error, PickError::NoHealthy);
    assert!(dial(&set, "192.0.2.1:443").is_ok());
    live(&set, 45).await;
    assert!(dial(&set, "192.0.2.2:443").is_ok());
    // The only address there is stays in use.
    let one = set_of(Resolution::None, ejecting(|_| {}));
    for _ in 0..50 {
        dial(&one, "192.0.2.2:443")
            .unwrap()
            .report(Outcome::ConnectTimeout);
    }
    assert!(dial(&one, "192.0.2.2:443").is_ok());
}

#[tokio::test(start_paused = true)]
async fn panic_uses_ejected_addresses_too() {
    let policy = ejecting(|o| {
        o.max_ejection_percent = Some(100);
        o.min_health_percent = 60;
    });
    let set = set_of(Resolution::None, policy);
    for n in 1..=2 {
        drop(dial(&set, &format!("192.0.2.{n}:443")).unwrap());
    }
    for _ in 0..5 {
        dial(&set, "192.0.2.1:443")
            .unwrap()
            .report(Outcome::ConnectTimeout);
    }
    assert!(
        !set.endpoint_at("192.0.2.1:8443".parse().unwrap())
            .unwrap()
            .is_available()
    );
    assert!(dial(&set, "192.0.2.1:443").is_ok());
}

#[tokio::test(start_paused = true)]
async fn addresses_are_bounded_and_those_in_use_stay() {
    let set = set_of(Resolution::None, policy());
    let held = dial(&set, "192.0.2.1:443").unwrap();
    pass(1).await;
    for n in 0..6000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        drop(dial(&set, &format!("198.18.{high}.{low}:443")).unwrap());
    }
    assert_eq!(set.endpoints().len(), 4096);
    let again = dial(&set, "192.0.2.1:443").unwrap();
    assert_eq!(again.endpoint.id, held.endpoint.id);
    live(&set, 800).await;
    // Idle ones are forgotten, those in use are not.
    assert_eq!(set.endpoints().len(), 1);
    drop((held, again));
    live(&set, 800).await;
    assert_eq!(set.endpoints().len(), 0);
}
