//! Choosing in proportion to weights, without state but one counter.
//!
//! A counter times an irrational number, modulo one, visits every interval of
//! the unit line in proportion to its length and at even distances (the three
//! gap theorem). Laying the weights out on that line gives a weighted round
//! robin that is as smooth as an earliest-deadline schedule, yet needs nothing
//! but an atomic counter that workers can share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Fractional parts of the golden ratio and of the square roots of two and
/// three, times 2^64. They are independent of each other, so one counter
/// serves three choices.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const ROOT_TWO: u64 = 0x6a09_e667_f3bc_c909;
const ROOT_THREE: u64 = 0xbb67_ae85_84ca_a73b;

/// One step of a [`Cursor`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Step(pub(super) u64);

impl Step {
    /// Point for the choice of an endpoint.
    pub(super) const fn endpoint(self) -> u64 {
        self.0.wrapping_mul(GOLDEN)
    }

    /// Point for the choice of a locality.
    pub(super) const fn locality(self) -> u64 {
        self.0.wrapping_mul(ROOT_TWO)
    }

    /// Point for the choice of a priority level.
    pub(super) const fn level(self) -> u64 {
        self.0.wrapping_mul(ROOT_THREE)
    }

    /// A random step.
    pub(super) fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

/// Maps a point onto `0..count`.
pub(super) fn scale(point: u64, count: u64) -> u64 {
    let scaled = (u128::from(point) * u128::from(count)) >> 64;
    u64::try_from(scaled).unwrap_or(0)
}

/// Counters of a round robin, one for each of a few workers, so that they do
/// not fight for one cache line. Each starts at random, so that many agents do
/// not all begin with the same endpoint.
/// Most clusters never take turns, so they are made with the first step.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    stripes: OnceLock<Box<[Stripe; STRIPES]>>,
}

const STRIPES: usize = 4;

#[derive(Debug)]
#[repr(align(64))]
struct Stripe(AtomicU64);

impl Cursor {
    pub(super) fn step(&self) -> Step {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
        }
        let mine = MINE.try_with(|mine| *mine).unwrap_or(0);
        let stripes = self.stripes.get_or_init(|| {
            let stripe = |_| Stripe(AtomicU64::new(fastrand::u64(..1 << 48)));
            Box::new(std::array::from_fn(stripe))
        });
        Step(stripes[mine].0.fetch_add(1, Ordering::Relaxed))
    }
}

/// Weights laid end to end.
#[derive(Clone, Debug)]
pub(super) enum Weights {
    /// All the same, of this many.
    Equal(usize),
    /// Upper bound of each.
    Bounds(Box<[u64]>),
}

impl Weights {
    /// Weights of zero are never chosen, unless all are zero: then all are
    /// alike.
    pub(super) fn new(weights: &[u64]) -> Self {
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        if equal {
            return Self::Equal(weights.len());
        }
        // Sums stay far below 2^64: at most 2^16 endpoints of 2^48.
        let bounds = weights.iter().scan(0_u64, |sum, weight| {
            *sum = sum.saturating_add(*weight);
            Some(*sum)
        });
        Self::Bounds(bounds.collect())
    }

    pub(super) const fn is_equal(&self) -> bool {
        matches!(self, Self::Equal(_))
    }

    /// The place that a point falls into; `None` when there is none.
    pub(super) fn at(&self, point: u64) -> Option<usize> {
        match self {
            Self::Equal(0) => None,
            Self::Equal(count) => usize::try_from(scale(point, *count as u64)).ok(),
            Self::Bounds(bounds) => {
                let point = scale(point, *bounds.last()?);
                Some(bounds.partition_point(|bound| *bound <= point))
            }
        }
    }

    /// The place whose turn it is.
    pub(super) fn turn(&self, step: Step) -> Option<usize> {
        match self {
            Self::Equal(0) => None,
            Self::Equal(count) => usize::try_from(step.0 % *count as u64).ok(),
            Self::Bounds(_) => self.at(step.endpoint()),
        }
    }

    /// Weight of one place.
    pub(super) fn weight(&self, index: usize) -> u64 {
        match self {
            Self::Equal(_) => 1,
            Self::Bounds(bounds) => {
                let below = index.checked_sub(1).map_or(0, |before| bounds[before]);
                bounds[index] - below
            }
        }
    }
}
