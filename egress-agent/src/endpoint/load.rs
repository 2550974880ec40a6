//! How load spreads over priority levels (Envoy's priority levels, panic
//! threshold and overprovisioning factor).

/// Envoy's overprovisioning factor, in per cent: a level takes all load until
/// less than 100/1.4 = 72 % of it are healthy.
pub(super) const OVERPROVISIONING: u64 = 140;

/// How well one level is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Health {
    pub(super) healthy: u32,
    pub(super) total: u32,
}

impl Health {
    /// Per cent of the load that the level could take, at most 100.
    fn capacity(self) -> u32 {
        if self.total == 0 {
            return 0;
        }
        let capacity = OVERPROVISIONING * u64::from(self.healthy) / u64::from(self.total);
        u32::try_from(capacity.min(100)).unwrap_or(100)
    }

    fn percent(self) -> u32 {
        if self.total == 0 {
            return 0;
        }
        let percent = 100 * u64::from(self.healthy) / u64::from(self.total);
        u32::try_from(percent).unwrap_or(100)
    }
}

/// What one level gets.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Load {
    /// Per cent of the load.
    pub(super) percent: u32,
    /// Per cent of the load that it could take.
    pub(super) capacity: u32,
    /// Use every endpoint, healthy or not.
    pub(super) panic: bool,
}

/// Load of each level, in order. The percentages sum to 100, or all are zero
/// when nothing may be used.
pub(super) fn spread(levels: &[Health], panic_percent: u32) -> Vec<Load> {
    let mut loads = vec![Load::default(); levels.len()];
    let total: u32 = levels.iter().map(|level| level.capacity()).sum();
    if total >= 100 {
        let capacities: Vec<u32> = levels.iter().map(|level| level.capacity()).collect();
        fill(&capacities, &mut loads);
        return loads;
    }
    for (load, level) in loads.iter_mut().zip(levels) {
        load.panic = level.total > 0 && level.percent() < panic_percent;
    }
    let filled: Vec<bool> = levels.iter().map(|level| level.total > 0).collect();
    let total_panic = loads
        .iter()
        .zip(&filled)
        .all(|(load, &filled)| load.panic || !filled)
        && filled.contains(&true);
    let capacities: Vec<u32> = if total_panic {
        // Nobody is well: by number of endpoints.
        let all: u64 = levels.iter().map(|level| u64::from(level.total)).sum();
        levels
            .iter()
            .map(|level| u32::try_from(100 * u64::from(level.total) / all.max(1)).unwrap_or(100))
            .collect()
    } else {
        levels.iter().map(|level| level.capacity()).collect()
    };
    fill(&capacities, &mut loads);
    loads
}

/// Gives each level its capacity in order until 100 are given; capacities that
/// sum to less are scaled up, and what rounding leaves goes to the first level
/// that has any.
fn fill(capacities: &[u32], loads: &mut [Load]) {
    let total = capacities.iter().sum::<u32>().min(100);
    if total == 0 {
        return;
    }
    let mut left = 100;
    for (load, &capacity) in loads.iter_mut().zip(capacities) {
        load.capacity = capacity;
        load.percent = (capacity * 100 / total).min(left);
        left -= load.percent;
    }
    if let Some(first) = loads.iter_mut().find(|load| load.percent > 0) {
        first.percent += left;
    }
}

/// The level that a point (0 to 99) falls into.
pub(super) fn choose(loads: impl Iterator<Item = u32>, point: u32) -> Option<usize> {
    let mut left = point;
    for (index, percent) in loads.enumerate() {
        if left < percent {
            return Some(index);
        }
        left -= percent;
    }
    None
}

/// As [`choose`], over what the levels that are not `excluded` could take;
/// `None` when they can take nothing (Envoy's `previous_priorities`).
pub(super) fn choose_other(
    capacities: &(impl Iterator<Item = u32> + Clone),
    excluded: impl Fn(usize) -> bool,
    point: u32,
) -> Option<usize> {
    let open = || {
        let levels = capacities.clone().enumerate();
        levels.map(|(index, capacity)| if excluded(index) { 0 } else { capacity })
    };
    let total = open().sum::<u32>().min(100);
    if total == 0 {
        return None;
    }
    let mut left = 100;
    let loads = open().map(|capacity| {
        let load = (capacity * 100 / total).min(left);
        left -= load;
        load
    });
    choose(loads, point).or_else(|| open().position(|capacity| capacity > 0))
}
