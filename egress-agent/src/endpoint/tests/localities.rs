use super::*;
use crate::endpoint::load::{Health, choose, choose_other, spread};
use crate::policy::model::LocalityPattern;

fn health(healthy: u32, total: u32) -> Health {
    Health { healthy, total }
}

fn percents(levels: &[(u32, u32)], panic: u32) -> Vec<u32> {
    let levels: Vec<Health> = levels.iter().map(|(h, t)| health(*h, *t)).collect();
    spread(&levels, panic).iter().map(|l| l.percent).collect()
}

fn panics(levels: &[(u32, u32)], panic: u32) -> Vec<bool> {
    let levels: Vec<Health> = levels.iter().map(|(h, t)| health(*h, *t)).collect();
    spread(&levels, panic).iter().map(|l| l.panic).collect()
}

/// Envoy's documentation of priority levels gives these tables.
#[test]
fn load_spills_over_as_in_envoy() {
    for (first, expected) in [
        (100, [100, 0]),
        (72, [100, 0]),
        (71, [99, 1]),
        (50, [70, 30]),
        (25, [35, 65]),
        (0, [0, 100]),
    ] {
        assert_eq!(percents(&[(first, 100), (100, 100)], 0), expected);
    }
    // 35 % and 35 %: together less than all, so both are scaled up.
    assert_eq!(percents(&[(25, 100), (25, 100)], 0), [50, 50]);
    assert_eq!(
        percents(&[(20, 100), (20, 100), (10, 100)], 0),
        [40, 40, 20]
    );
    assert_eq!(percents(&[(100, 100), (25, 100)], 50), [100, 0]);
    assert_eq!(percents(&[(0, 3), (0, 3)], 0), [0, 0]);
}

#[test]
fn panic_applies_only_when_load_cannot_be_carried() {
    // One level below the threshold, but the others carry everything.
    assert_eq!(panics(&[(1, 10), (10, 10)], 50), [false, false]);
    assert_eq!(panics(&[(5, 100), (65, 100)], 50), [true, false]);
    // All in panic: by number of endpoints.
    assert_eq!(percents(&[(1, 10), (2, 30)], 50), [25, 75]);
    assert_eq!(percents(&[(0, 10), (0, 30)], 1), [25, 75]);
    assert_eq!(panics(&[(0, 10), (0, 30)], 0), [false, false]);
}

#[test]
fn points_fall_into_levels_by_their_load() {
    let loads = || [30_u32, 0, 70].into_iter();
    assert_eq!(choose(loads(), 0), Some(0));
    assert_eq!(choose(loads(), 29), Some(0));
    assert_eq!(choose(loads(), 30), Some(2));
    assert_eq!(choose([0, 0].into_iter(), 0), None);
    let capacities = || [100_u32, 50, 50].into_iter();
    assert_eq!(choose_other(&capacities(), |i| i == 0, 49), Some(1));
    assert_eq!(choose_other(&capacities(), |i| i == 0, 50), Some(2));
    assert_eq!(choose_other(&capacities(), |_| true, 0), None);
}

fn regions() -> Vec<ResolvedEndpoint> {
    vec![
        located(0, "us/a/1"),
        located(1, "us/a/2"),
        located(2, "us/b/1"),
        located(3, "eu/a/1"),
        located(4, "ap/a/1"),
    ]
}

/// The order in which endpoints are used as one after the other goes out.
fn order(set: &Arc<EndpointSet>) -> Vec<Vec<usize>> {
    let mut order = Vec::new();
    while let Ok(first) = pick(set) {
        drop(first);
        let mut used: Vec<usize> = shares(set, 1000).into_keys().collect();
        used.sort_unstable();
        for n in &used {
            fail(set, *n, Outcome::ConnectRefused, 5);
            assert!(is_ejected(set, *n));
        }
        order.push(used);
    }
    order
}

#[tokio::test(start_paused = true)]
async fn the_near_are_used_first() {
    let all = ejecting(|o| o.max_ejection_percent = Some(100));
    let set = set_in_us(all, regions());
    assert_eq!(order(&set), [vec![0], vec![1], vec![2], vec![3, 4]]);
    assert_eq!(pick(&set).unwrap_err(), PickError::NoHealthy);
    // All come back, and the near ones first.
    live(&set, 45).await;
    assert_eq!(number(&pick(&set).unwrap()), 0);
}

#[tokio::test(start_paused = true)]
async fn failover_names_the_next_region() {
    let mut policy = ejecting(|o| o.max_ejection_percent = Some(100));
    policy.load_balancer.locality.failover = vec![("us".into(), "ap".into())];
    let set = set_in_us(policy, regions());
    assert_eq!(order(&set), [vec![0], vec![1], vec![2], vec![4], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn without_a_way_out_all_are_one_level() {
    let flat: Vec<(usize, f64)> = (0..5).map(|n| (n, 0.2)).collect();
    assert_shares(&set_in_us(policy(), regions()), &flat);
    let mut off = ejecting(|_| {});
    off.load_balancer.locality.enabled = false;
    assert_shares(&set_in_us(off, regions()), &flat);
    // A health check takes endpoints out as well.
    let checked = with(|p| p.health_check = Some(health::check()));
    assert_shares(&set_in_us(checked, regions()), &[(0, 1.0)]);
}

#[tokio::test(start_paused = true)]
async fn levels_spill_over_when_endpoints_go_out() {
    let mut endpoints: Vec<_> = (0..10).map(|n| located(n, "us/a/1")).collect();
    endpoints.extend((10..20).map(|n| located(n, "eu/a/1")));
    let all = ejecting(|o| o.max_ejection_percent = Some(100));
    let set = set_in_us(all, endpoints);
    let near = |set: &Arc<EndpointSet>| -> f64 {
        let shares = shares(set, 100_000);
        shares
            .iter()
            .filter(|(n, _)| **n < 10)
            .map(|(_, s)| s)
            .sum()
    };
    for (out, wanted) in [(2, 1.0), (3, 0.98), (5, 0.70), (9, 0.14)] {
        (0..out).for_each(|n| {
            if !is_ejected(&set, n) {
                fail(&set, n, Outcome::ConnectRefused, 5);
            }
        });
        let share = near(&set);
        assert!((share - wanted).abs() < 0.005, "{out} out: {share}");
    }
}

#[tokio::test(start_paused = true)]
async fn failover_priority_counts_leading_labels() {
    let mut policy = ejecting(|o| o.max_ejection_percent = Some(100));
    policy.load_balancer.locality.failover_priority = vec![
        ("version".into(), None),
        ("topology.kubernetes.io/region".into(), None),
        ("tier".into(), Some("gold".into())),
    ];
    let endpoint = |n, version: &str, locality, tier: &str| ResolvedEndpoint {
        labels: labels(&[("version", version), ("tier", tier)]),
        ..located(n, locality)
    };
    let endpoints = vec![
        endpoint(0, "v1", "us/a/1", "gold"),
        endpoint(1, "v1", "us/a/1", "tin"),
        endpoint(2, "v1", "eu/a/1", "gold"),
        endpoint(3, "v2", "us/a/1", "gold"),
    ];
    let set = set_in_us(policy, endpoints);
    let first = |version: &str| {
        let client = client(&[("version", version)]);
        (0..100)
            .map(|_| number(&pick_with(&set, |c| c.client = &client).unwrap()))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(first("v1").into_iter().collect::<Vec<_>>(), [0]);
    assert_eq!(first("v2").into_iter().collect::<Vec<_>>(), [3]);
    fail(&set, 0, Outcome::ConnectRefused, 5);
    assert_eq!(first("v1").into_iter().collect::<Vec<_>>(), [1]);
    fail(&set, 1, Outcome::ConnectRefused, 5);
    assert_eq!(first("v1").into_iter().collect::<Vec<_>>(), [2]);
    fail(&set, 3, Outcome::ConnectRefused, 5);
    // For v2 nothing matches any more; what is left is one level.
    assert_eq!(first("v2").into_iter().collect::<Vec<_>>(), [2]);
}

#[tokio::test(start_paused = true)]
async fn clients_with_ever_new_labels_are_bounded() {
    let mut policy = ejecting(|_| {});
    policy.load_balancer.locality.failover_priority = vec![("version".into(), None)];
    let endpoint = |n, version: &str| ResolvedEndpoint {
        labels: labels(&[("version", version)]),
        ..at(n)
    };
    let set = set_in_us(policy, vec![endpoint(0, "v0"), endpoint(1, "v1")]);
    for n in 0..200 {
        let version = format!("v{n}");
        let client = client(&[("version", &version)]);
        let context = PickContext {
            client: &client,
            original: "192.0.2.1:443".parse().unwrap(),
            host: "db.example.com",
            hash: None,
            tried: &[],
            remote_localities: false,
        };
        let picked = number(&set.pick(&context).unwrap());
        assert!(n > 1 || picked == n);
    }
}

fn pattern(text: &str) -> LocalityPattern {
    let parts = text.split('/').filter(|part| *part != "*");
    LocalityPattern {
        parts: parts.map(Box::from).collect(),
    }
}

fn distributing(to: &[(&str, u32)]) -> TrafficPolicy {
    let to = to.iter().map(|(l, w)| (pattern(l), *w)).collect();
    with(|p| p.load_balancer.locality.distribute = vec![(pattern("us/*"), to)])
}

#[tokio::test(start_paused = true)]
async fn distribute_shares_by_locality() {
    let set = set_in_us(distributing(&[("us/a/*", 70), ("eu/*", 30)]), regions());
    // us/a has two localities of one endpoint each; ap and us/b get nothing.
    assert_shares(&set, &[(0, 0.35), (1, 0.35), (3, 0.3)]);
}

#[tokio::test(start_paused = true)]
async fn distribute_for_another_locality_leaves_it_flat() {
    let mut policy = distributing(&[("eu/*", 100)]);
    policy.load_balancer.locality.distribute[0].0 = pattern("ap/*");
    let flat: Vec<(usize, f64)> = (0..5).map(|n| (n, 0.2)).collect();
    assert_shares(&set_in_us(policy, regions()), &flat);
}

#[tokio::test(start_paused = true)]
async fn a_locality_that_is_out_gives_its_share_away() {
    let mut policy = distributing(&[("us/*", 80), ("eu/*", 20)]);
    policy.outlier_detection = Some(OutlierDetection {
        max_ejection_percent: Some(100),
        ..outlier()
    });
    let endpoints = vec![
        located(0, "us/a/1"),
        located(1, "us/a/1"),
        located(2, "eu/a/1"),
    ];
    let set = set_in_us(policy, endpoints);
    assert_shares(&set, &[(0, 0.4), (1, 0.4), (2, 0.2)]);
    fail(&set, 0, Outcome::ConnectRefused, 5);
    // us is half well: 80 x 0.7 against 20.
    assert_shares(&set, &[(1, 56.0 / 76.0), (2, 20.0 / 76.0)]);
    fail(&set, 1, Outcome::ConnectRefused, 5);
    assert_shares(&set, &[(2, 1.0)]);
}

#[tokio::test(start_paused = true)]
async fn distribute_and_hashing_go_together() {
    let mut policy = distributing(&[("us/*", 75), ("eu/*", 25)]);
    policy.load_balancer.algorithm = Algorithm::Hash {
        key: crate::policy::model::HashKey::SourceIp,
        table: crate::policy::model::HashTable::Ring(1024),
    };
    let endpoints = vec![
        located(0, "us/a/1"),
        located(1, "us/a/1"),
        located(2, "us/a/1"),
        located(3, "eu/a/1"),
        located(4, "ap/a/1"),
    ];
    let set = set_in_us(policy, endpoints);
    let mut counts = [0; 5];
    for n in 0..20_000_u64 {
        let hash = hash_bytes(&n.to_be_bytes());
        counts[number(&pick_with(&set, |c| c.hash = Some(hash)).unwrap())] += 1;
    }
    for (count, wanted) in counts.into_iter().zip([0.25, 0.25, 0.25, 0.25, 0.0]) {
        let share = f64::from(count) / 20_000.0;
        assert!((share - wanted).abs() < 0.04, "{counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_may_leave_the_levels_it_tried() {
    let all = ejecting(|o| o.max_ejection_percent = Some(100));
    let set = set_in_us(all, regions());
    let first = pick(&set).unwrap();
    assert_eq!(number(&first), 0);
    let mut tried = vec![first.endpoint.id];
    let mut seen = Vec::new();
    for _ in 0..3 {
        let next = pick_with(&set, |c| {
            c.tried = &tried;
            c.remote_localities = true;
        })
        .unwrap();
        seen.push(number(&next));
        tried.push(next.endpoint.id);
    }
    assert_eq!(seen[..2], [1, 2]);
    assert!(matches!(seen[2], 3 | 4));
    // Without it, the level stays, even for an endpoint already tried.
    let stay = pick_with(&set, |c| c.tried = &tried).unwrap();
    assert_eq!(number(&stay), 0);
}

#[tokio::test(start_paused = true)]
async fn panic_uses_all_of_a_level() {
    let panicking = ejecting(|o| {
        o.max_ejection_percent = Some(100);
        o.min_health_percent = 50;
    });
    let set = set(panicking, many(4));
    fail(&set, 0, Outcome::ConnectRefused, 5);
    fail(&set, 1, Outcome::ConnectRefused, 5);
    assert_shares(&set, &[(2, 0.5), (3, 0.5)]);
    fail(&set, 2, Outcome::ConnectRefused, 5);
    assert_shares(&set, &[(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]);
    // What fails in panic is not ejected again, and is readmitted as usual.
    fail(&set, 0, Outcome::ConnectRefused, 20);
    assert_eq!(
        set.endpoint_at(address(0))
            .unwrap()
            .counters()
            .ejections
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    live(&set, 45).await;
    assert!((0..4).all(|n| !is_ejected(&set, n)));
}
