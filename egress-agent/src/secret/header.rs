//! Credentials that the agent puts into requests
//! (`egress-agent.dev/inject-credential`): found where those of TLS are, read
//! again when they change, and shown to nobody.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use super::error::{Purpose, SecretError};
use super::source::{self, Finder, Fingerprint};
use super::{Look, Secrets};
use crate::policy::model::{ClientTls, CredentialForm, HeaderCredential};

type Key = (HeaderCredential, Arc<str>);
type Outcome = Result<HeaderValue, SecretError>;

/// Every such credential in use.
#[derive(Debug, Default)]
pub(super) struct Headers(ArcSwap<HashMap<Key, Arc<Entry>>>);

impl Headers {
    /// Looks once at all of them.
    pub(super) fn refresh(&self, secrets: &Secrets, look: Look) {
        for ((credential, namespace), entry) in &**self.0.load() {
            entry.refresh(secrets, credential, namespace, look);
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// In force. Its `Debug` shows no value: it is marked as sensitive.
    current: ArcSwap<Outcome>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    watched: Vec<PathBuf>,
    fingerprint: Fingerprint,
    /// Read again at the next look even when nothing shows: two changes within
    /// one tick of the file system's clock look like one.
    again: bool,
}

impl Secrets {
    /// The value that requests of a client in `namespace` are to carry. The
    /// first call reads it; later ones find it ready, as it is now.
    ///
    /// # Errors
    /// What keeps it from being used: the request must not go out without it.
    pub fn header_value(
        &self,
        credential: &HeaderCredential,
        namespace: &Arc<str>,
    ) -> Result<HeaderValue, SecretError> {
        let key = (credential.clone(), Arc::clone(namespace));
        if let Some(entry) = self.headers.0.load().get(&key) {
            return Outcome::clone(&entry.current.load());
        }
        let _writing = self.write();
        let entries = self.headers.0.load();
        if let Some(entry) = entries.get(&key) {
            return Outcome::clone(&entry.current.load());
        }
        let mut reading = Reading::new(self, credential, namespace);
        if let Err(error) = &reading.outcome {
            tracing::error!(%error, "a credential for requests cannot be used");
        }
        let entry = Arc::new(Entry {
            current: ArcSwap::from_pointee(reading.outcome.clone()),
            state: Mutex::new(State {
                fingerprint: std::mem::take(&mut reading.fingerprint),
                watched: reading.watched,
                again: true,
            }),
        });
        let mut entries = HashMap::clone(&entries);
        entries.insert(key, entry);
        self.headers.0.store(Arc::new(entries));
        reading.outcome
    }

    /// Forgets the credentials for requests that no policy names any more.
    pub fn retain_header_values(&self, used: impl Fn(&HeaderCredential) -> bool) {
        let _writing = self.write();
        let mut entries = HashMap::clone(&self.headers.0.load());
        entries.retain(|(credential, _), _| used(credential));
        self.headers.0.store(Arc::new(entries));
    }
}

impl Entry {
    fn refresh(
        &self,
        secrets: &Secrets,
        credential: &HeaderCredential,
        namespace: &Arc<str>,
        look: Look,
    ) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing_moved = || source::fingerprint(&state.watched) == state.fingerprint;
        if look == Look::Files && !state.again && nothing_moved() {
            return;
        }
        let reading = Reading::new(secrets, credential, namespace);
        state.again = reading.fingerprint != state.fingerprint;
        state.fingerprint = reading.fingerprint;
        state.watched = reading.watched;
        let secret = &*credential.secret;
        match (reading.outcome, &**self.current.load()) {
            (Ok(new), Ok(old)) if new == *old => {}
            (Ok(new), _) => {
                tracing::info!(secret, "credential for requests replaced");
                self.current.store(Arc::new(Ok(new)));
                state.again = true;
            }
            // What was good stays in force. Seen unusable at two looks, it is
            // no longer a replacement half done.
            (Err(error), Ok(_)) => {
                if !state.again {
                    tracing::error!(
                        secret,
                        %error,
                        "a new credential for requests cannot be used; the old stays in force"
                    );
                }
            }
            (Err(error), Err(_)) => self.current.store(Arc::new(Err(error))),
        }
    }
}

/// One look at the places of a credential.
struct Reading {
    watched: Vec<PathBuf>,
    fingerprint: Fingerprint,
    outcome: Outcome,
}

impl Reading {
    fn new(secrets: &Secrets, credential: &HeaderCredential, namespace: &str) -> Self {
        let (published, cluster) = (secrets.published.load(), secrets.cluster.load());
        let svid = secrets.svid.load();
        let mut finder = Finder {
            settings: &secrets.settings,
            published: [&published, &cluster],
            svid: &svid,
            namespace,
            watched: Vec::new(),
        };
        let outcome = value(&mut finder, secrets, credential);
        Self {
            fingerprint: source::fingerprint(&finder.watched),
            watched: finder.watched,
            outcome,
        }
    }
}

fn value(finder: &mut Finder<'_>, secrets: &Secrets, credential: &HeaderCredential) -> Outcome {
    let text = match &credential.form {
        CredentialForm::Bearer { key } => {
            let token = part(finder, secrets, credential, key)?;
            let mut text = Zeroizing::new(b"Bearer ".to_vec());
            text.extend_from_slice(&token);
            text
        }
        CredentialForm::Basic { username, password } => {
            let mut pair = part(finder, secrets, credential, username)?;
            pair.push(b':');
            pair.extend_from_slice(&part(finder, secrets, credential, password)?);
            Zeroizing::new(["Basic ", &STANDARD.encode(&*pair)].concat().into_bytes())
        }
        CredentialForm::Plain { key } => part(finder, secrets, credential, key)?,
    };
    let mut value = HeaderValue::from_bytes(&text).map_err(|_| {
        let path = PathBuf::from(&*credential.secret);
        let why = "it holds bytes that no header may have".to_owned();
        SecretError::Malformed(Purpose::HeaderValue, path, why)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// One value of the secret, without the line's end that files have.
fn part(
    finder: &mut Finder<'_>,
    secrets: &Secrets,
    credential: &HeaderCredential,
    key: &str,
) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    // `LoadCredential=NAME:FILE` of a unit is the value itself.
    let single = secrets
        .settings
        .credentials
        .as_ref()
        .map(|root| root.join(&*credential.secret))
        .filter(|path| path.is_file());
    let piece = match finder.credential(&places(credential), &credential.secret, &credential.secret)
    {
        Ok(found) => finder
            .value(&found, Purpose::HeaderValue, &[key])?
            .ok_or_else(|| SecretError::NoKeyInCredential {
                name: credential.secret.to_string(),
                place: found.place(),
                wanted: "the key that `inject-credential` names",
            })?,
        Err(error) => match single {
            Some(path) => finder.file(Purpose::HeaderValue, &path)?,
            None => return Err(error),
        },
    };
    let mut bytes = Zeroizing::new(piece.bytes.to_vec());
    while bytes.last().is_some_and(|last| b"\r\n".contains(last)) {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(SecretError::Empty(Purpose::HeaderValue, piece.path));
    }
    Ok(bytes)
}

/// The search takes the places from a `tls` block.
fn places(credential: &HeaderCredential) -> ClientTls {
    ClientTls {
        secret_namespaces: credential.secret_namespaces.clone(),
        ..ClientTls::simple()
    }
}
