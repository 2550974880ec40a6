//! One cached configuration and its rotation.

use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use super::config::{self, TlsConfig};
use super::error::SecretError;
use super::source::{self, Finder, Fingerprint, Pieces};
use super::status::SecretStatus;
use super::{Look, Secrets};
use crate::policy::model::ClientTls;

type Outcome = Result<Arc<TlsConfig>, SecretError>;

#[derive(Debug)]
pub(super) struct Entry {
    tls: ClientTls,
    namespace: Arc<str>,
    /// In force.
    current: ArcSwap<Outcome>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    watched: Vec<PathBuf>,
    /// Taken before the files were read, so that a change while reading shows
    /// at the next look.
    fingerprint: Fingerprint,
    digest: u64,
    version: u64,
    loaded: Timestamp,
    /// The newest version, where it cannot be used and an older one is in force.
    refused: Option<SecretError>,
    /// Read again at the next look even when nothing shows: two changes
    /// within one tick of the file system's clock look like one, and two
    /// files are never replaced at one moment.
    again: bool,
}

impl Entry {
    pub(super) fn load(secrets: &Secrets, tls: ClientTls, namespace: Arc<str>) -> Self {
        let mut reading = Reading::new(secrets, &tls, &namespace, &[]);
        let outcome = reading.build(secrets, &tls, 1);
        match &outcome {
            Err(error) => tracing::error!(%error, "TLS material cannot be used"),
            Ok(config) => {
                for warning in &config.warnings {
                    tracing::warn!("{warning}");
                }
            }
        }
        let version = u64::from(outcome.is_ok());
        Self {
            tls,
            namespace,
            current: ArcSwap::from_pointee(outcome),
            state: Mutex::new(State {
                watched: reading.watched,
                fingerprint: reading.fingerprint,
                digest: reading.digest,
                version,
                loaded: Timestamp::now(),
                refused: None,
                again: true,
            }),
        }
    }

    pub(super) fn current(&self) -> Outcome {
        Outcome::clone(&self.current.load())
    }

    /// Looks whether anything changed and takes it over.
    pub(super) fn refresh(&self, secrets: &Secrets, look: Look) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = self.waits_for_time(&state);
        let nothing_moved = || source::fingerprint(&state.watched) == state.fingerprint;
        if look == Look::Files && !state.again && !waits && nothing_moved() {
            return;
        }
        let mut reading = Reading::new(secrets, &self.tls, &self.namespace, &state.watched);
        let moved = reading.fingerprint != state.fingerprint;
        let changed = reading.digest != state.digest;
        state.again = moved || changed;
        state.watched = std::mem::take(&mut reading.watched);
        state.fingerprint = std::mem::take(&mut reading.fingerprint);
        if !changed && !waits && look != Look::Everything {
            // Seen unusable at two looks: no longer a replacement half done.
            if let Some(error) = &state.refused
                && !state.again
            {
                tracing::error!(%error, "new TLS material cannot be used; the old stays in force");
            }
            return;
        }
        state.digest = reading.digest;
        let version = state.version + 1;
        match (
            reading.build(secrets, &self.tls, version),
            &**self.current.load(),
        ) {
            (Ok(config), _) => {
                let serial = config.certificate.as_ref().map(|c| c.serial.clone());
                tracing::info!(version, serial, "TLS material replaced");
                state.version = version;
                state.loaded = Timestamp::now();
                state.refused = None;
                let before = self.current.swap(Arc::new(Ok(config)));
                // Only now: whoever sees it finds the new one.
                if let Ok(before) = &*before {
                    before.replaced.set();
                }
            }
            (Err(error), Ok(_)) => state.refused = Some(error),
            (Err(error), Err(_)) => self.current.store(Arc::new(Err(error))),
        }
    }

    /// A certificate that is not valid yet becomes so with no file changing.
    fn waits_for_time(&self, state: &State) -> bool {
        let early = |error: &SecretError| matches!(error, SecretError::NotYetValid { .. });
        state.refused.as_ref().is_some_and(early)
            || self.current.load().as_ref().as_ref().is_err_and(early)
    }

    pub(super) fn status(&self) -> SecretStatus {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        SecretStatus::new(
            &self.tls,
            &self.namespace,
            &self.current.load(),
            state.refused.as_ref(),
            state.version,
            state.loaded,
        )
    }
}

/// One look at the files of an entry.
struct Reading {
    watched: Vec<PathBuf>,
    fingerprint: Fingerprint,
    /// Of all contents, or of the error.
    digest: u64,
    pieces: Option<Result<Pieces, SecretError>>,
}

impl Reading {
    fn new(secrets: &Secrets, tls: &ClientTls, namespace: &str, known: &[PathBuf]) -> Self {
        let before = source::fingerprint(known);
        let published = secrets.published.load();
        let cluster = secrets.cluster.load();
        let svid = secrets.svid.load();
        let mut finder = Finder {
            settings: &secrets.settings,
            published: [&published, &cluster],
            svid: &svid,
            namespace,
            watched: Vec::new(),
        };
        let pieces = finder.find(tls);
        let watched = finder.watched;
        // The first look, or other files than before: there is no older state.
        let fingerprint = if watched == known {
            before
        } else {
            source::fingerprint(&watched)
        };
        let mut hasher = DefaultHasher::new();
        match &pieces {
            Ok(pieces) => {
                for piece in pieces.all() {
                    hasher.write(piece.path.as_os_str().as_encoded_bytes());
                    hasher.write_usize(piece.bytes.len());
                    hasher.write(&piece.bytes);
                }
            }
            Err(error) => hasher.write(error.to_string().as_bytes()),
        }
        Self {
            watched,
            fingerprint,
            digest: hasher.finish(),
            pieces: Some(pieces),
        }
    }

    fn build(&mut self, secrets: &Secrets, tls: &ClientTls, version: u64) -> Outcome {
        let pieces = self
            .pieces
            .take()
            .unwrap_or_else(|| Ok(Pieces::default()))?;
        config::build(tls, &pieces, || secrets.system.get(), version).map(Arc::new)
    }
}
