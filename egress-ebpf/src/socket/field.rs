//! Access to the fields of a context. A field must be accessed as the base
//! pointer plus a constant. Left to itself the compiler merges the accesses of
//! two branches into one through a computed pointer, which the verifier refuses
//! ("dereference of modified ctx ptr"), so they are written out.

macro_rules! load {
    ($base:expr, $type:ty, $($field:tt).+ $(+ $more:expr)?) => {{
        let value: u64;
        asm!(
            "{value} = *(u32 *)({base} + {offset})",
            value = out(reg) value,
            base = in(reg) $base,
            offset = const offset_of!($type, $($field).+) $(+ $more)?,
            options(readonly, nostack, preserves_flags),
        );
        value as u32
    }};
}

macro_rules! load64 {
    ($base:expr, $type:ty, $field:tt) => {{
        let value: u64;
        asm!(
            "{value} = *(u64 *)({base} + {offset})",
            value = out(reg) value,
            base = in(reg) $base,
            offset = const offset_of!($type, $field),
            options(readonly, nostack, preserves_flags),
        );
        value
    }};
}

macro_rules! store {
    ($base:expr, $value:expr, $type:ty, $($field:tt).+ $(+ $more:expr)?) => {
        asm!(
            "*(u32 *)({base} + {offset}) = {value}",
            value = in(reg) u64::from($value),
            base = in(reg) $base,
            offset = const offset_of!($type, $($field).+) $(+ $more)?,
            options(nostack, preserves_flags),
        )
    };
}

/// Four consecutive words.
macro_rules! load4 {
    ($base:expr, $type:ty, $field:tt) => {
        Ip {
            words: [
                load!($base, $type, $field),
                load!($base, $type, $field + 4),
                load!($base, $type, $field + 8),
                load!($base, $type, $field + 12),
            ],
        }
    };
}

pub(super) use {load, load4, load64, store};
