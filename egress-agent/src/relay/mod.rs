//! Move bytes or HTTP messages, both directions, with half-close, resets and
//! idle limits.
