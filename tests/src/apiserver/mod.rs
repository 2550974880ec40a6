//! A double of the Kubernetes API server: real HTTP (1.1 or 2, TLS where asked
//! for), lists in pages, watches with bookmarks, `410 Gone`, and ways to
//! misbehave as real ones do. It stores objects of any kind and checks nothing
//! but what clients rely on: resource versions, field selectors, conflicts.

mod answer;
mod body;
mod connection;
mod request;
mod state;
mod watch;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::{oneshot, watch as channel};

use connection::{accept, acceptor};
pub use state::Manners;
use state::{Shared, State};

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET`, `POST`, `PATCH`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// When.
    pub at: Instant,
}

impl Seen {
    /// Whether it opens a watch.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }
}

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    secure: bool,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ApiServer {
    /// Serves on a listener, with TLS if there is a certificate and key (PEM).
    ///
    /// # Errors
    /// When the certificate cannot be used or a thread not be started.
    pub fn start(listener: TcpListener, tls: Option<(&str, &str)>) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let acceptor = tls.map(acceptor).transpose()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                manners: Manners::default(),
                objects: BTreeMap::new(),
                history: Vec::new(),
                version: 1000,
                compacted: 0,
                pages: BTreeMap::new(),
                seen: Vec::new(),
                streams: 0,
                era: 0,
                uids: 0,
            }),
            changed: channel::Sender::new((1000, 0)),
        });
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let secure = acceptor.is_some();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new()
            .name("apiserver".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, acceptor, serving) => {}
                        _ = stopped => {}
                    }
                });
                runtime.shutdown_background();
            })?;
        Ok(Self {
            shared,
            address,
            secure,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig for it, trusting an authority (PEM) if it has TLS.
    #[must_use]
    pub fn kubeconfig(&self, authority: &str) -> String {
        use base64::Engine;
        let scheme = if self.secure { "https" } else { "http" };
        let trust = if self.secure {
            let text = base64::engine::general_purpose::STANDARD.encode(authority);
            format!("\n    certificate-authority-data: {text}")
        } else {
            String::new()
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster:\n    server: {scheme}://{}{trust}\n\
             contexts:\n- name: lab\n  context: {{ cluster: lab, user: lab }}\nusers:\n- name: lab\n  user: {{ token: lab-token }}\n",
            self.address
        )
    }

    /// Changes how it behaves from now on.
    pub fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.shared.state().manners);
    }

    /// Creates or replaces an object, as `kubectl apply` would. Its new
    /// resource version.
    pub fn apply(&self, plural: &str, mut object: Value) -> u64 {
        let mut state = self.shared.state();
        let text = |field: &str| {
            let value = object["metadata"][field].as_str();
            value.unwrap_or_default().to_owned()
        };
        let key = (plural.to_owned(), text("namespace"), text("name"));
        let old = state.objects.get(&key).cloned();
        state.version += 1;
        let version = state.version;
        let (uid, generation, kind) = if let Some(old) = &old {
            let same = old["spec"] == object["spec"];
            let before = old["metadata"]["generation"].as_i64().unwrap_or(1);
            let uid = old["metadata"]["uid"].clone();
            (uid, if same { before } else { before + 1 }, "MODIFIED")
        } else {
            state.uids += 1;
            let uid = format!("00000000-0000-4000-8000-{:012x}", state.uids);
            (json!(uid), 1, "ADDED")
        };
        let meta = &mut object["metadata"];
        if meta["uid"].is_null() {
            meta["uid"] = uid;
        }
        meta["generation"] = json!(generation);
        meta["resourceVersion"] = json!(version.to_string());
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!("2026-01-31T12:00:00Z");
        }
        if let Some(status) = old.as_ref().and_then(|old| old.get("status"))
            && object["status"].is_null()
        {
            object["status"] = status.clone();
        }
        state.objects.insert(key.clone(), object.clone());
        state.change(version, kind, key, object);
        let told = (state.version, state.era);
        drop(state);
        self.shared.changed.send_replace(told);
        version
    }

    /// Deletes an object.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.shared.state();
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = state.objects.remove(&key) {
            state.version += 1;
            let version = state.version;
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            state.change(version, "DELETED", key, object);
        }
        let told = (state.version, state.era);
        drop(state);
        self.shared.changed.send_replace(told);
    }

    /// An object as it is now.
    #[must_use]
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.shared.state().objects.get(&key).cloned()
    }

    /// Every object of a kind.
    #[must_use]
    pub fn objects(&self, plural: &str) -> Vec<Value> {
        let state = self.shared.state();
        let objects = state.objects.iter();
        let kind = objects.filter(|(key, _)| key.0 == plural);
        kind.map(|(_, object)| object.clone()).collect()
    }

    /// Forgets what happened until now: older versions are `410 Gone`.
    pub fn compact(&self) {
        let mut state = self.shared.state();
        state.compacted = state.version;
        state.history.clear();
        state.pages.clear();
    }

    /// Breaks every stream off, in the middle of what it says.
    pub fn cut(&self) {
        let mut state = self.shared.state();
        state.era += 1;
        let told = (state.version, state.era);
        drop(state);
        self.shared.changed.send_replace(told);
    }

    /// Streams that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.shared.state().streams
    }

    /// Requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
