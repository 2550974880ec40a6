//! What the rest of the agent gives to the admin room.

use std::fmt;
use std::pin::Pin;

use super::query::Query;
use super::view;

/// An answer that takes its time. It has ten seconds.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>>>>;

/// Why a request cannot be served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApiError {
    /// This agent does not have that.
    NotServed,
    /// There is nothing of that name.
    NotFound(String),
    /// The request is wrong.
    Invalid(String),
    /// The agent cannot do it now.
    Unavailable(String),
    /// The agent failed.
    Failed(String),
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotServed => f.write_str("this agent does not serve that"),
            Self::NotFound(text)
            | Self::Invalid(text)
            | Self::Unavailable(text)
            | Self::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ApiError {}

/// What the admin room asks of the agent. All of it is called on the control
/// runtime and must not block.
///
/// What a method gets in a [`Query`] is said with it; other parameters were
/// refused before.
pub trait AdminApi {
    /// State of the agent and its rooms.
    fn status(&self) -> view::Status;

    /// Whether the agent is well: an error says what is wrong.
    ///
    /// # Errors
    /// What is wrong.
    fn healthy(&self) -> Result<(), String>;

    /// Whether the agent takes connections.
    ///
    /// # Errors
    /// Why it does not.
    fn ready(&self) -> Result<(), String>;

    /// All metrics, as OpenMetrics text.
    ///
    /// # Errors
    /// When they cannot be written.
    fn metrics(&self) -> Result<String, ApiError>;

    /// Stops taking connections and ends when the open ones have.
    ///
    /// # Errors
    /// When that cannot be begun.
    fn drain(&self) -> Result<view::Draining, ApiError>;

    /// Puts a log filter in force until the next reload.
    ///
    /// # Errors
    /// When the filter is malformed.
    fn set_log(&self, filter: &str) -> Result<view::Log, ApiError>;

    /// Services in force; `host`, `namespace`.
    ///
    /// # Errors
    /// When there are none to tell.
    fn services(&self, _query: &Query) -> Result<Vec<view::Service>, ApiError> {
        Err(ApiError::NotServed)
    }

    /// Endpoints with their health; `host`, `namespace`.
    ///
    /// # Errors
    /// When there are none to tell.
    fn endpoints(&self, _query: &Query) -> Result<Vec<view::Endpoint>, ApiError> {
        Err(ApiError::NotServed)
    }

    /// Routes in force; `host`, `namespace`.
    ///
    /// # Errors
    /// When there are none to tell.
    fn routes(&self, _query: &Query) -> Result<Vec<view::Route>, ApiError> {
        Err(ApiError::NotServed)
    }

    /// TLS material, never the keys themselves; `host` is part of its name.
    ///
    /// # Errors
    /// When there are none to tell.
    fn secrets(&self, _query: &Query) -> Result<Vec<view::Secret>, ApiError> {
        Err(ApiError::NotServed)
    }

    /// Names, their virtual addresses and what they resolve to; `host`.
    ///
    /// # Errors
    /// When there are none to tell.
    fn dns(&self, _query: &Query) -> Result<Vec<view::Name>, ApiError> {
        Err(ApiError::NotServed)
    }

    /// Unregistered destinations by caller, the busiest first; `namespace`.
    ///
    /// # Errors
    /// When there are none to tell.
    fn observe(&self, _query: &Query) -> Result<Vec<view::Unregistered>, ApiError> {
        Err(ApiError::NotServed)
    }

    /// Forgets the unregistered destinations.
    ///
    /// # Errors
    /// When that fails.
    fn forget_observed(&self) -> Result<(), ApiError> {
        Err(ApiError::NotServed)
    }

    /// Policy documents and their problems; `kind`, `name`, `namespace`.
    fn documents(&self, _query: &Query) -> Pending<Vec<view::Document>> {
        Box::pin(async { Err(ApiError::NotServed) })
    }

    /// The decision on a destination, as `policy::explain::Explanation`;
    /// `target` (URL or HOST:PORT), `from` (process id, cgroup path or
    /// namespace), `method` and `headers` (one a line) of a request; with
    /// `connect` connections are tried.
    fn explain(&self, _query: &Query) -> Pending<serde_json::Value> {
        Box::pin(async { Err(ApiError::NotServed) })
    }

    /// Takes the documents of a YAML text; `dry-run`.
    fn apply(&self, _documents: String, _query: &Query) -> Pending<Vec<view::Change>> {
        Box::pin(async { Err(ApiError::NotServed) })
    }

    /// Removes the documents that a YAML text names; `dry-run`.
    fn delete(&self, _documents: String, _query: &Query) -> Pending<Vec<view::Change>> {
        Box::pin(async { Err(ApiError::NotServed) })
    }
}
