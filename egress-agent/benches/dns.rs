//! What a captured DNS query costs beside the system calls, in a policy of
//! 10,000 hosts: `cargo bench -p egress-agent --bench dns`.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::fmt::Write;
use std::sync::Arc;

use divan::{AllocProfiler, Bencher, black_box};
use egress_agent::dns::answer::{Context, Transport, Verdict, answer, quick};
use egress_agent::dns::registry::Registry;
use egress_agent::policy::Options;
use egress_agent::policy::compile::{Ids, compile};
use egress_agent::policy::load::load_text;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const HOSTS: usize = 10_000;
const UDP: Context = Context {
    transport: Transport::Udp,
    ipv6: true,
};

#[path = "micro/registry.rs"]
mod registry;

use registry::{query, registry};

fn main() {
    divan::main();
}

fn many() -> Registry {
    let mut text = String::new();
    for n in 0..HOSTS {
        let _ = write!(
            text,
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: service-{n}, namespace: production}}
spec:
  hosts: [api-{n}.example.com]
  ports:
  - {{number: 443, name: https, protocol: HTTPS}}
  - {{number: 80, name: http, protocol: HTTP}}
  resolution: DNS
"
        );
    }
    let options = Options::default();
    let loaded = load_text("bench.yaml", &text, &options);
    let (snapshot, _) = compile(&mut Ids::default(), &loaded.documents, &options);
    registry(Arc::new(snapshot))
}

/// A captured answer, from bytes to bytes.
#[divan::bench(args = ["A", "AAAA", "HTTPS"], sample_size = 1000)]
fn dns_answer(bencher: Bencher, kind: &str) {
    let registry = many();
    let message = query("api-4711.example.com.", kind.parse().unwrap());
    let mut out = Vec::with_capacity(4096);
    bencher.bench_local(|| {
        out.clear();
        let view = registry.view("production");
        assert!(quick(black_box(&message), &view, UDP, &mut out));
    });
}

/// The same for what is unusual.
#[divan::bench(sample_size = 100)]
fn dns_answer_long_way(bencher: Bencher) {
    let registry = many();
    let message = query("api-4711.example.com.", RecordType::A);
    bencher.bench_local(|| {
        let view = registry.view("production");
        let verdict = answer(black_box(&message), &view, UDP);
        assert!(matches!(verdict, Verdict::Answer(_)));
        verdict
    });
}

/// What decides that a query goes to the resolver that was asked.
#[divan::bench(sample_size = 100)]
fn unregistered(bencher: Bencher) {
    let registry = many();
    let message = query("www.example.org.", RecordType::A);
    let mut out = Vec::with_capacity(4096);
    bencher.bench_local(|| {
        let view = registry.view("production");
        assert!(!quick(black_box(&message), &view, UDP, &mut out));
        answer(black_box(&message), &view, UDP)
    });
}

/// What is remembered of a resolver's answer.
#[divan::bench(sample_size = 100)]
fn learn(bencher: Bencher) {
    let registry = many();
    let name = Name::from_ascii("www.example.org.").unwrap();
    let mut message = Message::query();
    message.add_query(Query::query(name.clone(), RecordType::A));
    message.metadata.message_type = hickory_proto::op::MessageType::Response;
    for last in 1..4 {
        let data = RData::A(A::new(192, 0, 2, last));
        message.add_answer(Record::from_rdata(name.clone(), 60, data));
    }
    let reply = message.to_vec().unwrap();
    bencher.bench_local(|| registry.seen().learn(black_box(&reply)));
}
