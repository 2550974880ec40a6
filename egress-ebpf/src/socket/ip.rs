//! Addresses as the programs handle them.

use egress_common::Address;

/// Third word of an IPv4-mapped address, as it lies in memory.
const MAPPED_WORD: u32 = 0xffff_u32.to_be();
/// An address as four words in network order, IPv4 in mapped form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    pub words: [u32; 4],
}

impl Ip {
    pub const LOOPBACK4: Self = Self::v4(u32::from_ne_bytes([127, 0, 0, 1]));
    pub const LOOPBACK6: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };

    /// From an IPv4 address in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED_WORD, word],
        }
    }

    #[inline(always)]
    pub fn from_bytes(bytes: &Address) -> Self {
        // SAFETY: both are sixteen plain bytes.
        unsafe { core::mem::transmute_copy(bytes) }
    }

    #[inline(always)]
    pub const fn bytes(self) -> Address {
        // SAFETY: both are sixteen plain bytes.
        unsafe { core::mem::transmute(self.words) }
    }

    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED_WORD
    }

    /// Loopback, and the unspecified address, which `connect` takes for it.
    #[inline(always)]
    pub fn is_local(self) -> bool {
        let last = u32::from_be(self.words[3]);
        if self.is_v4() {
            last >> 24 == 127 || last == 0
        } else {
            self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && last <= 1
        }
    }

    /// One of the virtual addresses (see `egress_common::is_virtual`).
    #[inline(always)]
    pub fn is_virtual(self) -> bool {
        use egress_common::{VIRTUAL_NET4 as V4, VIRTUAL_NET6 as V6};
        if self.is_v4() {
            u32::from_be(self.words[3]) >> 16 == u16::from_be_bytes(V4) as u32
        } else {
            self.words[0] == u32::from_ne_bytes([V6[0], V6[1], V6[2], V6[3]])
                && u32::from_be(self.words[1]) >> 16 == u16::from_be_bytes([V6[4], V6[5]]) as u32
        }
    }
}
