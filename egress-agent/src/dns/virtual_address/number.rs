//! The numbers behind virtual addresses, and how a name chooses one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The IPv4 network of virtual addresses, as its first two bytes.
pub const NETWORK_V4: [u8; 2] = [240, 240];

/// Third byte of 240.240.255.0/24, which is kept for the agent's self-test.
pub const SELF_TEST_V4: u8 = 255;

/// The IPv6 addresses without their last sixteen bits, in 2001:2::/48.
const BASE_V6: u128 = 0x2001_0002_0000_0000_0000_0000_f0f0_0000;

/// How many numbers there are.
pub(super) const NUMBERS: usize = 1 << 16;

/// A virtual address: one number, and the two addresses that show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualAddress(pub(super) u16);

impl VirtualAddress {
    /// The address in 240.240.0.0/16.
    pub const fn v4(self) -> Ipv4Addr {
        let [high, low] = self.0.to_be_bytes();
        Ipv4Addr::new(NETWORK_V4[0], NETWORK_V4[1], high, low)
    }

    /// The address in 2001:2::/48.
    pub const fn v6(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(BASE_V6 | self.0 as u128)
    }

    /// The virtual address that `ip` shows (IPv4-mapped is IPv4), whether or
    /// not a name holds it.
    pub fn of(ip: IpAddr) -> Option<Self> {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, high, low] = ip.octets();
                ([a, b] == NETWORK_V4).then(|| Self(u16::from_be_bytes([high, low])))
            }
            IpAddr::V6(ip) => {
                let number = ip.to_bits() ^ BASE_V6;
                u16::try_from(number).ok().map(Self)
            }
        }
    }

    /// Whether the number may be given to a name.
    pub(super) const fn usable(self) -> bool {
        let [high, _] = self.0.to_be_bytes();
        self.0 != 0 && high != SELF_TEST_V4
    }

    pub(super) fn slot(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Debug for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.v4())
    }
}

/// Whether `ip` lies in the networks of virtual addresses.
pub fn is_virtual(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets()[..2] == NETWORK_V4,
        IpAddr::V6(ip) => ip.to_bits() >> 80 == BASE_V6 >> 80,
    }
}

/// FNV-1a, folded to sixteen bits. It must never change: addresses that no
/// state file remembers follow from it.
pub(super) fn hash(name: &str) -> u16 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Multiplying mixes upwards, so the high half is folded onto the low one.
    let hash = hash ^ (hash >> 32);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "folding takes the low bits"
    )]
    let folded = (hash ^ (hash >> 16)) as u16;
    folded
}
