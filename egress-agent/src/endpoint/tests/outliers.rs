use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::*;
use crate::endpoint::outlier::{ejection_time, may_be_ejected};
use crate::endpoint::status::EndpointState;

fn anything() -> TrafficPolicy {
    ejecting(|o| o.max_ejection_percent = Some(100))
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_ejected_the_moment_its_counter_reaches_the_limit() {
    let set = set(anything(), many(3));
    fail(&set, 1, Outcome::Status(500), 4);
    assert!(!is_ejected(&set, 1));
    fail(&set, 1, Outcome::Status(500), 1);
    assert!(is_ejected(&set, 1));
    for _ in 0..1000 {
        assert_ne!(number(&pick(&set).unwrap()), 1);
    }
    assert_eq!(set.counters().ejections_5xx.load(Ordering::Relaxed), 1);
    assert_eq!(set.counters().ejected.load(Ordering::Relaxed), 1);
    assert_eq!(set.counters().available.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_starts_the_count_anew() {
    let set = set(anything(), many(3));
    for good in [
        Outcome::Status(200),
        Outcome::Status(429),
        Outcome::Status(404),
        Outcome::GrpcStatus(5),
        Outcome::Connected,
    ] {
        for _ in 0..10 {
            fail(&set, 1, Outcome::Status(503), 4);
            pick_at(&set, 1).report(good);
        }
    }
    assert!(!is_ejected(&set, 1));
}

#[tokio::test(start_paused = true)]
async fn local_failures_count_as_gateway_errors() {
    for outcome in [
        Outcome::ConnectRefused,
        Outcome::ConnectTimeout,
        Outcome::ConnectFailed,
        Outcome::TlsFailed,
        Outcome::Reset,
        Outcome::Timeout,
        Outcome::GrpcStatus(14),
        Outcome::GrpcStatus(4),
        Outcome::Status(502),
    ] {
        let policy = ejecting(|o| {
            o.max_ejection_percent = Some(100);
            o.consecutive_5xx = None;
            o.consecutive_gateway = Some(3);
        });
        let set = set(policy, many(3));
        fail(&set, 1, outcome, 2);
        assert!(!is_ejected(&set, 1), "{outcome}");
        fail(&set, 1, outcome, 1);
        assert!(is_ejected(&set, 1), "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_server_errors_reset_only_the_gateway_count() {
    let policy = ejecting(|o| {
        o.max_ejection_percent = Some(100);
        o.consecutive_5xx = Some(6);
        o.consecutive_gateway = Some(3);
    });
    let set = set(policy, many(3));
    fail(&set, 1, Outcome::Status(503), 2);
    fail(&set, 1, Outcome::Status(500), 1);
    fail(&set, 1, Outcome::Status(503), 2);
    assert!(!is_ejected(&set, 1));
    fail(&set, 1, Outcome::GrpcStatus(13), 1);
    // Six server errors in a row.
    assert!(is_ejected(&set, 1));
    let endpoints = set.status().endpoints;
    assert!(matches!(
        endpoints[1].state,
        EndpointState::Ejected {
            reason: EjectReason::Consecutive5xx,
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn cancelled_requests_and_silence_say_nothing() {
    let set = set(anything(), many(3));
    fail(&set, 1, Outcome::Status(500), 4);
    fail(&set, 1, Outcome::Cancelled, 100);
    drop(pick_at(&set, 1));
    assert!(!is_ejected(&set, 1));
    fail(&set, 1, Outcome::Status(500), 1);
    assert!(is_ejected(&set, 1));
}

#[tokio::test(start_paused = true)]
async fn only_the_first_report_of_a_pick_counts() {
    let set = set(anything(), many(3));
    let tcp = pick_at(&set, 1);
    tcp.report(Outcome::Connected);
    for _ in 0..20 {
        tcp.report(Outcome::Reset);
    }
    assert!(!is_ejected(&set, 1));
    let counters = set.endpoint_at(address(1)).unwrap();
    assert_eq!(counters.counters().failures.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn split_keeps_local_failures_apart() {
    let policy = ejecting(|o| {
        o.max_ejection_percent = Some(100);
        o.split_local = true;
        o.consecutive_local = Some(3);
        o.consecutive_5xx = Some(4);
        o.consecutive_gateway = Some(2);
    });
    let set = set(policy, many(3));
    // Local failures leave the gateway count alone, and answers clear theirs.
    fail(&set, 0, Outcome::Status(503), 1);
    fail(&set, 0, Outcome::ConnectRefused, 2);
    assert!(!is_ejected(&set, 0));
    fail(&set, 0, Outcome::Status(500), 1);
    fail(&set, 0, Outcome::ConnectRefused, 2);
    assert!(!is_ejected(&set, 0));
    fail(&set, 0, Outcome::ConnectTimeout, 1);
    assert!(is_ejected(&set, 0));
    assert_eq!(set.counters().ejections_local.load(Ordering::Relaxed), 1);
    // A good connect clears the local count.
    fail(&set, 1, Outcome::TlsFailed, 2);
    pick_at(&set, 1).report(Outcome::Connected);
    fail(&set, 1, Outcome::TlsFailed, 2);
    assert!(!is_ejected(&set, 1));
    // Without split, that limit means nothing.
    let unsplit = ejecting(|o| {
        o.consecutive_local = Some(1);
        o.consecutive_5xx = None;
        o.max_ejection_percent = Some(100);
    });
    let set = super::set(unsplit, many(2));
    fail(&set, 1, Outcome::ConnectRefused, 10);
    assert!(!is_ejected(&set, 1));
}

#[tokio::test(start_paused = true)]
async fn listed_codes_are_the_only_ones() {
    let policy = ejecting(|o| {
        o.max_ejection_percent = Some(100);
        o.http_error_codes = vec![429, 503];
        o.consecutive_5xx = Some(2);
    });
    let set = set(policy, many(3));
    fail(&set, 0, Outcome::Status(500), 20);
    assert!(!is_ejected(&set, 0));
    fail(&set, 0, Outcome::Status(429), 2);
    assert!(is_ejected(&set, 0));
}

#[tokio::test(start_paused = true)]
async fn readmission_happens_on_the_sweep_after_the_time() {
    let set = set(anything(), many(3));
    pass(3).await;
    fail(&set, 1, Outcome::Status(500), 5);
    // 3 s + 30 s = 33 s; the sweep after that is at 40 s.
    live(&set, 36).await;
    assert!(is_ejected(&set, 1));
    live(&set, 1).await;
    assert!(!is_ejected(&set, 1));
    assert_eq!(set.counters().readmissions.load(Ordering::Relaxed), 1);
    // The counters began anew.
    fail(&set, 1, Outcome::Status(500), 4);
    assert!(!is_ejected(&set, 1));
}

#[tokio::test(start_paused = true)]
async fn each_ejection_in_a_row_lasts_longer_and_healthy_time_forgives() {
    let set = set(anything(), many(3));
    let ejected_for = async || {
        fail(&set, 1, Outcome::Status(500), 5);
        assert!(is_ejected(&set, 1));
        let start = Instant::now();
        while is_ejected(&set, 1) {
            live(&set, 1).await;
        }
        start.elapsed().as_secs()
    };
    assert_eq!(ejected_for().await, 30);
    assert_eq!(ejected_for().await, 60);
    assert_eq!(ejected_for().await, 90);
    // Two healthy intervals: back to the second step, then on from there.
    live(&set, 20).await;
    assert_eq!(ejected_for().await, 60);
    live(&set, 200).await;
    assert_eq!(ejected_for().await, 30);
    for expected in [60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300] {
        assert_eq!(ejected_for().await, expected);
    }
}

#[test]
fn the_cap_on_ejection_time_is_five_minutes_or_the_base() {
    let mut policy = outlier();
    assert_eq!(ejection_time(&policy, 1).as_secs(), 30);
    assert_eq!(ejection_time(&policy, 11).as_secs(), 300);
    policy.base_ejection_time = Duration::from_secs(1000);
    assert_eq!(ejection_time(&policy, 1).as_secs(), 1000);
    assert_eq!(ejection_time(&policy, 2).as_secs(), 1000);
}

#[tokio::test(start_paused = true)]
async fn late_reports_of_an_earlier_period_do_not_count() {
    let policy = ejecting(|o| {
        o.max_ejection_percent = Some(100);
        o.consecutive_5xx = Some(2);
    });
    let set = set(policy, many(2));
    let slow: Vec<Picked> = (0..50).map(|_| pick_at(&set, 1)).collect();
    fail(&set, 1, Outcome::Status(500), 2);
    // Answers of before the ejection, while it lasts and after it.
    slow.iter()
        .take(25)
        .for_each(|p| p.report(Outcome::Timeout));
    live(&set, 31).await;
    assert!(!is_ejected(&set, 1));
    for late in &slow {
        late.report(Outcome::Timeout);
    }
    assert!(!is_ejected(&set, 1));
    assert_eq!(set.counters().late_reports.load(Ordering::Relaxed), 50);
    fail(&set, 1, Outcome::Timeout, 2);
    assert!(is_ejected(&set, 1));
}

#[test]
fn the_share_ejected_is_capped() {
    let mut policy = outlier();
    let mut allowed = |percent, all, ejected: &[usize]| {
        policy.max_ejection_percent = percent;
        may_be_ejected(&policy, all, ejected.iter().copied())
    };
    // As Envoy today: strictly.
    assert!(!allowed(Some(10), 3, &[1]));
    assert!(allowed(Some(10), 10, &[1]));
    assert!(!allowed(Some(10), 19, &[2]));
    assert!(allowed(Some(10), 20, &[2]));
    assert!(allowed(Some(50), 4, &[1, 1]));
    assert!(!allowed(Some(50), 3, &[1, 1]));
    assert!(!allowed(Some(99), 1, &[1]));
    assert!(allowed(Some(100), 1, &[1]));
    assert!(allowed(Some(100), 3, &[3]));
    // Unset: 10 %, and one of each locality.
    assert!(!allowed(None, 1, &[1]));
    assert!(allowed(None, 2, &[1]));
    assert!(!allowed(None, 2, &[2]));
    assert!(allowed(None, 3, &[1, 1, 1]));
    assert!(!allowed(None, 19, &[2]));
    assert!(allowed(None, 20, &[2]));
    assert!(allowed(None, 20, &[2, 1, 1]));
    assert!(!allowed(None, 20, &[2, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_single_endpoint_is_ejected_only_at_one_hundred() {
    for (percent, expected) in [(None, false), (Some(99), false), (Some(100), true)] {
        let set = set(ejecting(|o| o.max_ejection_percent = percent), many(1));
        fail(&set, 0, Outcome::ConnectRefused, 50);
        assert_eq!(is_ejected(&set, 0), expected, "{percent:?}");
        assert_eq!(pick(&set).is_err(), expected);
        let refused = set.counters().ejections_refused.load(Ordering::Relaxed);
        // Each time that the counter reaches its limit it restarts.
        assert_eq!(refused, if expected { 0 } else { 10 });
    }
}

#[tokio::test(start_paused = true)]
async fn three_regions_of_one_endpoint_each_fail_over() {
    let endpoints = vec![
        located(0, "us/a/1"),
        located(1, "eu/a/1"),
        located(2, "ap/a/1"),
    ];
    let mut policy = ejecting(|_| {});
    policy.load_balancer.locality.failover = vec![("us".into(), "eu".into())];
    let set = set_in_us(policy, endpoints);
    assert_shares(&set, &[(0, 1.0)]);
    fail(&set, 0, Outcome::ConnectRefused, 5);
    assert_shares(&set, &[(1, 1.0)]);
    fail(&set, 1, Outcome::ConnectRefused, 5);
    assert_shares(&set, &[(2, 1.0)]);
    live(&set, 45).await;
    assert_shares(&set, &[(0, 1.0)]);
}

#[tokio::test(start_paused = true)]
async fn fewer_endpoints_bring_the_longest_ejected_back() {
    let set = set(ejecting(|o| o.max_ejection_percent = Some(20)), many(10));
    fail(&set, 0, Outcome::ConnectRefused, 5);
    pass(1).await;
    fail(&set, 1, Outcome::ConnectRefused, 5);
    assert!(is_ejected(&set, 0) && is_ejected(&set, 1));
    set.update(many(5));
    assert!(!is_ejected(&set, 0));
    assert!(is_ejected(&set, 1));
    set.update(many(4));
    assert!(!is_ejected(&set, 1));
    assert_eq!(set.counters().ejected.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn without_the_policy_nothing_is_ejected() {
    let set = set(policy(), many(3));
    fail(&set, 0, Outcome::ConnectRefused, 100);
    assert!(!is_ejected(&set, 0));
    // A limit of zero is off.
    let off = ejecting(|o| {
        o.consecutive_5xx = None;
        o.max_ejection_percent = Some(100);
    });
    let set = super::set(off, many(3));
    fail(&set, 0, Outcome::ConnectRefused, 100);
    assert!(!is_ejected(&set, 0));
}

#[tokio::test(start_paused = true)]
async fn the_direct_path_reports_to_the_same_engine() {
    let set = set(anything(), many(3));
    let slots = set.slots(&client(&[]), 3);
    let slot = slots
        .endpoints
        .iter()
        .find(|s| s.address == address(2))
        .unwrap();
    for _ in 0..5 {
        set.report(&slot.endpoint, slot.generation, Outcome::ConnectTimeout);
    }
    assert!(is_ejected(&set, 2));
    // Events that were under way do not count against the next period.
    live(&set, 41).await;
    for _ in 0..50 {
        set.report(&slot.endpoint, slot.generation, Outcome::ConnectTimeout);
    }
    assert!(!is_ejected(&set, 2));
}

#[test]
fn concurrent_failures_eject_exactly_once() {
    let set = set(anything(), many(4));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    pick_at(&set, 1).report(Outcome::ConnectRefused);
                }
            });
        }
    });
    assert!(is_ejected(&set, 1));
    assert_eq!(set.counters().ejections_5xx.load(Ordering::Relaxed), 1);
}
