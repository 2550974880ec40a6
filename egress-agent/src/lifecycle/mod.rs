//! Start, ready, hand-over, drain.
