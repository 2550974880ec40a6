//! Numbers that stand for names in the kernel's maps, and that must mean the
//! same to the agent that comes after this one: the maps outlive both.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::Arc;

use twox_hash::XxHash64;

/// A name as 128 bits: short enough to be a key in the kernel, long enough
/// that no two names of a node share one.
pub type Fingerprint = [u8; 16];

/// The fingerprint of a name that consists of several parts.
pub fn fingerprint(parts: &[&[u8]]) -> Fingerprint {
    let half = |seed| {
        let mut hasher = XxHash64::with_seed(seed);
        for part in parts {
            hasher.write(&part.len().to_le_bytes());
            hasher.write(part);
        }
        hasher.finish().to_le_bytes()
    };
    let (low, high) = (half(0), half(0x6567_7265_7373));
    let mut whole = [0; 16];
    whole[..8].copy_from_slice(&low);
    whole[8..].copy_from_slice(&high);
    whole
}

/// Numbers that an agent before gave out.
#[derive(Clone, Debug, Default)]
pub struct Known {
    numbers: Arc<HashMap<Fingerprint, u32>>,
    last: u32,
}

impl Known {
    /// From pairs of name and number.
    pub fn new(numbers: HashMap<Fingerprint, u32>) -> Self {
        Self {
            last: numbers.values().copied().max().unwrap_or(0),
            numbers: Arc::new(numbers),
        }
    }

    /// The number of a name, if it had one.
    pub fn get(&self, name: &Fingerprint) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// The highest number given out; new ones come after it.
    pub const fn last(&self) -> u32 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_parts_end_counts() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_eq!(fingerprint(&[b"a", b"b"]), fingerprint(&[b"a", b"b"]));
    }

    #[test]
    fn new_numbers_come_after_known_ones() {
        let name = fingerprint(&[b"a"]);
        let known = Known::new([(name, 7), (fingerprint(&[b"b"]), 3)].into());
        assert_eq!((known.get(&name), known.last()), (Some(7), 7));
        assert_eq!(Known::default().last(), 0);
    }
}
