use std::sync::Mutex;

use tokio::time::Instant;

use super::*;

fn snapshot(clusters: Vec<Arc<Cluster>>) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        clusters,
        ..Snapshot::default()
    })
}

fn specs(count: u8) -> Vec<EndpointSpec> {
    (0..count)
        .map(|n| EndpointSpec {
            address: EndpointAddress::Ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, n))),
            port: 443,
            weight: 1,
            locality: Locality::parse(if n == 0 { "us" } else { "eu" }),
            labels: Labels::default(),
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_is_known_of_a_cluster() {
    let mut registry = Registry::new(Options::default());
    let policy = ejecting(|o| o.max_ejection_percent = Some(50));
    let first = cluster(Resolution::Static, specs(4), policy.clone());
    let live = registry.apply(snapshot(vec![first]));
    let set = Arc::clone(&live.sets[0]);
    fail(&set, 2, Outcome::ConnectRefused, 5);
    let permit = set.connection_permit().unwrap();
    let version = *set.changes().borrow();

    // The same policy again: nothing changes but the cluster's place.
    let second = cluster(Resolution::Static, specs(4), policy.clone());
    let live = registry.apply(snapshot(vec![Arc::clone(&second)]));
    assert!(Arc::ptr_eq(&live.sets[0], &set));
    assert!(Arc::ptr_eq(&set.cluster(), &second));
    assert_eq!(*set.changes().borrow(), version);
    assert!(is_ejected(&set, 2));

    // Another balance: the ejection and what is in flight stay.
    let mut other = policy.clone();
    other.load_balancer.algorithm = Algorithm::Random;
    registry.apply(snapshot(vec![cluster(Resolution::Static, specs(3), other)]));
    assert!(is_ejected(&set, 2));
    assert_eq!(set.endpoints().len(), 3);
    assert_eq!(set.status().limits[0].current, 1);
    drop(permit);
    assert_eq!(set.status().limits[0].current, 0);

    // No outlierDetection: all are back.
    let without = cluster(Resolution::Static, specs(3), super::policy());
    registry.apply(snapshot(vec![without]));
    assert!(!is_ejected(&set, 2));

    // Gone and back: a new set.
    let live = registry.apply(snapshot(Vec::new()));
    assert!(live.sets.is_empty());
    let again = cluster(Resolution::Static, specs(3), super::policy());
    let live = registry.apply(snapshot(vec![again]));
    assert!(!Arc::ptr_eq(&live.sets[0], &set));
}

#[tokio::test(start_paused = true)]
async fn where_the_node_is_may_become_known_later() {
    let mut registry = Registry::new(Options::default());
    let first = cluster(Resolution::Static, specs(3), ejecting(|_| {}));
    let set = Arc::clone(&registry.apply(snapshot(vec![first])).sets[0]);
    let third = 1.0 / 3.0;
    assert_shares(&set, &[(0, third), (1, third), (2, third)]);
    registry.set_locality(Locality::parse("us"));
    assert_shares(&set, &[(0, 1.0)]);
}

#[tokio::test(start_paused = true)]
async fn every_change_is_told_once() {
    let mut registry = Registry::new(Options::default());
    let policy = ejecting(|o| o.max_ejection_percent = Some(100));
    let first = cluster(Resolution::Dns, specs(1), policy);
    let set = Arc::clone(&registry.apply(snapshot(vec![first])).sets[0]);
    let mut changes = registry.subscribe();
    let mut told = async || {
        let next = tokio::time::timeout(Duration::from_millis(1), changes.next()).await;
        next.map_or(0, |sets| sets.len())
    };
    // What there was before.
    assert_eq!(told().await, 1);
    assert_eq!(told().await, 0);
    for _ in 0..10 {
        set.update(many(3));
        set.update(many(4));
    }
    assert_eq!(told().await, 1);
    assert_eq!(told().await, 0);
    fail(&set, 1, Outcome::ConnectRefused, 5);
    assert_eq!(told().await, 1);
    live(&set, 45).await;
    assert_eq!(told().await, 1);
    assert_eq!(told().await, 0);
    // A set that is gone is nobody's concern.
    set.update(many(2));
    registry.apply(snapshot(Vec::new()));
    drop(set);
    assert_eq!(told().await, 0);
}

#[tokio::test(start_paused = true)]
async fn the_sweeper_readmits_in_time_and_sleeps_otherwise() {
    let mut registry = Registry::new(Options::default());
    let sweeper = tokio::spawn(registry.run_sweeps());
    let policy = ejecting(|o| o.max_ejection_percent = Some(100));
    let start = Instant::now();
    let first = cluster(Resolution::Static, specs(3), policy);
    let set = Arc::clone(&registry.apply(snapshot(vec![first])).sets[0]);
    let readmitted: Arc<Mutex<Vec<u64>>> = Arc::default();
    for (at, endpoint) in [(3, 0), (47, 1), (47, 2)] {
        tokio::time::sleep_until(start + Duration::from_secs(at)).await;
        fail(&set, endpoint, Outcome::ConnectRefused, 5);
        let (set, times) = (Arc::clone(&set), Arc::clone(&readmitted));
        tokio::spawn(async move {
            let mut changes = set.changes();
            while is_ejected(&set, endpoint) {
                changes.changed().await.unwrap();
            }
            times.lock().unwrap().push(start.elapsed().as_secs());
        });
    }
    tokio::time::sleep_until(start + Duration::from_secs(500)).await;
    assert_eq!(*readmitted.lock().unwrap(), [40, 80, 80]);
    assert_eq!(set.next_sweep(Instant::now()), None);
    sweeper.abort();
}

/// Failures on many threads while endpoints come and go: whatever happened
/// last must be what is picked from.
#[test]
fn no_rebuild_is_lost_under_concurrency() {
    let policy = ejecting(|o| {
        o.max_ejection_percent = Some(100);
        o.consecutive_5xx = Some(1);
    });
    for round in 0..200 {
        let set = set(policy.clone(), many(8));
        std::thread::scope(|scope| {
            for n in 0..4 {
                let set = &set;
                scope.spawn(move || fail(set, n, Outcome::ConnectRefused, 1));
            }
            scope.spawn(|| set.update(many(9)));
        });
        let mut used: Vec<usize> = shares(&set, 300).into_keys().collect();
        used.sort_unstable();
        assert_eq!(used, [4, 5, 6, 7, 8], "round {round}");
        for (n, level) in set.status().levels.iter().enumerate() {
            assert_eq!((n, level.healthy, level.total), (0, 5, 9));
        }
    }
}
