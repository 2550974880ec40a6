//! Documents that want the same traffic.

use std::collections::HashMap;
use std::sync::Arc;

use super::across::Across;
use super::services::Shell;
use super::virtual_services::VirtualServices;
use crate::policy::document::Document;
use crate::policy::model::{HostPattern, Protocol, Resolution, Visibility};

impl Across<'_, '_> {
    /// Several services that take every address on one port: the oldest gets
    /// the traffic.
    pub(super) fn ports_without_address(&mut self) {
        let mut first: HashMap<(u16, &str), &Shell<'_>> = HashMap::new();
        for shell in self.shells {
            let opaque = !shell.target.protocol.client_speaks_first();
            let anywhere =
                shell.target.resolution == Resolution::None && shell.addresses.is_empty();
            if !anywhere || !opaque || shell.target.protocol == Protocol::Udp {
                continue;
            }
            let key = (shell.key.port, &*shell.key.namespace);
            match first.get(&key) {
                Some(other) if !Arc::ptr_eq(other.document, shell.document) => {
                    let message = format!(
                        "{} already takes every address on port {}, so nothing reaches {}",
                        other.document.id, shell.key.port, shell.key.host
                    );
                    self.problems
                        .warn("port-claimed", shell.document, shell.span, message)
                        .help("add `addresses` to tell them apart")
                        .related(&other.document.source, other.span, "this one is older");
                }
                Some(_) => {}
                None => {
                    first.insert(key, shell);
                }
            }
        }
    }

    /// One host and port registered by several namespaces, visibly to others.
    pub(super) fn claimed_elsewhere(&mut self) {
        // One place is warned of once: in an order that does not change.
        let mut lists: Vec<_> = self.by_host.values().collect();
        lists.sort_by_key(|list| list.first().map(|shell| &shell.key));
        for list in lists {
            for (index, shell) in list.iter().enumerate() {
                let other = list.get(..index).into_iter().flatten().find(|other| {
                    other.key.port == shell.key.port
                        && other.key.namespace != shell.key.namespace
                        && shell.visibility == Visibility::All
                        && other.visibility == Visibility::All
                });
                if let Some(other) = other {
                    let message = format!(
                        "{}:{} is registered by {} too; clients of other namespaces get that one",
                        shell.key.host, shell.key.port, other.document.id
                    );
                    self.problems
                        .warn("host-claimed", shell.document, shell.span, message)
                        .help("narrow `exportTo` of one of them")
                        .related(&other.document.source, other.span, "registered here");
                }
            }
        }
    }

    /// A VirtualService whose host another one has already.
    pub(super) fn shadowed(&mut self, virtuals: &VirtualServices<'_>) {
        let mut seen: HashMap<(&HostPattern, String), &Arc<Document>> = HashMap::new();
        for service in &virtuals.list {
            for (host, span) in &service.hosts {
                let key = (host, format!("{:?}", service.visibility));
                if let Some(first) = seen.get(&key) {
                    let message = format!(
                        "{} has the host {host} as well and is older, so these routes never act for it",
                        first.id
                    );
                    self.problems
                        .warn("host-shadowed", service.document, *span, message)
                        .help("put the routes into one VirtualService");
                } else {
                    seen.insert(key, service.document);
                }
            }
        }
    }
}
