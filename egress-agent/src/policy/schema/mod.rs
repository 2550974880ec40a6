//! The shapes of the kinds that we take, as written: typed leaves, every field
//! optional, every value with its place. Reading reports all problems at once
//! and calls [`check`](super::check) on each part.
//!
//! Fields are those of Istio's API (`networking.istio.io` v1, v1beta1 and
//! v1alpha3, which are one schema) by their own names.

/// An enumeration of the API: its words, and printing as them.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// Every word of it.
            pub const WORDS: &'static [(&'static str, Self)] =
                &[$(($word, Self::$variant)),+];

            /// Its word.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}

pub mod annotation;
pub mod destination_rule;
mod duration;
pub mod load_balancer;
pub mod meta;
pub mod outlier;
pub mod pool;
pub mod reader;
pub mod route;
pub mod secret;
pub mod service_entry;
pub mod tls;
mod values;
pub mod virtual_service;

#[cfg(test)]
mod tests;

use std::ops::Deref;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::diagnostic::Span;

pub use duration::{format_duration, parse_duration};

/// A value and the place where it was written. Two are equal when their values
/// are, wherever they stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// The place.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// A value with a place.
    pub const fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Serialize> Serialize for Spanned<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

/// Text with its place.
pub type Text = Spanned<Box<str>>;

/// A duration with its place.
pub type Time = Spanned<Interval>;

/// A duration as written; it may be negative or zero where a rule has yet to
/// object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Interval {
    /// Nanoseconds.
    pub nanoseconds: i64,
}

impl Interval {
    /// As a duration; a negative one is zero.
    pub fn duration(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.nanoseconds).unwrap_or(0))
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*self))
    }
}

/// Entries of a `map<string, …>` in the order written.
pub type Entries<T> = Vec<(Text, T)>;

/// Prints [`Entries`] as an object.
pub(crate) fn entries<T: Serialize, S: Serializer>(
    list: &Entries<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(list.iter().map(|(key, value)| (&*key.value, value)))
}
