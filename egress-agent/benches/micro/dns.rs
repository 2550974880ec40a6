//! The answer to a captured DNS query.

use divan::black_box;
use egress_agent::dns::answer::{Context, Transport, quick};
use hickory_proto::rr::RecordType;

use crate::bodies::{Step, services_text, snapshot};
use crate::registry::{query, registry};

/// From the bytes of a query to those of its answer.
pub(crate) fn answer() -> Step {
    let registry = registry(snapshot(&services_text(1000)));
    let query = query("api-471.example.com.", RecordType::A);
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
