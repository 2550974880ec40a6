//! The Kubernetes API server: how it is reached, and how a set of objects is
//! followed.
//!
//! [`client`] makes connections that the agent does not capture, [`follow`]
//! lists and watches, [`health`] remembers how each watch fares. What the
//! objects mean is known elsewhere: documents in
//! [`policy::source`](crate::policy::source), pods and the node in
//! [`workload`](crate::workload), Secrets in [`secret`](crate::secret).

#[cfg(feature = "kubernetes")]
pub mod backoff;
#[cfg(feature = "kubernetes")]
pub mod client;
#[cfg(feature = "kubernetes")]
pub mod error;
#[cfg(feature = "kubernetes")]
pub mod follow;
pub mod health;
pub mod metrics;

#[cfg(feature = "kubernetes")]
pub use error::KubernetesError;
