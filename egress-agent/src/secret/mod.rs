//! TLS material: where it comes from, what is wrong with it, its rotation.
