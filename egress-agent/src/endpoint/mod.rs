//! Which endpoint takes a connection or request, and when none may: resolution,
//! locality, balance, limits, outlier ejection, health checks.
//!
//! Two halves that meet in [`resolved`]: `resolve/` turns the endpoints that a
//! policy names into addresses, and [`EndpointSet`]s choose among them. There
//! is one set for each cluster of the policy; the [`Registry`] on the control
//! runtime keeps a cluster's set across snapshots, so that a reload loses no
//! counter, no ejection and no connection.
//!
//! A worker reads [`Live`], calls [`EndpointSet::pick`], and tells the
//! [`Picked`] how it went ([`Picked::report`]). Choosing reads immutable
//! tables and atomics only; whoever changes something (an ejection, a new DNS
//! answer, a policy) rebuilds the table before letting go of the set's lock, so
//! no change can be missed.

mod changes;
mod checker;
mod config;
mod dial;
mod eject;
mod error;
mod group;
mod hash;
mod health;
mod host;
mod index;
mod limits;
mod live;
mod load;
mod locality;
mod metrics;
mod names;
mod outcome;
mod outlier;
mod picked;
mod pool;
pub mod resolve;
pub mod resolved;
mod set;
mod shared;
mod sibling;
mod slots;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod told;
mod variants;
mod wanted;
mod warmup;
mod weighted;

pub use changes::Changes;
pub use error::PickError;
pub use hash::{hash_address, hash_bytes};
pub use health::{ProbeFailure, ProbeFuture, ProbeTarget, Prober};
pub use host::{ConnectionGuard, Endpoint, EndpointCounters, EndpointId};
pub use limits::{LimitKind, Overflow, Permit};
pub use live::{Live, Options, Registry, is_at};
pub use metrics::Metrics;
pub use outcome::Outcome;
pub use outlier::{EjectReason, Generation};
pub use picked::{PickContext, Picked};
pub use set::EndpointSet;
pub use shared::SetCounters;
pub use slots::{Slot, Slots};
pub use status::{
    EndpointState, EndpointStatus, FailureStatus, LevelStatus, LimitStatus, SetStatus,
};
pub use wanted::ConnectionWanted;
