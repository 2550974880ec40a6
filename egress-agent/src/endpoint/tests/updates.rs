use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use super::*;

/// Whether a future is done now.
async fn is_done(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    let mut future = pin!(future);
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_stay_keep_their_state() {
    let set = set(ejecting(|o| o.max_ejection_percent = Some(50)), many(4));
    let held = pick_at(&set, 1);
    let connection = held.endpoint.open_connection();
    fail(&set, 2, Outcome::ConnectRefused, 5);
    fail(&set, 3, Outcome::ConnectRefused, 4);
    let ids: Vec<EndpointId> = set.endpoints().iter().map(|e| e.id).collect();
    // New weights, another order, one gone and one new.
    set.update(vec![
        weighing(5, 1),
        weighing(3, 9),
        weighing(2, 9),
        weighing(1, 9),
    ]);
    for n in [1, 2, 3] {
        let endpoint = set.endpoint_at(address(n)).unwrap();
        assert_eq!(endpoint.id, ids[n]);
        assert_eq!(endpoint.weight, 9);
    }
    assert!(is_ejected(&set, 2));
    fail(&set, 3, Outcome::ConnectRefused, 1);
    assert!(is_ejected(&set, 3));
    let endpoint = set.endpoint_at(address(1)).unwrap();
    assert_eq!(
        (endpoint.active_requests(), endpoint.active_connections()),
        (1, 1)
    );
    drop((held, connection));
    assert_eq!(
        (endpoint.active_requests(), endpoint.active_connections()),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_answer_changes_nothing() {
    let set = set(policy(), many(5));
    let version = *set.changes().borrow();
    let mut turned = many(5);
    turned.rotate_left(2);
    set.update(turned);
    assert_eq!(*set.changes().borrow(), version);
}

#[tokio::test(start_paused = true)]
async fn a_vanished_endpoint_takes_nothing_new_and_drains() {
    let set = set(policy(), many(2));
    let held = pick_at(&set, 1);
    let mut drained = Box::pin(held.endpoint.drained());
    assert!(!is_done(&mut drained).await);
    set.update(many(1));
    assert!(held.endpoint.is_gone());
    assert_shares(&set, &[(0, 1.0)]);
    assert!(!is_done(&mut drained).await);
    pass(29).await;
    assert!(!is_done(&mut drained).await);
    pass(1).await;
    assert!(is_done(&mut drained).await);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_comes_back_in_time_does_not_drain() {
    let set = set(ejecting(|o| o.max_ejection_percent = Some(50)), many(2));
    fail(&set, 1, Outcome::ConnectRefused, 5);
    let held = pick_at(&set, 1);
    let mut drained = Box::pin(held.endpoint.drained());
    for _ in 0..50 {
        // The answer flaps.
        set.update(many(1));
        live(&set, 1).await;
        assert!(!is_done(&mut drained).await);
        set.update(many(2));
        live(&set, 1).await;
    }
    assert_eq!(set.endpoint_at(address(1)).unwrap().id, held.endpoint.id);
    assert!(!held.endpoint.is_gone());
    assert_eq!(held.endpoint.drain_deadline(), None);
    pass(100).await;
    assert!(!is_done(&mut drained).await);
}

#[tokio::test(start_paused = true)]
async fn an_ejected_endpoint_that_comes_back_is_still_ejected() {
    let set = set(ejecting(|o| o.max_ejection_percent = Some(50)), many(3));
    fail(&set, 1, Outcome::ConnectRefused, 5);
    set.update(vec![at(0), at(2)]);
    pass(1).await;
    set.update(many(3));
    assert!(is_ejected(&set, 1));
    live(&set, 45).await;
    assert!(!is_ejected(&set, 1));
}

#[tokio::test(start_paused = true)]
async fn only_resolution_dns_drains() {
    for resolution in [Resolution::DnsRoundRobin, Resolution::Static] {
        let set = set_of(resolution, policy());
        set.update(many(2));
        let held = pick_at(&set, 1);
        let mut drained = Box::pin(held.endpoint.drained());
        set.update(many(1));
        assert!(held.endpoint.is_gone());
        assert_shares(&set, &[(0, 1.0)]);
        pass(3600).await;
        assert!(!is_done(&mut drained).await, "{resolution:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn vanished_endpoints_are_forgotten_in_the_end() {
    let set = set(policy(), many(2));
    let connection = set.endpoint_at(address(1)).unwrap().open_connection();
    set.update(many(1));
    assert_eq!(set.status().endpoints.len(), 2);
    live(&set, 60).await;
    assert_eq!(set.status().endpoints.len(), 2);
    drop(connection);
    live(&set, 2).await;
    assert_eq!(set.status().endpoints.len(), 1);
    assert_eq!(set.sweep(tokio::time::Instant::now()), None);
}

#[tokio::test(start_paused = true)]
async fn picking_waits_for_the_first_answer() {
    let set = set_of(Resolution::Dns, policy());
    assert_eq!(pick(&set).unwrap_err(), PickError::Unresolved);
    let mut resolved = Box::pin(set.resolved(""));
    assert!(!is_done(&mut resolved).await);
    set.update(many(1));
    assert!(is_done(&mut resolved).await);
    assert!(pick(&set).is_ok());
    // A name that cannot be resolved ends the wait too.
    let set = set_of(Resolution::Dns, policy());
    let mut resolved = Box::pin(set.resolved(""));
    assert!(!is_done(&mut resolved).await);
    set.resolution_failed("no such name".into());
    assert!(is_done(&mut resolved).await);
    let error = pick(&set).unwrap_err();
    assert_eq!(error, PickError::Unresolved);
    assert_eq!(error.flag().code(), "DF");
    assert!(set.explain(error, "").ends_with(": no such name"));
    assert_eq!(
        set.explain(PickError::Empty, ""),
        PickError::Empty.to_string()
    );
    // The last good answer stays in use.
    set.update(many(1));
    set.resolution_failed("timeout".into());
    assert!(pick(&set).is_ok());
    // Until it is given up.
    set.update_despite(Vec::new(), "no such name".into());
    let error = pick(&set).unwrap_err();
    assert!(set.explain(error, "").ends_with(": no such name"));
}

#[tokio::test(start_paused = true)]
async fn a_static_cluster_has_its_endpoints_at_once() {
    let spec = |address| EndpointSpec {
        address,
        port: 5432,
        weight: 1,
        locality: Locality::default(),
        labels: Labels::default(),
    };
    let endpoints = vec![
        spec(EndpointAddress::Ip("10.0.0.1".parse().unwrap())),
        spec(EndpointAddress::Unix("@db".into())),
    ];
    let cluster = cluster(
        Resolution::Static,
        endpoints,
        balanced(Algorithm::RoundRobin),
    );
    let set = EndpointSet::new(cluster, &Options::default());
    let mut seen: Vec<String> = (0..2)
        .map(|_| pick(&set).unwrap().destination.to_string())
        .collect();
    seen.sort();
    assert_eq!(seen, ["10.0.0.1:5432", "unix://@db"]);
    let empty = super::cluster(Resolution::Static, Vec::new(), policy());
    let set = EndpointSet::new(empty, &Options::default());
    assert_eq!(pick(&set).unwrap_err(), PickError::Empty);
}

#[tokio::test(start_paused = true)]
async fn each_name_of_a_dynamic_cluster_has_its_own_endpoints() {
    let set = set_of(Resolution::DynamicDns, ejecting(|_| {}));
    let pick_name = |host| pick_with(&set, |c| c.host = host);
    assert_eq!(
        pick_name("a.example.com").unwrap_err(),
        PickError::Unresolved
    );
    set.update_name(&"a.example.com".into(), many(2));
    set.update_name(&"b.example.com".into(), vec![at(7)]);
    assert_eq!(number(&pick_name("b.example.com").unwrap()), 7);
    assert_eq!(
        pick_name("c.example.com").unwrap_err(),
        PickError::Unresolved
    );
    for _ in 0..5 {
        let picked = (0..100)
            .map(|_| pick_name("a.example.com").unwrap())
            .find(|p| number(p) == 0);
        picked.unwrap().report(Outcome::ConnectRefused);
    }
    for _ in 0..100 {
        assert_eq!(number(&pick_name("a.example.com").unwrap()), 1);
    }
    // What the resolver said of a name is told for that name alone.
    let mut waits = Box::pin(set.resolved("c.example.com"));
    assert!(!is_done(&mut waits).await);
    set.name_failed(&"c.example.com".into(), "no such name".into(), true);
    waits.await;
    let error = pick_name("c.example.com").unwrap_err();
    assert!(
        set.explain(error, "c.example.com")
            .ends_with(": no such name")
    );
    assert_eq!(set.explain(error, "d.example.com"), error.to_string());
    // A failure leaves addresses in use.
    set.name_failed(&"a.example.com".into(), "no answer".into(), false);
    assert!(pick_name("a.example.com").is_ok());
    set.name_failed(&"b.example.com".into(), "no such name".into(), true);
    let error = pick_name("b.example.com").unwrap_err();
    assert_eq!(error, PickError::Unresolved);
    // Names are bounded; idle ones are forgotten.
    for n in 0..3000 {
        set.update_name(&format!("n{n}.example.com").into(), vec![at(n)]);
    }
    assert!(set.pools().len() <= 1025);
    assert!(pick_name("n2999.example.com").is_ok());
    live(&set, 1300).await;
    assert_eq!(set.pools().len(), 1);
    let gauge = &set.counters().endpoints;
    assert_eq!(gauge.load(std::sync::atomic::Ordering::Relaxed), 0);
}
