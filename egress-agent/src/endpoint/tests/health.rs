use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{Instant, sleep};

use super::*;
use crate::policy::model::{HealthCheck, Probe};

pub(super) fn check() -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp,
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(2),
        unhealthy_threshold: 3,
        healthy_threshold: 2,
    }
}

fn checked() -> TrafficPolicy {
    with(|p| p.health_check = Some(check()))
}

/// Answers as told, and notes what it was asked.
#[derive(Default)]
struct Scripted {
    failing: Mutex<HashSet<usize>>,
    hanging: Mutex<HashSet<usize>>,
    asked: Mutex<Vec<(usize, Instant)>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    takes: Duration,
}

impl Prober for Scripted {
    fn probe(&self, target: ProbeTarget) -> ProbeFuture {
        let n = number_of(&target.endpoint);
        self.asked.lock().unwrap().push((n, Instant::now()));
        let failing = self.failing.lock().unwrap().contains(&n);
        let hanging = self.hanging.lock().unwrap().contains(&n);
        let (running, most, takes) = (
            Arc::clone(&self.running),
            Arc::clone(&self.most),
            self.takes,
        );
        Box::pin(async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if hanging {
                sleep(Duration::from_hours(1)).await;
            }
            sleep(takes).await;
            running.fetch_sub(1, Ordering::SeqCst);
            if failing {
                Err(ProbeFailure::Status(500))
            } else {
                Ok(())
            }
        })
    }
}

struct Run {
    registry: Registry,
    set: Arc<EndpointSet>,
    prober: Arc<Scripted>,
}

fn run(prober: Scripted, endpoints: usize, limit: usize) -> Run {
    let mut registry = Registry::new(Options::default());
    let prober = Arc::new(prober);
    tokio::spawn(registry.run_health_checks(Arc::clone(&prober) as Arc<dyn Prober>, limit));
    let first = cluster(Resolution::Dns, Vec::new(), checked());
    let snapshot = Arc::new(Snapshot {
        clusters: vec![first],
        ..Snapshot::default()
    });
    let set = Arc::clone(&registry.apply(snapshot).sets[0]);
    set.update(many(endpoints));
    Run {
        registry,
        set,
        prober,
    }
}

#[tokio::test(start_paused = true)]
async fn thresholds_take_out_and_bring_back() {
    let run = run(Scripted::default(), 2, 8);
    sleep(Duration::from_mins(1)).await;
    assert!(!is_ejected(&run.set, 1));
    run.prober.failing.lock().unwrap().insert(1);
    let checks = || {
        let asked = run.prober.asked.lock().unwrap();
        asked.iter().filter(|(n, _)| *n == 1).count()
    };
    let before = checks();
    while !is_ejected(&run.set, 1) {
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(checks() - before, 3);
    assert_shares(&run.set, &[(0, 1.0)]);
    let status = run.set.status();
    assert_eq!(
        status.endpoints[1].state,
        EndpointState::Unhealthy {
            reason: "status 500".into()
        }
    );
    run.prober.failing.lock().unwrap().clear();
    let before = checks();
    while is_ejected(&run.set, 1) {
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(checks() - before, 2);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_fails_at_its_deadline() {
    let run = run(Scripted::default(), 2, 8);
    run.prober.hanging.lock().unwrap().insert(0);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(
        run.set.status().endpoints[0].state,
        EndpointState::Unhealthy {
            reason: "timeout".into()
        }
    );
}

#[tokio::test(start_paused = true)]
async fn checks_are_spread_and_never_too_many_at_once() {
    let prober = Scripted {
        takes: Duration::from_millis(500),
        ..Scripted::default()
    };
    let run = run(prober, 100, 7);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(run.prober.most.load(Ordering::SeqCst), 7);
    let asked = run.prober.asked.lock().unwrap();
    // About ten each, none at the same moment of all.
    for n in 0..100 {
        let count = asked.iter().filter(|(m, _)| *m == n).count();
        assert!((7..=12).contains(&count), "{n}: {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn first_checks_are_spread_over_the_interval() {
    let run = run(Scripted::default(), 100, 1000);
    let start = Instant::now();
    sleep(Duration::from_secs(10)).await;
    let asked = run.prober.asked.lock().unwrap();
    let early = asked
        .iter()
        .filter(|(_, at)| *at - start < Duration::from_secs(5));
    let early = early.count();
    assert!((25..=75).contains(&early), "{early} in the first half");
    let distinct: HashSet<usize> = asked.iter().map(|(n, _)| *n).collect();
    assert!(distinct.len() >= 99);
}

#[tokio::test(start_paused = true)]
async fn checks_follow_endpoints_and_policy() {
    let mut run = run(Scripted::default(), 3, 8);
    run.prober.failing.lock().unwrap().insert(0);
    sleep(Duration::from_mins(1)).await;
    assert!(is_ejected(&run.set, 0));
    // An endpoint that vanished is not checked any more.
    run.set.update(vec![at(0), at(1)]);
    sleep(Duration::from_secs(15)).await;
    run.prober.asked.lock().unwrap().clear();
    sleep(Duration::from_mins(1)).await;
    assert!(run.prober.asked.lock().unwrap().iter().all(|(n, _)| *n < 2));
    // Without the policy all are well, and nothing is checked.
    let without = cluster(Resolution::Dns, Vec::new(), policy());
    run.registry.apply(Arc::new(Snapshot {
        clusters: vec![without],
        ..Snapshot::default()
    }));
    assert!(!is_ejected(&run.set, 0));
    sleep(Duration::from_secs(15)).await;
    run.prober.asked.lock().unwrap().clear();
    sleep(Duration::from_mins(1)).await;
    assert!(run.prober.asked.lock().unwrap().is_empty());
}
