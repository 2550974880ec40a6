//! Reading and compiling ten thousand ServiceEntries with DestinationRules.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::fmt::Write;

use divan::{AllocProfiler, Bencher};
use egress_agent::policy::Options;
use egress_agent::policy::compile::{Ids, compile};
use egress_agent::policy::load::{Loaded, load_text};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const COUNT: usize = 10_000;

fn text(count: usize) -> String {
    let mut out = String::new();
    for n in 0..count {
        let _ = write!(
            out,
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: service-{n}
  namespace: production
spec:
  hosts:
  - api-{n}.example.com
  location: MESH_EXTERNAL
  ports:
  - number: 443
    name: https
    protocol: HTTPS
  - number: 80
    name: http
    protocol: HTTP
    targetPort: 443
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: rule-{n}
  namespace: production
spec:
  host: api-{n}.example.com
  trafficPolicy:
    connectionPool:
      tcp: {{maxConnections: 100, connectTimeout: 5s}}
      http: {{maxRequestsPerConnection: 100}}
    outlierDetection: {{consecutive5xxErrors: 5, interval: 30s, baseEjectionTime: 60s}}
    portLevelSettings:
    - port: {{number: 80}}
      tls: {{mode: SIMPLE, sni: api-{n}.example.com}}
"
        );
    }
    out
}

fn load(text: &str) -> Loaded {
    let loaded = load_text("bench.yaml", text, &Options::default());
    assert!(loaded.is_valid());
    loaded
}

#[divan::bench(sample_count = 10)]
fn read(bencher: Bencher) {
    let text = text(COUNT);
    bencher.bench_local(|| load(&text));
}

#[divan::bench(sample_count = 10)]
fn compile_all(bencher: Bencher) {
    let loaded = load(&text(COUNT));
    let options = Options::default();
    bencher.bench_local(|| compile(&mut Ids::default(), &loaded.documents, &options));
}

#[divan::bench(sample_count = 10)]
fn read_and_compile(bencher: Bencher) {
    let text = text(COUNT);
    let options = Options::default();
    bencher.bench_local(|| {
        let loaded = load(&text);
        compile(&mut Ids::default(), &loaded.documents, &options)
    });
}

fn main() {
    divan::main();
}
