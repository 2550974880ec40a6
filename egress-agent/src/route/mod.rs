//! VirtualService at run time: match, rewrite, split, timeout and retry plan.
//!
//! Everything here is a pure function of the compiled routes and of what one
//! request or connection says, so nothing waits and nothing is kept:
//! [`http::route`] chooses among `http` routes, [`opaque::route`] among `tls`
//! and `tcp` ones, [`rewrite`] and [`headers`] carry out what a route asks
//! for.

use std::fmt;

use crate::flag::{Flag, Side};

pub mod headers;
pub mod http;
mod matching;
pub mod opaque;
pub mod rewrite;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use http::{Forward, RequestFacts, Routed};

/// Why a request or connection has nowhere to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteError {
    /// A VirtualService applies and none of its routes matches.
    NoRoute,
    /// The route names a host, port or subset that does not exist; the text
    /// says which.
    NoCluster(Box<str>),
    /// A rewrite made something that cannot be a request target or authority.
    BadRewrite {
        /// Name of the route.
        route: Box<str>,
        /// What the rewrite made.
        target: Box<str>,
    },
}

impl RouteError {
    /// Whose side it lies on: always the policy's.
    pub const fn side(&self) -> Side {
        Side::Policy
    }

    /// The access log's flag.
    pub const fn flag(&self) -> Flag {
        match self {
            Self::NoRoute => Flag::NoRouteFound,
            Self::NoCluster(_) | Self::BadRewrite { .. } => Flag::NoClusterFound,
        }
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("no route of the VirtualService matches the request"),
            Self::NoCluster(what) => write!(f, "the route's destination does not exist: {what}"),
            Self::BadRewrite { route, target } => write!(
                f,
                "the rewrite of route {route:?} made {target:?}, which is no request target; \
                 correct the VirtualService"
            ),
        }
    }
}

impl std::error::Error for RouteError {}
