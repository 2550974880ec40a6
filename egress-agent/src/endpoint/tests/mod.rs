//! Tests of the engine as a whole, on a paused clock; the helpers they share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "tests"
)]

mod balance;
mod changes;
mod dialled;
mod hashing;
mod health;
mod limits;
mod localities;
mod outliers;
mod outside;
mod simulation;
mod updates;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::*;
use crate::endpoint::resolved::{Destination, ResolvedEndpoint};
use crate::policy::model::{
    Algorithm, ConnectionPool, EndpointAddress, EndpointSpec, HostPattern, Labels, LoadBalancer,
    Locality, OutlierDetection, Protocol, Resolution, TrafficPolicy,
};
use crate::policy::snapshot::{
    Client, Cluster, ClusterKey, ClusterTarget, ServiceId, ServiceKey, Snapshot,
};

/// `trafficPolicy` with nothing written.
fn policy() -> TrafficPolicy {
    TrafficPolicy {
        connection_pool: ConnectionPool::default(),
        load_balancer: LoadBalancer::default(),
        outlier_detection: None,
        tls: None,
        tunnel: None,
        proxy_protocol: None,
        retry_budget: None,
        health_check: None,
        credential: None,
    }
}

fn with(change: impl FnOnce(&mut TrafficPolicy)) -> TrafficPolicy {
    let mut policy = policy();
    change(&mut policy);
    policy
}

fn balanced(algorithm: Algorithm) -> TrafficPolicy {
    with(|p| p.load_balancer.algorithm = algorithm)
}

/// `outlierDetection: {}` as the compiler fills it in.
fn outlier() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(5),
        consecutive_gateway: None,
        split_local: false,
        consecutive_local: Some(5),
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: None,
        min_health_percent: 0,
        http_error_codes: Vec::new(),
    }
}

fn ejecting(change: impl FnOnce(&mut OutlierDetection)) -> TrafficPolicy {
    let mut detection = outlier();
    change(&mut detection);
    with(|p| p.outlier_detection = Some(detection))
}

fn key(host: &str) -> ClusterKey {
    ClusterKey {
        service: ServiceKey {
            namespace: "default".into(),
            host: HostPattern::Exact(host.into()),
            port: 443,
        },
        subset: Box::default(),
        rule: Box::default(),
    }
}

fn cluster(
    resolution: Resolution,
    endpoints: Vec<EndpointSpec>,
    policy: TrafficPolicy,
) -> Arc<Cluster> {
    let key = key("db.example.com");
    Arc::new(Cluster {
        index: 0,
        target: Arc::new(ClusterTarget {
            service: ServiceId(1),
            host: key.service.host.clone(),
            port: 443,
            target_port: 8443,
            protocol: Protocol::Tcp,
            resolution,
            https_port: false,
        }),
        key,
        policy: Arc::new(policy),
        endpoints: endpoints.into(),
    })
}

fn set_of(resolution: Resolution, policy: TrafficPolicy) -> Arc<EndpointSet> {
    let spec = EndpointSpec {
        address: EndpointAddress::Name("db.example.com".into()),
        port: 443,
        weight: 1,
        locality: Locality::default(),
        labels: Labels::default(),
    };
    EndpointSet::new(cluster(resolution, vec![spec], policy), &Options::default())
}

/// A DNS set with these endpoints.
fn set(policy: TrafficPolicy, endpoints: Vec<ResolvedEndpoint>) -> Arc<EndpointSet> {
    let set = set_of(Resolution::Dns, policy);
    set.update(endpoints);
    set
}

/// A DNS set of a node in `us/a/1`.
fn set_in_us(policy: TrafficPolicy, endpoints: Vec<ResolvedEndpoint>) -> Arc<EndpointSet> {
    let options = Options {
        locality: Locality::parse("us/a/1"),
        ..Options::default()
    };
    let set = EndpointSet::new(cluster(Resolution::Dns, Vec::new(), policy), &options);
    set.update(endpoints);
    set
}

fn address(n: usize) -> SocketAddr {
    let [_, _, high, low] = u32::try_from(n).unwrap().to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high, low)), 443)
}

/// 10.0.x.x with weight 1.
fn at(n: usize) -> ResolvedEndpoint {
    ResolvedEndpoint {
        destination: Destination::Tcp(address(n)),
        name: None,
        weight: 1,
        locality: Locality::default(),
        labels: Labels::default(),
    }
}

fn weighing(n: usize, weight: u32) -> ResolvedEndpoint {
    ResolvedEndpoint { weight, ..at(n) }
}

fn located(n: usize, locality: &str) -> ResolvedEndpoint {
    ResolvedEndpoint {
        locality: Locality::parse(locality),
        ..at(n)
    }
}

fn many(count: usize) -> Vec<ResolvedEndpoint> {
    (0..count).map(at).collect()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs.map(|(k, v)| (Box::from(*k), Box::from(*v))).collect()
}

fn client(pairs: &[(&str, &str)]) -> Client {
    Client {
        namespace: "default".into(),
        labels: Arc::new(labels(pairs)),
    }
}

/// One pick; `change` alters the context.
fn pick_with<'a>(
    set: &Arc<EndpointSet>,
    change: impl FnOnce(&mut PickContext<'a>),
) -> Result<Picked, PickError> {
    static CLIENT: LazyLock<Client> = LazyLock::new(|| client(&[]));
    let mut context = PickContext {
        client: &CLIENT,
        original: "192.0.2.1:443".parse().unwrap(),
        host: "db.example.com",
        hash: None,
        tried: &[],
        remote_localities: false,
    };
    change(&mut context);
    set.pick(&context)
}

fn pick(set: &Arc<EndpointSet>) -> Result<Picked, PickError> {
    pick_with(set, |_| {})
}

/// Which of `address(n)` was picked.
fn number(picked: &Picked) -> usize {
    number_of(&picked.endpoint)
}

fn number_of(endpoint: &Endpoint) -> usize {
    match endpoint.destination {
        Destination::Tcp(SocketAddr::V4(v4)) => {
            let [_, _, high, low] = v4.ip().octets();
            usize::from(high) * 256 + usize::from(low)
        }
        _ => panic!("not one of ours"),
    }
}

/// Share of each endpoint over many picks.
fn shares(set: &Arc<EndpointSet>, picks: usize) -> HashMap<usize, f64> {
    let mut counts: HashMap<usize, usize> = HashMap::new();
    for _ in 0..picks {
        *counts.entry(number(&pick(set).unwrap())).or_default() += 1;
    }
    let share = |(n, count)| (n, count as f64 / picks as f64);
    counts.into_iter().map(share).collect()
}

/// Asserts shares to within two per cent of the whole.
fn assert_shares(set: &Arc<EndpointSet>, expected: &[(usize, f64)]) {
    let shares = shares(set, 100_000);
    for (n, share) in &shares {
        let wanted = expected.iter().find(|(m, _)| m == n).map_or(0.0, |e| e.1);
        assert!((share - wanted).abs() < 0.02, "{n}: {share}, not {wanted}");
    }
    let sum: f64 = expected.iter().map(|e| e.1).sum();
    assert!((sum - 1.0).abs() < 0.011, "expected shares sum to {sum}");
}

/// Lets endpoint `n` fail `times` times in a row.
fn fail(set: &Arc<EndpointSet>, n: usize, outcome: Outcome, times: usize) {
    for _ in 0..times {
        pick_at(set, n).report(outcome);
    }
}

/// A pick of one endpoint in particular.
fn pick_at(set: &Arc<EndpointSet>, n: usize) -> Picked {
    let endpoint = set.endpoint_at(address(n)).unwrap();
    Picked::new(&set.pool, endpoint)
}

fn is_ejected(set: &Arc<EndpointSet>, n: usize) -> bool {
    !set.endpoint_at(address(n)).unwrap().is_available()
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

/// Moves the clock on second by second, sweeping when it is due.
async fn live(set: &Arc<EndpointSet>, seconds: u64) {
    for _ in 0..seconds {
        pass(1).await;
        set.sweep(tokio::time::Instant::now());
    }
}
