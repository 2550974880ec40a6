//! What reading and compiling policy needs to know of the settings.

use std::path::PathBuf;
use std::sync::Arc;

use super::StartError;
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

/// Looks at every path that the settings name, before anything is attached: a
/// mistyped one would mean that nothing is registered. Once the agent runs, a
/// path may come and go.
///
/// # Errors
/// The first one that is not there.
pub(super) fn look(loaded: &Loaded) -> Result<(), StartError> {
    for path in paths(loaded) {
        std::fs::metadata(&path).map_err(|error| StartError::PolicyPath { path, error })?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::settings::{Sources, command};

    fn loaded(flags: &[&str]) -> Loaded {
        let line = [&["egress-agent", "--settings", "/dev/null"], flags].concat();
        let matches = command::command().try_get_matches_from(line).unwrap();
        Sources::new(&matches, []).load().unwrap()
    }

    #[test]
    fn a_path_that_was_named_must_be_there() {
        let error = look(&loaded(&["--policy", "/nowhere/policy"])).unwrap_err();
        let said = error.to_string();
        for part in ["/nowhere/policy", "No such file", "--policy"] {
            assert!(said.contains(part), "{said}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert!(look(&loaded(&["--policy", path])).is_ok());
        // The default directory may be absent.
        assert!(look(&loaded(&[])).is_ok());
    }
}
