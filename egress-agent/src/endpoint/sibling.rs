//! The other address family of a name, for dialling both (RFC 8305).

use std::sync::Arc;

use super::host::{Endpoint, EndpointId};
use super::picked::{PickContext, Picked};
use super::resolved::Destination;
use super::set::EndpointSet;

/// Picks made to find one.
const PICKS: usize = 8;

impl Endpoint {
    /// Whether both are addresses of one name, one of each family.
    pub fn is_sibling_of(&self, other: &Self) -> bool {
        let (Destination::Tcp(a), Destination::Tcp(b)) = (&self.destination, &other.destination)
        else {
            return false;
        };
        self.name.is_some() && self.name == other.name && a.is_ipv4() != b.is_ipv4()
    }
}

impl EndpointSet {
    /// A pick among the addresses of the other family of `endpoint`'s name.
    pub fn pick_sibling(
        self: &Arc<Self>,
        context: &PickContext<'_>,
        endpoint: &Endpoint,
    ) -> Option<Picked> {
        endpoint.name.as_ref()?;
        let mut tried: Vec<EndpointId> = context.tried.to_vec();
        tried.push(endpoint.id);
        for _ in 0..PICKS {
            let context = PickContext {
                tried: &tried,
                ..*context
            };
            let picked = self.pick(&context).ok()?;
            if tried.contains(&picked.endpoint.id) {
                return None;
            }
            if picked.endpoint.is_sibling_of(endpoint) {
                return Some(picked);
            }
            tried.push(picked.endpoint.id);
        }
        None
    }
}
