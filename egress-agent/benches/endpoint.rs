//! What choosing an endpoint costs: `cargo bench -p egress-agent --bench
//! endpoint`. A pick among 1,000 endpoints, with the count of what is active
//! and the report of how it went, must stay under one microsecond.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::wildcard_imports,
    reason = "a benchmark"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use divan::{Bencher, black_box};
use egress_agent::endpoint::resolved::{Destination, ResolvedEndpoint};
use egress_agent::endpoint::{EndpointSet, Live, Options, Outcome, PickContext, hash_bytes};
use egress_agent::policy::model::{
    Algorithm, ConnectionPool, EndpointAddress, EndpointSpec, HashKey, HashTable, HostPattern,
    Labels, LoadBalancer, Locality, OutlierDetection, Protocol, Resolution, TrafficPolicy,
};
use egress_agent::policy::snapshot::{
    Client, Cluster, ClusterKey, ClusterTarget, ServiceId, ServiceKey,
};

#[global_allocator]
static ALLOC: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn set(algorithm: Algorithm, endpoints: Vec<ResolvedEndpoint>) -> Arc<EndpointSet> {
    let resolution = if algorithm == Algorithm::Passthrough {
        Resolution::None
    } else {
        Resolution::Dns
    };
    let host = HostPattern::Exact("api.example.com".into());
    let key = ClusterKey {
        service: ServiceKey {
            namespace: "default".into(),
            host: host.clone(),
            port: 443,
        },
        subset: Box::default(),
        rule: Box::default(),
    };
    let policy = TrafficPolicy {
        connection_pool: ConnectionPool::default(),
        load_balancer: LoadBalancer {
            algorithm,
            ..LoadBalancer::default()
        },
        outlier_detection: Some(OutlierDetection {
            consecutive_5xx: Some(5),
            consecutive_gateway: None,
            split_local: false,
            consecutive_local: Some(5),
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: None,
            min_health_percent: 0,
            http_error_codes: Vec::new(),
        }),
        tls: None,
        tunnel: None,
        proxy_protocol: None,
        retry_budget: None,
        health_check: None,
        credential: None,
    };
    let cluster = Cluster {
        index: 0,
        key,
        target: Arc::new(ClusterTarget {
            service: ServiceId(1),
            host,
            port: 443,
            target_port: 443,
            protocol: Protocol::Https,
            resolution,
            https_port: true,
        }),
        policy: Arc::new(policy),
        endpoints: [EndpointSpec {
            address: EndpointAddress::Name("api.example.com".into()),
            port: 443,
            weight: 1,
            locality: Locality::default(),
            labels: Labels::default(),
        }]
        .into(),
    };
    let options = Options {
        locality: Locality::parse("us/a"),
        ..Options::default()
    };
    let set = EndpointSet::new(Arc::new(cluster), &options);
    set.update(endpoints);
    set
}

fn endpoints(count: u32, weight: impl Fn(u32) -> u32) -> Vec<ResolvedEndpoint> {
    let localities = ["us/a", "us/b", "eu/a", "ap/a"];
    (0..count)
        .zip(localities.into_iter().cycle())
        .map(|(n, locality)| ResolvedEndpoint {
            destination: Destination::Tcp(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)),
                443,
            )),
            name: None,
            weight: weight(n),
            locality: Locality::parse(locality),
            labels: Labels::default(),
        })
        .collect()
}

fn equal(_: u32) -> u32 {
    1
}

fn unequal(n: u32) -> u32 {
    1 + n % 7
}

fn hashed(table: HashTable) -> Algorithm {
    Algorithm::Hash {
        key: HashKey::SourceIp,
        table,
    }
}

fn context(client: &Client, hash: Option<u64>) -> PickContext<'_> {
    PickContext {
        client,
        original: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 443),
        host: "api.example.com",
        hash,
        tried: &[],
        remote_localities: false,
    }
}

fn client() -> Client {
    Client {
        namespace: "default".into(),
        labels: Arc::default(),
    }
}

/// Pick, report, give back.
fn picking(bencher: Bencher<'_, '_>, algorithm: Algorithm, weight: fn(u32) -> u32, count: u32) {
    let hashes = matches!(algorithm, Algorithm::Hash { .. });
    let set = set(algorithm, endpoints(count, weight));
    let client = client();
    bencher.bench(|| {
        let hash = hashes.then(|| fastrand::u64(..));
        let picked = set.pick(black_box(&context(&client, hash))).unwrap();
        picked.report(Outcome::Status(200));
        picked
    });
}

mod pick {
    use super::*;

    #[divan::bench(args = [10, 1000], threads = [1, 2], sample_size = 1000)]
    fn least_request(bencher: Bencher<'_, '_>, count: u32) {
        picking(bencher, Algorithm::LeastRequest, equal, count);
    }

    #[divan::bench(args = [10, 1000], sample_size = 1000)]
    fn least_request_weighted(bencher: Bencher<'_, '_>, count: u32) {
        picking(bencher, Algorithm::LeastRequest, unequal, count);
    }

    #[divan::bench(args = [10, 1000], threads = [1, 2], sample_size = 1000)]
    fn round_robin(bencher: Bencher<'_, '_>, count: u32) {
        picking(bencher, Algorithm::RoundRobin, equal, count);
    }

    #[divan::bench(args = [10, 1000], sample_size = 1000)]
    fn round_robin_weighted(bencher: Bencher<'_, '_>, count: u32) {
        picking(bencher, Algorithm::RoundRobin, unequal, count);
    }

    #[divan::bench(args = [10, 1000], sample_size = 1000)]
    fn random(bencher: Bencher<'_, '_>, count: u32) {
        picking(bencher, Algorithm::Random, equal, count);
    }

    #[divan::bench(args = [10, 1000], sample_size = 1000)]
    fn ring_hash(bencher: Bencher<'_, '_>, count: u32) {
        picking(bencher, hashed(HashTable::Ring(1024)), equal, count);
    }

    #[divan::bench(args = [10, 1000], sample_size = 1000)]
    fn maglev(bencher: Bencher<'_, '_>, count: u32) {
        picking(bencher, hashed(HashTable::Maglev(65_537)), equal, count);
    }

    #[divan::bench]
    fn dialled(bencher: Bencher<'_, '_>) {
        picking(bencher, Algorithm::Passthrough, equal, 0);
    }
}

/// The same as a worker does it, beside other services: what is in force is
/// read, and in it the set of one cluster among many.
mod beside {
    use super::*;

    fn live(sets: usize) -> Arc<ArcSwap<Live>> {
        let one = set(Algorithm::LeastRequest, endpoints(1000, equal));
        let others = (1..sets).map(|_| set(Algorithm::LeastRequest, endpoints(3, equal)));
        Arc::new(ArcSwap::from_pointee(Live {
            sets: std::iter::once(one).chain(others).collect(),
            ..Live::default()
        }))
    }

    #[divan::bench(args = [1, 100, 10_000], sample_size = 1000)]
    fn other_services(bencher: Bencher<'_, '_>, sets: usize) {
        let live = live(sets);
        let client = client();
        bencher.bench(|| {
            let live = live.load();
            let picked = live.sets[0]
                .pick(black_box(&context(&client, None)))
                .unwrap();
            picked.report(Outcome::Status(200));
            picked
        });
    }
}

mod permit {
    use super::*;

    #[divan::bench(threads = [1, 2], sample_size = 1000)]
    fn request(bencher: Bencher<'_, '_>) {
        let set = set(Algorithm::LeastRequest, endpoints(10, equal));
        bencher.bench(|| set.request_permit().unwrap());
    }
}

/// What the control runtime pays for a change of a set of 1,000.
mod rebuild {
    use super::*;

    fn rebuilding(bencher: Bencher<'_, '_>, algorithm: Algorithm) {
        let set = set(algorithm, endpoints(1000, equal));
        let mut count = 1000;
        bencher
            .with_inputs(|| {
                count = 1999 - count;
                endpoints(count, equal)
            })
            .bench_local_values(|list| set.update(list));
    }

    #[divan::bench]
    fn least_request(bencher: Bencher<'_, '_>) {
        rebuilding(bencher, Algorithm::LeastRequest);
    }

    #[divan::bench(sample_count = 10)]
    fn ring_hash(bencher: Bencher<'_, '_>) {
        rebuilding(bencher, hashed(HashTable::Ring(1024)));
    }

    #[divan::bench(sample_count = 10)]
    fn maglev(bencher: Bencher<'_, '_>) {
        rebuilding(bencher, hashed(HashTable::Maglev(65_537)));
    }

    #[divan::bench]
    fn slots(bencher: Bencher<'_, '_>) {
        let set = set(Algorithm::LeastRequest, endpoints(100, unequal));
        let client = client();
        bencher.bench(|| set.slots(&client, 128));
    }
}

mod key {
    use super::*;

    #[divan::bench]
    fn header() -> u64 {
        hash_bytes(black_box(b"3f1c9f60-5f0a-4a9e-9a43-5d2d2c1e1f77"))
    }
}
