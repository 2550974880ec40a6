//! Dial, originate TLS, keep connection pools.
