//! The answer to a captured DNS query.

use std::sync::Arc;

use divan::black_box;
use egress_agent::dns::answer::{Context, Transport, quick};
use egress_agent::dns::registry::{NewAddress, Publish, Published, Registry};
use egress_agent::dns::virtual_address::{Holding, VirtualAddresses};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};

use crate::bodies::{Step, services_text, snapshot};

struct Nothing;

impl Publish for Nothing {
    fn publish(&self, _: NewAddress) -> Published<'_> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn withdraw(&self, _: &[Arc<Holding>]) {}
}

/// From the bytes of a query, as glibc sends it, to those of its answer.
pub(crate) fn answer() -> Step {
    let snapshot = snapshot(&services_text(1000));
    let registry = Registry::new(Arc::new(VirtualAddresses::in_memory()), Nothing);
    let assignment = registry.prepare(&snapshot);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(registry.install(snapshot, &assignment));
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii("api-471.example.com.").unwrap();
    message.add_query(Query::query(name, RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    let query = message.to_vec().unwrap();
    let mut out = Vec::with_capacity(4096);
    let context = Context {
        transport: Transport::Udp,
        ipv6: true,
    };
    Box::new(move || {
        out.clear();
        let view = registry.view("production");
        assert!(quick(black_box(&query), &view, context, &mut out));
    })
}
