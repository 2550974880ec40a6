//! Start, ready, drain, stop.
//!
//! The main thread is the control runtime: policy, name resolution, the admin
//! API, signals, the heartbeat. Worker threads carry connections; see
//! [`worker`]. [`supervise`] is what the control runtime waits in, and [`agent`]
//! puts the rooms together.

pub mod agent;
pub mod api;
mod beginning;
mod bridges;
mod capture_metrics;
mod cgroups;
mod connect;
mod direct;
pub mod drain;
mod drains;
mod dynamic_names;
mod error;
mod feed;
mod following;
mod handover;
mod hands;
pub mod heartbeat;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(not(feature = "kubernetes"))]
#[path = "kubernetes_off.rs"]
mod kubernetes;
mod leaving;
pub mod lock;
pub mod logging;
pub mod metrics;
mod name_servers;
mod namespaces;
mod node;
mod outbound;
pub mod panics;
mod policies;
pub mod process;
mod rows;
mod running;
mod serving;
pub mod signals;
pub mod supervise;
pub mod systemd;
mod views;
pub mod worker;

pub use error::StartError;
