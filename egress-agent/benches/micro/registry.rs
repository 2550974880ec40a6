//! A registry of captured names, and queries for them.

use std::sync::Arc;

use egress_agent::dns::registry::{NewAddress, Publish, Published, Registry};
use egress_agent::dns::virtual_address::{Holding, VirtualAddresses};
use egress_agent::policy::snapshot::Snapshot;
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};

struct Nothing;

impl Publish for Nothing {
    fn publish(&self, _: NewAddress) -> Published<'_> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn withdraw(&self, _: &[Arc<Holding>]) {}
}

/// The names of a policy.
pub(crate) fn registry(snapshot: Arc<Snapshot>) -> Registry {
    let registry = Registry::new(Arc::new(VirtualAddresses::in_memory()), Nothing);
    let assignment = registry.prepare(&snapshot);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(registry.install(snapshot, &assignment));
    registry
}

/// As glibc and dnsperf send it.
pub(crate) fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().unwrap()
}
