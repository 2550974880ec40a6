//! Which endpoint takes a connection or request, and when none may: resolution,
//! locality, balance, limits, outlier ejection, health checks.
//!
//! Two halves that meet in [`resolved`]: `resolve/` turns the endpoints that a
//! policy names into addresses, and [`EndpointSet`](set::EndpointSet)s choose
//! among them.

pub mod resolved;
