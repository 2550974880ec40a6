//! The endpoints of a set as the kernel's direct path uses them: a table in
//! which each endpoint stands as often as its share of the load says.

use std::net::SocketAddr;
use std::sync::Arc;

use super::config::Mode;
use super::host::Endpoint;
use super::outlier::Generation;
use super::resolved::Destination;
use super::set::EndpointSet;
use crate::policy::snapshot::Client;

/// Endpoints in use, with weights, locality, ejection and health checks folded
/// into their shares.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    /// The endpoints, at most as many as asked for.
    pub endpoints: Vec<Slot>,
    /// Indexes into `endpoints`, each as often as its share says and evenly
    /// spread; walk it in order for a round robin. Empty when nothing may be
    /// used.
    pub table: Vec<u16>,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Where to connect.
    pub address: SocketAddr,
    /// The endpoint; for [`EndpointSet::report`].
    pub endpoint: Arc<Endpoint>,
    /// The period in which connections through this slot begin.
    pub generation: Generation,
    /// Places in the table, for least connections.
    pub places: u16,
}

impl EndpointSet {
    /// The slot table for a client, with at most `size` places. Equal shares
    /// get equal places, so the table may be shorter than `size`. Empty for
    /// resolution NONE and PASSTHROUGH (the kernel keeps the address dialled),
    /// and when no endpoint may be used.
    pub fn slots(&self, client: &Client, size: u16) -> Slots {
        if self.shared.config.load().mode != Mode::Resolved {
            return Slots::default();
        }
        let Some(table) = self.pool.table(Some(client)) else {
            return Slots::default();
        };
        let mut shares: Vec<(Arc<Endpoint>, SocketAddr, f64)> = table
            .shares()
            .into_iter()
            .filter_map(|(endpoint, share)| match endpoint.destination {
                Destination::Tcp(address) if share > 0.0 => Some((endpoint, address, share)),
                _ => None,
            })
            .collect();
        // More endpoints than places: those with the largest shares.
        shares.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.1.cmp(&b.1)));
        shares.truncate(usize::from(size));
        let places = places(
            &shares.iter().map(|share| share.2).collect::<Vec<_>>(),
            size,
        );
        Slots {
            table: spread(&places),
            endpoints: shares
                .into_iter()
                .zip(places)
                .map(|((endpoint, address, _), places)| Slot {
                    address,
                    generation: endpoint.generation(),
                    endpoint,
                    places,
                })
                .collect(),
        }
    }
}

/// Places of each share in a table of at most `size`: at least one each, in
/// proportion by largest remainder.
fn places(shares: &[f64], size: u16) -> Vec<u16> {
    let (Some(first), Some(last)) = (shares.first(), shares.last()) else {
        return Vec::new();
    };
    let count = u16::try_from(shares.len()).unwrap_or(u16::MAX);
    if first - last <= f64::EPSILON * first {
        return vec![(size / count).max(1); shares.len()];
    }
    let total: f64 = shares.iter().sum();
    let mut left = size - count;
    let spare = f64::from(left);
    let base = f64::from(size);
    // What each lacks after its one place.
    let lacks: Vec<f64> = shares
        .iter()
        .map(|share| (share / total * base - 1.0).max(0.0))
        .collect();
    let lacking: f64 = lacks.iter().sum();
    let exact = lacks.iter().map(|lack| lack / lacking * spare);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the size, a u16"
    )]
    let mut parts: Vec<(u16, f64)> = exact.map(|x| (x as u16, x.fract())).collect();
    for part in &mut parts {
        part.0 = part.0.min(left);
        left -= part.0;
    }
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by(|&a, &b| parts[b].1.total_cmp(&parts[a].1));
    for place in order.into_iter().take(usize::from(left)) {
        parts[place].0 += 1;
    }
    parts.into_iter().map(|(more, _)| more + 1).collect()
}

/// Each index as often as its count says, at even distances.
fn spread(counts: &[u16]) -> Vec<u16> {
    let mut at: Vec<(f64, u16)> = (0..)
        .zip(counts)
        .flat_map(|(index, &count)| {
            (0..count).map(move |n| ((f64::from(n) + 0.5) / f64::from(count), index))
        })
        .collect();
    at.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    at.into_iter().map(|(_, index)| index).collect()
}
