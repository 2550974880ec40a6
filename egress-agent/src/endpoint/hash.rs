//! `consistentHash`: keys, the hash ring and the Maglev table.
//!
//! Both tables are built over all endpoints of a priority level, healthy or
//! not, and a lookup walks past those that may not be used. So an ejection
//! moves only the keys of the endpoint that is ejected, and brings them back
//! afterwards. Positions come from addresses alone: every node with the same
//! endpoints sends a key to the same one.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use twox_hash::XxHash64;

use super::host::Endpoint;
use super::resolved::Destination;
use super::weighted::scale;
use crate::policy::model::HashTable as Kind;

/// Hash of a header value, cookie or query parameter (xxHash64 with seed 0, as
/// in Envoy).
pub fn hash_bytes(key: &[u8]) -> u64 {
    XxHash64::oneshot(0, key)
}

/// Hash of a source address, without its port, in its usual text form.
pub fn hash_address(address: IpAddr) -> u64 {
    // Long enough for any IPv6 address in full.
    let mut text = Text::<46>::default();
    let _ = write!(text, "{}", address.to_canonical());
    hash_bytes(text.bytes())
}

/// A hash that is independent of `hash`, for a second choice.
pub(super) fn remix(hash: u64, round: u64) -> u64 {
    // The finaliser of splitmix64.
    let mut mixed = hash.wrapping_add((round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Text on the stack; what does not fit is cut off.
struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
        }
    }
}

impl<const N: usize> Text<N> {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = &mut self.bytes[self.length..];
        let length = text.len().min(room.len());
        room[..length].copy_from_slice(&text.as_bytes()[..length]);
        self.length += length;
        Ok(())
    }
}

/// One endpoint of a table, in the order of the level.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    destination: Destination,
    weight: u64,
}

/// A ring or a Maglev table.
#[derive(Debug)]
pub(super) struct HashTable {
    kind: Kind,
    entries: Vec<Entry>,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// Points of the circle.
    Ring(Ring),
    /// Index of the endpoint.
    Maglev(Box<[u32]>),
}

/// Points of a ring that are always fine to have: 4 MiB.
const RING_FREE: u64 = 1 << 18;
/// Largest `minimumRingSize` that is honoured.
const RING_LIMIT: u64 = 1 << 20;
/// Istio's bound on `maglev.tableSize`.
const MAGLEV_LIMIT: u64 = 5_000_011;

impl HashTable {
    /// A table over the endpoints and weights, or `previous` when it is the
    /// same.
    pub(super) fn build(
        kind: Kind,
        hosts: &[Arc<Endpoint>],
        weights: &[u64],
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let entries: Vec<Entry> = hosts
            .iter()
            .zip(weights)
            .map(|(host, weight)| Entry {
                destination: host.destination.clone(),
                weight: (*weight).max(1),
            })
            .collect();
        if let Some(previous) = previous
            && previous.kind == kind
            && previous.entries == entries
        {
            return Arc::clone(previous);
        }
        let names: Vec<String> = entries.iter().map(|e| e.destination.to_string()).collect();
        let form = match kind {
            Kind::Ring(minimum) => Form::Ring(ring(minimum, &entries, &names)),
            Kind::Maglev(size) => Form::Maglev(maglev(size, &entries, &names)),
        };
        Arc::new(Self {
            kind,
            entries,
            form,
        })
    }

    /// Index of the endpoint for a key, among those that are `usable`.
    pub(super) fn get(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        match &self.form {
            Form::Ring(Ring { points, starts }) => {
                let bucket = bucket(hash, starts.len() - 1);
                let (from, to) = (starts[bucket] as usize, starts[bucket + 1] as usize);
                let inside = points[from..to].partition_point(|(position, _)| *position < hash);
                let start = from + inside;
                points[start..]
                    .iter()
                    .chain(&points[..start])
                    .map(|(_, index)| *index as usize)
                    .find(|index| usable(*index))
            }
            Form::Maglev(table) => {
                let size = table.len() as u64;
                if size == 0 {
                    return None;
                }
                let slot = |hash: u64| usize::try_from(hash % size).unwrap_or(0);
                // Rehashing spreads the keys of an unusable endpoint over all
                // others; the walk at the end is for when hardly any is left.
                let rehashed = (0..32).map(|round| remix(hash, round));
                std::iter::once(hash)
                    .chain(rehashed)
                    .map(slot)
                    .chain(table_walk(slot(hash), table.len()))
                    .map(|slot| table[slot] as usize)
                    .find(|index| usable(*index))
            }
        }
    }
}

fn table_walk(start: usize, size: usize) -> impl Iterator<Item = usize> {
    (start..size).chain(0..start)
}

/// Points of each endpoint in proportion to its weight. Envoy divides the
/// minimum size among the endpoints, so that a change of their number moves
/// the points of all; here the lightest endpoint has a full `minimumRingSize`
/// of points, halved until the ring fits, so that the number of points of an
/// endpoint seldom depends on how many others there are.
fn ring(minimum: u64, entries: &[Entry], names: &[String]) -> Ring {
    let minimum = minimum.clamp(1, RING_LIMIT);
    let limit = RING_FREE.max(2 * minimum);
    let Some(lightest) = entries.iter().map(|entry| entry.weight).min() else {
        return Ring::new(Vec::new());
    };
    let count = |entry: &Entry, each: u64| {
        let count = u128::from(each) * u128::from(entry.weight) / u128::from(lightest);
        u64::try_from(count).unwrap_or(u64::MAX)
    };
    let total = |each: u64| {
        let counts = entries.iter().map(|entry| count(entry, each));
        counts.fold(0, u64::saturating_add)
    };
    let mut each = minimum;
    while each > 1 && total(each) > limit {
        each = each.div_ceil(2);
    }
    // Weights so far apart that even one point for the lightest is too much:
    // the heavy ones are cut.
    let most = limit / entries.len() as u64 + 1;
    let cut = total(each) > limit;
    let mut points = Vec::new();
    let mut key = String::new();
    for (index, (entry, name)) in (0..).zip(entries.iter().zip(names)) {
        let mut count = count(entry, each);
        if cut {
            count = count.min(most);
        }
        for point in 0..count {
            key.clear();
            let _ = write!(key, "{name}_{point}");
            points.push((hash_bytes(key.as_bytes()), index));
        }
    }
    // Two points at one position: the smaller name first, whatever the order
    // of the endpoints.
    points.sort_unstable_by_key(|&(position, index)| (position, &names[index as usize]));
    Ring::new(points)
}

/// The points of a ring, and where to begin to look: positions are hashes, so
/// they are spread evenly, and the first bits of a key lead close to its point.
#[derive(Debug)]
struct Ring {
    /// Position and index of the endpoint, by position.
    points: Box<[(u64, u32)]>,
    /// First point of each bucket, and the number of points.
    starts: Box<[u32]>,
}

impl Ring {
    fn new(points: Vec<(u64, u32)>) -> Self {
        // Four to eight points for each bucket.
        let buckets = ((points.len() / 8) + 1).next_power_of_two();
        let mut starts = Vec::with_capacity(buckets + 1);
        for (at, (position, _)) in (0..).zip(&points) {
            let bucket = bucket(*position, buckets);
            starts.resize((bucket + 1).max(starts.len()), at);
        }
        starts.resize(buckets + 1, u32::try_from(points.len()).unwrap_or(u32::MAX));
        Self {
            points: points.into_boxed_slice(),
            starts: starts.into_boxed_slice(),
        }
    }
}

/// Bucket of a position.
fn bucket(position: u64, buckets: usize) -> usize {
    usize::try_from(scale(position, buckets as u64)).unwrap_or(0)
}

/// An endpoint's walk through the slots of a Maglev table.
struct Walk {
    index: u32,
    offset: u64,
    skip: u64,
    next: u64,
    share: f64,
    target: f64,
}

/// The Maglev table (Eisenbud et al., NSDI 2016, section 3.4) with weights as
/// in Envoy: an endpoint takes part in a round of filling when its turn, in
/// proportion to its weight, has come.
fn maglev(size: u64, entries: &[Entry], names: &[String]) -> Box<[u32]> {
    let size = size.clamp(2, MAGLEV_LIMIT);
    let Some(heaviest) = entries.iter().map(|entry| entry.weight).max() else {
        return Box::default();
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "shares need no more than 52 bits"
    )]
    let mut walks: Vec<Walk> = (0..)
        .zip(entries.iter().zip(names))
        .map(|(index, (entry, name))| Walk {
            index,
            offset: hash_bytes(name.as_bytes()) % size,
            skip: XxHash64::oneshot(1, name.as_bytes()) % (size - 1) + 1,
            next: 0,
            share: entry.weight as f64 / heaviest as f64,
            target: 0.0,
        })
        .collect();
    walks.sort_by_key(|walk| &names[walk.index as usize]);
    let length = usize::try_from(size).unwrap_or(0);
    let mut table = vec![u32::MAX; length];
    let mut filled = 0;
    let mut round = 1.0;
    while filled < length {
        for walk in &mut walks {
            if filled == length {
                break;
            }
            if round * walk.share < walk.target {
                continue;
            }
            walk.target += 1.0;
            loop {
                let slot = (walk.offset + walk.skip * walk.next) % size;
                walk.next += 1;
                let slot = &mut table[usize::try_from(slot).unwrap_or(0)];
                if *slot == u32::MAX {
                    *slot = walk.index;
                    filled += 1;
                    break;
                }
            }
        }
        round += 1.0;
    }
    table.into_boxed_slice()
}
