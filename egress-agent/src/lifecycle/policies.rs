//! What reading and compiling policy needs to know of the settings.

use std::path::PathBuf;
use std::sync::Arc;

use crate::numbers::Known;
use crate::policy::source::keeper::Places;
use crate::policy::{Options, UnknownFields};
use crate::settings::value::UnknownFields as Setting;
use crate::settings::{Loaded, Settings};

/// How documents are read.
pub(super) fn options(settings: &Settings) -> Options {
    Options {
        default_namespace: Arc::clone(&settings.namespace.0),
        root_namespace: Arc::clone(&settings.root_namespace.0),
        cluster_domain: Arc::clone(&settings.cluster_domain.0),
        unknown_fields: match settings.unknown_fields {
            Setting::Error => UnknownFields::Error,
            Setting::Warn => UnknownFields::Warn,
        },
        locality: settings.locality.clone().unwrap_or_default(),
        mesh_identity: settings.mesh_identity.is_some(),
    }
}

/// Where they are. The default directory may be absent.
pub(super) fn paths(loaded: &Loaded) -> Vec<PathBuf> {
    let paths = loaded.settings.policy.iter();
    paths
        .filter(|path| !loaded.default_policy || path.exists())
        .cloned()
        .collect()
}

/// Both, and where applied documents are kept.
pub(super) fn places(loaded: &Loaded, known: Known) -> Places {
    Places {
        paths: paths(loaded),
        state: loaded.settings.state_dir.clone(),
        options: options(&loaded.settings),
        known,
    }
}
