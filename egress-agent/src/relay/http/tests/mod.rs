#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod guard;
mod http2;
mod http2_service;
mod limits;
mod loopback;
mod policies;
mod retries;
mod rig;
mod routing;
mod wire;
