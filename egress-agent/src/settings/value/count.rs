//! Numbers that may be left to the agent.

use std::num::{NonZeroU32, NonZeroUsize};

use super::{Fault, Scalar};

/// Connections that may be open at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionLimit {
    /// What the limit of open descriptors allows.
    Auto,
    /// This many.
    At(NonZeroU32),
}

impl Scalar for ConnectionLimit {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::At).map_err(|_| {
            Fault::new(format!(
                "`{text}` is neither `auto` nor a whole number from 1 to {}",
                u32::MAX
            ))
        })
    }
}

/// Number of worker threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workers(pub NonZeroUsize);

/// More workers than any machine has CPUs are a mistake, not a wish.
const MAX_WORKERS: usize = 1024;

impl Scalar for Workers {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text == "auto" {
            return Ok(Self(
                std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            ));
        }
        text.parse::<NonZeroUsize>()
            .ok()
            .filter(|n| n.get() <= MAX_WORKERS)
            .map(Self)
            .ok_or_else(|| {
                Fault::new(format!(
                    "`{text}` is neither `auto` nor a whole number from 1 to {MAX_WORKERS}"
                ))
            })
    }
}
