//! The kernel programs on a real kernel, with real sockets. Needs root; each
//! test has a cgroup and a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod kernel_lab;

#[path = "kernel_tests/direct/mod.rs"]
mod direct;
#[path = "kernel_tests/dns.rs"]
mod dns;
#[path = "kernel_tests/lifecycle.rs"]
mod lifecycle;
#[path = "kernel_tests/lookup.rs"]
mod lookup;
#[path = "kernel_tests/namespaces.rs"]
mod namespaces;
#[path = "kernel_tests/pins.rs"]
mod pins;
#[path = "kernel_tests/tcp.rs"]
mod tcp;
#[path = "kernel_tests/udp.rs"]
mod udp;
