//! Choosing one of the endpoints of a level, or of one of its localities.

use std::sync::Arc;

use super::host::Endpoint;
use super::weighted::{Step, Weights};

/// Up to this many endpoints of unequal weight LEAST_REQUEST looks at all.
const SCAN: usize = 32;
/// Among more than that it looks at this many.
const SAMPLE: usize = 8;

/// Endpoints in use, with their weights.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) hosts: Box<[Arc<Endpoint>]>,
    pub(super) weights: Weights,
}

impl Group {
    pub(super) fn random(&self) -> Option<&Arc<Endpoint>> {
        self.weights
            .at(fastrand::u64(..))
            .map(|index| &self.hosts[index])
    }

    /// Equal weights: the better of two. Else in proportion to
    /// `weight / (active + 1)`, over all of a few or over a sample of many.
    pub(super) fn least_request(&self, step: Step) -> Option<&Arc<Endpoint>> {
        let count = self.hosts.len();
        if count <= 1 {
            return self.hosts.first();
        }
        if self.weights.is_equal() {
            let first = fastrand::usize(..count);
            let second = (first + fastrand::usize(1..count)) % count;
            let (first, second) = (&self.hosts[first], &self.hosts[second]);
            return Some(if second.active_requests() < first.active_requests() {
                second
            } else {
                first
            });
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "a share needs no more than 52 bits"
        )]
        if count <= SCAN {
            let mut shares = [0.0; SCAN];
            let mut total = 0.0;
            for (index, (share, host)) in shares.iter_mut().zip(&self.hosts).enumerate() {
                let idle = f64::from(host.active_requests()) + 1.0;
                *share = self.weights.weight(index) as f64 / idle;
                total += *share;
            }
            let chosen = draw(&shares[..count], total, step.endpoint());
            return self.hosts.get(chosen);
        }
        let mut sample = [0; SAMPLE];
        let mut shares = [0.0; SAMPLE];
        let mut total = 0.0;
        for (place, share) in sample.iter_mut().zip(&mut shares) {
            *place = self.weights.at(fastrand::u64(..))?;
            *share = 1.0 / (f64::from(self.hosts[*place].active_requests()) + 1.0);
            total += *share;
        }
        let chosen = draw(&shares, total, fastrand::u64(..));
        self.hosts.get(sample[chosen])
    }
}

/// Place in proportion to shares.
fn draw(shares: &[f64], total: f64, point: u64) -> usize {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a share needs no more than 52 bits"
    )]
    let mut left = point as f64 / 18_446_744_073_709_551_616.0 * total;
    for (index, share) in shares.iter().enumerate() {
        if left < *share {
            return index;
        }
        left -= share;
    }
    shares.len() - 1
}
