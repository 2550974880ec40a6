//! What operators write, made into what the flow uses.
//!
//! [`yaml`] text → [`schema`] shapes, checked by [`check`] → [`compile`] →
//! [`model`] values in one immutable [`snapshot`]. [`load`] does this for
//! files at once (`egressctl validate`), [`store`] for the running agent, where
//! documents come and go; [`source`] watches files for it. [`explain`] says
//! what a snapshot decides for a destination, and why.

pub mod check;
pub mod compile;
pub mod diagnostic;
pub mod document;
pub mod explain;
pub mod load;
pub mod model;
pub mod render;
pub mod routes;
pub mod schema;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod yaml;

use std::sync::Arc;

use model::Locality;

/// What an unknown field is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnknownFields {
    /// The document is rejected: a mistyped `tls` must never mean plaintext.
    #[default]
    Error,
    /// The field is ignored with a warning, for documents newer than we are.
    Warn,
}

/// What reading and compiling need to know of the agent's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of documents that name none.
    pub default_namespace: Arc<str>,
    /// Istio's root namespace (`istio-system`): its exported rules apply last.
    pub root_namespace: Arc<str>,
    /// Cluster domain (`cluster.local`), for short host names.
    pub cluster_domain: Arc<str>,
    /// What an unknown field is.
    pub unknown_fields: UnknownFields,
    /// Locality of this node.
    pub locality: Locality,
    /// The settings name a mesh identity, so `ISTIO_MUTUAL` can work.
    pub mesh_identity: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_namespace: "default".into(),
            root_namespace: "istio-system".into(),
            cluster_domain: "cluster.local".into(),
            unknown_fields: UnknownFields::Error,
            locality: Locality::default(),
            mesh_identity: false,
        }
    }
}

/// As many cases as `PROPTEST_CASES` says, or `usual`.
#[cfg(test)]
pub(crate) fn cases(usual: u32) -> proptest::test_runner::Config {
    let config = proptest::test_runner::Config::default();
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return config;
    }
    proptest::test_runner::Config {
        cases: usual,
        ..config
    }
}
