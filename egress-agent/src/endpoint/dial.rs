//! Endpoints that come and go with what clients dial (resolution NONE and
//! PASSTHROUGH): kept by address, so that limits are seen and ejection works.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::error::PickError;
use super::host::Endpoint;
use super::pool::{Inner, Kind, Member, Pool};
use super::resolved::{Destination, ResolvedEndpoint};
use crate::policy::model::{Labels, Locality};

/// Addresses kept for one cluster. One more takes the place of the address
/// that was not used for the longest time.
const LIMIT: usize = 4096;
/// An address that was not used for this long is forgotten.
const IDLE: Duration = Duration::from_mins(10);

impl Pool {
    /// The endpoint for an address that was dialled.
    pub(super) fn dial(
        &self,
        address: SocketAddr,
        now: Instant,
    ) -> Result<Arc<Endpoint>, PickError> {
        let Kind::Dialled(dialled) = &self.kind else {
            return Err(PickError::Empty);
        };
        let endpoint = match dialled.index.get(&address) {
            Some(known) => known,
            None => self.add_dialled(address, now),
        };
        let second = self.shared.age(now).as_secs();
        if endpoint.state.used.load(Ordering::Relaxed) != second {
            endpoint.state.used.store(second, Ordering::Relaxed);
        }
        if endpoint.is_available() || dialled.panic.load(Ordering::Acquire) {
            Ok(endpoint)
        } else {
            Err(PickError::NoHealthy)
        }
    }

    fn add_dialled(&self, address: SocketAddr, now: Instant) -> Arc<Endpoint> {
        let mut inner = self.lock();
        let Kind::Dialled(dialled) = &self.kind else {
            return untracked(address);
        };
        if let Some(known) = dialled.index.get(&address) {
            return known;
        }
        if inner.members.len() >= LIMIT && !self.forget_oldest(&mut inner) {
            // All are in use: this one is not kept.
            return untracked(address);
        }
        let endpoint = untracked(address);
        dialled.index.insert(&address, &endpoint);
        let member = Member::new(Arc::clone(&endpoint), now);
        inner.members.push(member);
        if inner.members.len() == 1 {
            // From now on there is something to tidy.
            self.shared.changed();
        }
        endpoint
    }

    fn forget_oldest(&self, inner: &mut Inner) -> bool {
        let oldest = inner
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| is_idle(member))
            .min_by_key(|(_, member)| member.endpoint.state.used.load(Ordering::Relaxed))
            .map(|(place, _)| place);
        let Some(place) = oldest else {
            return false;
        };
        self.forget(&inner.members.swap_remove(place));
        true
    }

    fn forget(&self, member: &Member) {
        if let (Kind::Dialled(dialled), Destination::Tcp(address)) =
            (&self.kind, &member.endpoint.destination)
        {
            dialled.index.remove(address);
        }
    }

    /// Forgets addresses that have not been used for long.
    pub(super) fn tidy(&self, inner: &mut Inner, now: Instant) {
        let oldest = self.shared.age(now).saturating_sub(IDLE).as_secs();
        let old = |member: &mut Member| {
            is_idle(member) && member.endpoint.state.used.load(Ordering::Relaxed) < oldest
        };
        for member in inner.members.extract_if(.., old) {
            self.forget(&member);
        }
    }
}

fn is_idle(member: &Member) -> bool {
    member.ejection.is_none()
        && member.times == 0
        && member.endpoint.active_requests() == 0
        && member.endpoint.active_connections() == 0
        && member.endpoint.direct_connections() == 0
}

fn untracked(address: SocketAddr) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(ResolvedEndpoint {
        destination: Destination::Tcp(address),
        name: None,
        weight: 1,
        locality: Locality::default(),
        labels: Labels::default(),
    }))
}
