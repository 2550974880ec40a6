use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::policy::model::RetryBudget;

fn limited(change: impl FnOnce(&mut ConnectionPool)) -> TrafficPolicy {
    with(|p| change(&mut p.connection_pool))
}

#[test]
fn a_limit_is_never_exceeded_by_threads_and_never_leaks() {
    const LIMIT: u32 = 5;
    let set = set(limited(|c| c.max_connections = LIMIT), many(1));
    let held = AtomicU32::new(0);
    let granted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    if let Ok(permit) = set.connection_permit() {
                        let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                        assert!(now <= LIMIT, "{now} hold a place");
                        granted.fetch_add(1, Ordering::Relaxed);
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                }
            });
        }
    });
    assert!(granted.load(Ordering::Relaxed) > LIMIT);
    let status = set.status();
    assert_eq!(status.limits[0].current, 0);
    let refused = u64::from(64 * 2000 - granted.load(Ordering::Relaxed));
    assert_eq!(status.limits[0].overflows, refused);
    // All places are there again.
    let all: Vec<Permit> = (0..LIMIT)
        .map(|_| set.connection_permit().unwrap())
        .collect();
    let overflow = set.connection_permit().unwrap_err();
    assert_eq!(overflow.limit, LIMIT);
    assert_eq!(overflow.flag().code(), "UO");
    drop(all);
}

#[test]
fn an_endpoint_without_a_connection_gets_exactly_one_beyond_the_limit() {
    let set = set(limited(|c| c.max_connections = 1), many(2));
    let _first = set.connection_permit().unwrap();
    let other = set.endpoint_at(address(1)).unwrap();
    let granted = AtomicU32::new(0);
    let kept = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                if let Ok(connection) = set.connection_permit_for(&other) {
                    granted.fetch_add(1, Ordering::Relaxed);
                    kept.lock().unwrap().push(connection);
                }
            });
        }
    });
    assert_eq!(granted.load(Ordering::Relaxed), 1);
    assert_eq!(other.active_connections(), 1);
    kept.lock().unwrap().clear();
    assert_eq!(other.active_connections(), 0);
    assert_eq!(set.status().limits[0].current, 1);
}

type Take = fn(&EndpointSet) -> Result<Permit, Overflow>;

#[tokio::test(start_paused = true)]
async fn the_four_limits_are_apart() {
    let set = set(
        limited(|c| {
            c.max_connections = 1;
            c.max_requests = 2;
            c.max_pending_requests = 3;
            c.max_retries = 4;
        }),
        many(1),
    );
    let takes: [(Take, usize, LimitKind); 4] = [
        (EndpointSet::connection_permit, 1, LimitKind::Connections),
        (EndpointSet::request_permit, 2, LimitKind::Requests),
        (EndpointSet::pending_permit, 3, LimitKind::Pending),
        (EndpointSet::retry_permit, 4, LimitKind::Retries),
    ];
    let mut held = Vec::new();
    for (take, limit, kind) in takes {
        for _ in 0..limit {
            held.push(take(&set).unwrap());
        }
        assert_eq!(take(&set).unwrap_err().kind, kind);
    }
    drop(held);
    assert!(set.status().limits.iter().all(|limit| limit.current == 0));
}

fn budget(percent: f64, min: u32, interval: u64) -> TrafficPolicy {
    with(|p| {
        p.retry_budget = Some(RetryBudget {
            percent,
            min_retry_concurrency: min,
            interval: Duration::from_secs(interval),
        });
        // The budget takes its place.
        p.connection_pool.max_retries = 1;
    })
}

fn retries(set: &EndpointSet) -> usize {
    let held: Vec<Permit> = std::iter::from_fn(|| set.retry_permit().ok()).collect();
    held.len()
}

#[tokio::test(start_paused = true)]
async fn a_retry_budget_is_a_share_of_what_is_in_flight() {
    let set = set(budget(20.0, 3, 0), many(1));
    assert_eq!(retries(&set), 3);
    let mut held: Vec<Permit> = (0..25).map(|_| set.request_permit().unwrap()).collect();
    assert_eq!(retries(&set), 5);
    held.extend((0..14).map(|_| set.pending_permit().unwrap()));
    assert_eq!(retries(&set), 7);
    drop(held);
    assert_eq!(retries(&set), 3);
}

#[tokio::test(start_paused = true)]
async fn a_budget_interval_counts_the_requests_within_it() {
    let set = set(budget(50.0, 1, 10), many(1));
    for _ in 0..100 {
        drop(set.request_permit().unwrap());
    }
    assert_eq!(retries(&set), 50);
    pass(5).await;
    for _ in 0..40 {
        drop(set.request_permit().unwrap());
    }
    assert_eq!(retries(&set), 70);
    pass(6).await;
    assert_eq!(retries(&set), 20);
    pass(10).await;
    assert_eq!(retries(&set), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_lets_what_runs_run() {
    let mut registry = Registry::new(Options::default());
    let limit = |n| {
        let limited = limited(|c| c.max_connections = n);
        snapshot(vec![cluster(Resolution::Static, Vec::new(), limited)])
    };
    let set = Arc::clone(&registry.apply(limit(10)).sets[0]);
    let mut held: Vec<Permit> = (0..8).map(|_| set.connection_permit().unwrap()).collect();
    let same = Arc::clone(&registry.apply(limit(5)).sets[0]);
    assert!(Arc::ptr_eq(&set, &same));
    for _ in 0..4 {
        assert!(set.connection_permit().is_err());
        held.pop();
    }
    assert!(set.connection_permit().is_ok());
}

fn snapshot(clusters: Vec<Arc<Cluster>>) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        clusters,
        ..Snapshot::default()
    })
}

proptest! {
    #[test]
    fn taking_and_giving_back_in_any_order_balances(
        limit in 1_u32..8,
        steps in prop::collection::vec(any::<(bool, u8)>(), 0..200),
    ) {
        let set = set(limited(|c| c.max_requests = limit), many(1));
        let mut held: Vec<Permit> = Vec::new();
        for (take, which) in steps {
            if take {
                if let Ok(permit) = set.request_permit() {
                    held.push(permit);
                } else {
                    prop_assert_eq!(held.len(), limit as usize);
                }
            } else if !held.is_empty() {
                let which = usize::from(which) % held.len();
                drop(held.swap_remove(which));
            }
            prop_assert!(held.len() <= limit as usize);
            prop_assert_eq!(set.status().limits[1].current, held.len() as u32);
        }
    }
}
