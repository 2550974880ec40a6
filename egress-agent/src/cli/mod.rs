//! `egressctl`.
