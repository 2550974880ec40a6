use std::collections::HashSet;

use super::*;
use crate::policy::model::Warmup;

#[tokio::test(start_paused = true)]
async fn round_robin_visits_equals_in_strict_turn() {
    let set = set(balanced(Algorithm::RoundRobin), many(7));
    let first: Vec<usize> = (0..7).map(|_| number(&pick(&set).unwrap())).collect();
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), 7);
    for round in 0..20 {
        for expected in &first {
            assert_eq!(number(&pick(&set).unwrap()), *expected, "round {round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_algorithm_honours_weights() {
    let endpoints = || {
        vec![
            weighing(0, 50),
            weighing(1, 30),
            weighing(2, 19),
            weighing(3, 1),
        ]
    };
    let expected = [(0, 0.5), (1, 0.3), (2, 0.19), (3, 0.01)];
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::LeastRequest,
        Algorithm::Random,
    ] {
        assert_shares(&set(balanced(algorithm), endpoints()), &expected);
    }
}

#[tokio::test(start_paused = true)]
async fn least_request_honours_weights_among_many() {
    let endpoints: Vec<_> = (0..100).map(|n| weighing(n, 1 + n as u32 % 4)).collect();
    let set = set(balanced(Algorithm::LeastRequest), endpoints);
    let shares = shares(&set, 100_000);
    for class in 0..4 {
        let share: f64 = (0..100)
            .filter(|n| n % 4 == class)
            .map(|n| shares[&n])
            .sum();
        let wanted = (1 + class) as f64 / 10.0;
        assert!(
            (share - wanted).abs() < 0.02,
            "{class}: {share}, not {wanted}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn weighted_round_robin_is_smooth() {
    let set = set(
        balanced(Algorithm::RoundRobin),
        vec![weighing(0, 5), weighing(1, 1), weighing(2, 1)],
    );
    let order: Vec<usize> = (0..7000).map(|_| number(&pick(&set).unwrap())).collect();
    for light in [1, 2] {
        let places: Vec<usize> = (0..order.len()).filter(|i| order[*i] == light).collect();
        let gaps: Vec<usize> = places.windows(2).map(|p| p[1] - p[0]).collect();
        assert!(gaps.iter().all(|gap| (3..=13).contains(gap)), "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn least_request_takes_the_less_busy_of_two() {
    let set = set(balanced(Algorithm::LeastRequest), many(2));
    let mut held = Vec::new();
    for round in 1..=50_u32 {
        held.push(pick(&set).unwrap());
        held.push(pick(&set).unwrap());
        for endpoint in set.endpoints() {
            assert_eq!(endpoint.active_requests(), round);
        }
    }
    drop(held);
    for endpoint in set.endpoints() {
        assert_eq!(endpoint.active_requests(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn weighted_least_request_follows_weight_by_active() {
    let set = set(
        balanced(Algorithm::LeastRequest),
        vec![weighing(0, 3), weighing(1, 1)],
    );
    // 3/(2+1) against 1/(0+1).
    let _busy = [pick_at(&set, 0), pick_at(&set, 0)];
    assert_shares(&set, &[(0, 0.5), (1, 0.5)]);
}

#[tokio::test(start_paused = true)]
async fn tried_endpoints_are_avoided_while_there_are_others() {
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::LeastRequest,
        Algorithm::Random,
    ] {
        let set = set(balanced(algorithm), many(4));
        let ids: Vec<EndpointId> = set.endpoints().iter().map(|e| e.id).collect();
        for _ in 0..1000 {
            let picked = pick_with(&set, |c| c.tried = &ids[..3]).unwrap();
            assert_eq!(picked.endpoint.id, ids[3]);
        }
        // All were tried: any will do.
        assert!(pick_with(&set, |c| c.tried = &ids).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_listed_twice_is_one_endpoint_with_both_weights() {
    let set = set(
        balanced(Algorithm::RoundRobin),
        vec![weighing(0, 1), weighing(1, 2), weighing(0, 1)],
    );
    assert_eq!(set.endpoints().len(), 2);
    assert_shares(&set, &[(0, 0.5), (1, 0.5)]);
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_warms_up() {
    let warm = |aggression, minimum_percent| {
        with(|p| {
            p.load_balancer.algorithm = Algorithm::RoundRobin;
            p.load_balancer.warmup = Some(Warmup {
                duration: Duration::from_secs(100),
                minimum_percent,
                aggression,
            });
        })
    };
    let set = set(warm(1.0, 10.0), many(1));
    live(&set, 200).await;
    set.update(many(2));
    // The old one weighs 1; the new one 0.1, then half, then 1.
    assert_shares(&set, &[(0, 1.0 / 1.1), (1, 0.1 / 1.1)]);
    live(&set, 50).await;
    assert_shares(&set, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]);
    live(&set, 51).await;
    assert_shares(&set, &[(0, 0.5), (1, 0.5)]);
    assert!(
        set.sweep(tokio::time::Instant::now() + Duration::from_secs(9))
            .is_none()
    );

    let aggressive = super::set(warm(2.0, 1.0), many(1));
    live(&aggressive, 200).await;
    aggressive.update(many(2));
    live(&aggressive, 25).await;
    // sqrt(0.25) of the weight after a quarter of the time.
    assert_shares(&aggressive, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]);
}

#[tokio::test(start_paused = true)]
async fn only_round_robin_and_least_request_warm_up() {
    let set = set(
        with(|p| {
            p.load_balancer.algorithm = Algorithm::Random;
            p.load_balancer.warmup = Some(Warmup {
                duration: Duration::from_secs(100),
                minimum_percent: 10.0,
                aggression: 1.0,
            });
        }),
        many(1),
    );
    live(&set, 200).await;
    set.update(many(2));
    assert_shares(&set, &[(0, 0.5), (1, 0.5)]);
}

#[test]
fn weights_map_points_in_proportion() {
    use crate::endpoint::weighted::{Step, Weights};
    let weights = Weights::new(&[1, 0, 3]);
    assert_eq!(weights.at(0), Some(0));
    assert_eq!(weights.at(u64::MAX / 4 - 1), Some(0));
    assert_eq!(weights.at(u64::MAX / 4 + 2), Some(2));
    assert_eq!(weights.at(u64::MAX), Some(2));
    assert_eq!(weights.weight(1), 0);
    assert_eq!(weights.weight(2), 3);
    assert_eq!(Weights::new(&[]).turn(Step(3)), None);
    assert_eq!(Weights::new(&[2, 2]).turn(Step(3)), Some(1));
}
