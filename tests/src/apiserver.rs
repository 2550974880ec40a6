//! A double of the Kubernetes API server: real HTTP (1.1 or 2, TLS where asked
//! for), lists in pages, watches with bookmarks, `410 Gone`, and ways to
//! misbehave as real ones do. It stores objects of any kind and checks nothing
//! but what clients rely on: resource versions, field selectors, conflicts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

const GROUP: &str = "networking.istio.io";
const KINDS: [(&str, &str); 3] = [
    ("ServiceEntry", "serviceentries"),
    ("DestinationRule", "destinationrules"),
    ("VirtualService", "virtualservices"),
];

/// Plural, namespace (empty for none), name.
type Key = (String, String, String);

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

#[derive(Debug)]
struct Change {
    version: u64,
    kind: &'static str,
    key: Key,
    object: Value,
}

/// How it behaves.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Version of Istio's group that is served; `None`: the kinds are not
    /// installed.
    pub istio: Option<&'static str>,
    /// Takes connections and drops them.
    pub down: bool,
    /// Between two pieces of 7 bytes of every stream.
    pub slow: Option<Duration>,
    /// Says `410 Gone` with the answer, not in the stream.
    pub gone_at_once: bool,
    /// Ends each watch as soon as it is open.
    pub end_at_once: bool,
    /// Says 403 for paths that contain this.
    pub forbid: Option<String>,
    /// Says 429 with this `retryAfterSeconds`.
    pub busy: Option<u32>,
    /// Between two bookmarks.
    pub bookmarks: Duration,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            istio: Some("v1"),
            down: false,
            slow: None,
            gone_at_once: false,
            end_at_once: false,
            forbid: None,
            busy: None,
            bookmarks: Duration::from_mins(1),
        }
    }
}

#[derive(Debug)]
struct State {
    manners: Manners,
    objects: BTreeMap<Key, Value>,
    history: Vec<Change>,
    version: u64,
    /// Versions up to this one are forgotten.
    compacted: u64,
    pages: BTreeMap<String, (u64, Vec<Value>)>,
    seen: Vec<Seen>,
    streams: usize,
    /// Streams of an older era end.
    era: u64,
    uids: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Version and era.
    changed: watch::Sender<(u64, u64)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            changed: watch::Sender::new((1000, 0)),
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

impl State {
    fn change(&mut self, version: u64, kind: &'static str, key: Key, object: Value) {
        self.history.push(Change {
            version,
            kind,
            key,
            object,
        });
    }
}

fn acceptor((certificate, key): (&str, &str)) -> std::io::Result<tokio_rustls::TlsAcceptor> {
    let invalid = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| invalid(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    shared: Arc<Shared>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        if shared.state().manners.down {
            continue;
        }
        let shared = Arc::clone(&shared);
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut eras = shared.changed.subscribe();
            let serving = async {
                let serve = service_fn(|request| answer(Arc::clone(&shared), request));
                match acceptor {
                    None => {
                        let io = TokioIo::new(stream);
                        let server = hyper::server::conn::http1::Builder::new();
                        let _ = server.serve_connection(io, serve).await;
                    }
                    Some(acceptor) => {
                        let Ok(stream) = acceptor.accept(stream).await else {
                            return;
                        };
                        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                        let io = TokioIo::new(stream);
                        if is_h2 {
                            let server =
                                hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            let _ = server.serve_connection(io, serve).await;
                        } else {
                            let server = hyper::server::conn::http1::Builder::new();
                            let _ = server.serve_connection(io, serve).await;
                        }
                    }
                }
            };
            // A server that goes down takes its connections with it.
            let went_down = async {
                loop {
                    if shared.state().manners.down {
                        return;
                    }
                    if eras.changed().await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = serving => {}
                () = went_down => {}
            }
        });
    }
}

/// A body: whole, or a stream.
enum Answer {
    Whole(Full<Bytes>),
    Stream(mpsc::Receiver<std::io::Result<Bytes>>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body)
                .poll_frame(context)
                .map_err(|never: Infallible| match never {}),
            Self::Stream(stream) => stream
                .poll_recv(context)
                .map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }
}

fn whole(status: StatusCode, value: &Value) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(Full::new(value.to_string().into())));
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, json);
    response
}

fn failure(status: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
        "code": status, "reason": reason, "message": message,
    })
}

fn refuse(status: u16, reason: &str, message: &str) -> Response<Answer> {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    whole(code, &failure(status, reason, message))
}

/// What a path means.
struct Place {
    plural: String,
    namespace: String,
    name: String,
    status: bool,
    api_version: String,
}

fn place(path: &str) -> Option<Place> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let api_version = if parts.first() == Some(&"api") {
        let version = (*parts.get(1)?).to_owned();
        parts.drain(..2);
        version
    } else {
        let version = format!("{}/{}", parts.get(1)?, parts.get(2)?);
        parts.drain(..3);
        version
    };
    let namespace = if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        let namespace = parts[1].to_owned();
        parts.drain(..2);
        namespace
    } else {
        String::new()
    };
    Some(Place {
        api_version,
        plural: (*parts.first()?).to_owned(),
        namespace,
        name: (*parts.get(1).unwrap_or(&"")).to_owned(),
        status: parts.get(2) == Some(&"status"),
    })
}

fn parameters(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), unescape(value)))
        .collect()
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            at += 3;
        } else {
            out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `metadata.name=…` and `spec.nodeName=…`, as the real one has for these.
fn selected(selector: Option<&String>, object: &Value) -> bool {
    let Some(selector) = selector else {
        return true;
    };
    selector.split(',').all(|term| {
        let (path, wanted) = term.split_once('=').unwrap_or((term, ""));
        let pointer = format!("/{}", path.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str) == Some(wanted)
    })
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let method = request.method().clone();
    let authorized = request
        .headers()
        .get(hyper::header::AUTHORIZATION)
        .is_some_and(|value| value == "Bearer lab-token");
    let manners = {
        let mut state = shared.state();
        state.seen.push(Seen {
            method: method.to_string(),
            path: if query.is_empty() {
                path.clone()
            } else {
                format!("{path}?{query}")
            },
            at: Instant::now(),
        });
        state.manners.clone()
    };
    if !authorized {
        return Ok(refuse(401, "Unauthorized", "Unauthorized"));
    }
    if let Some(seconds) = manners.busy {
        let mut status = failure(429, "TooManyRequests", "too many requests");
        status["details"] = json!({ "retryAfterSeconds": seconds });
        return Ok(whole(StatusCode::TOO_MANY_REQUESTS, &status));
    }
    let forbidden = manners.forbid.as_ref();
    if forbidden.is_some_and(|part| path.contains(part)) {
        return Ok(refuse(403, "Forbidden", &format!("{path} is forbidden")));
    }
    if path.starts_with(&format!("/apis/{GROUP}"))
        && manners
            .istio
            .is_none_or(|version| !path.starts_with(&format!("/apis/{GROUP}/{version}")))
    {
        return Ok(refuse(
            404,
            "NotFound",
            "the server could not find the requested resource",
        ));
    }
    if let Some(version) = manners.istio
        && path == format!("/apis/{GROUP}/{version}")
    {
        return Ok(whole(StatusCode::OK, &resources(version)));
    }
    let Some(place) = place(&path) else {
        return Ok(refuse(404, "NotFound", &path));
    };
    let parameters = parameters(&query);
    Ok(match method {
        Method::GET if !place.name.is_empty() => get(&shared, &place),
        Method::GET if parameters.get("watch").is_some_and(|w| w == "true") => {
            open(&shared, place, &parameters, &manners)
        }
        Method::GET => list(&shared, &place, &parameters),
        Method::POST | Method::PATCH => {
            let bytes = request.into_body().collect().await;
            let bytes = bytes.map(http_body_util::Collected::to_bytes);
            let value = bytes.ok().and_then(|b| serde_json::from_slice(&b).ok());
            match value {
                Some(value) => write(&shared, &method, &place, value),
                None => refuse(400, "BadRequest", "not JSON"),
            }
        }
        _ => refuse(405, "MethodNotAllowed", "not here"),
    })
}

fn resources(version: &str) -> Value {
    let verbs = ["get", "list", "watch", "patch"];
    let mut list = Vec::new();
    for (kind, plural) in KINDS {
        for name in [plural.to_owned(), format!("{plural}/status")] {
            list.push(json!({
                "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": verbs,
            }));
        }
    }
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{version}"), "resources": list,
    })
}

fn get(shared: &Shared, place: &Place) -> Response<Answer> {
    let key = (
        place.plural.clone(),
        place.namespace.clone(),
        place.name.clone(),
    );
    match shared.state().objects.get(&key) {
        Some(object) => whole(StatusCode::OK, object),
        None => refuse(404, "NotFound", &format!("{} not found", place.name)),
    }
}

fn list(shared: &Shared, place: &Place, parameters: &BTreeMap<String, String>) -> Response<Answer> {
    let mut state = shared.state();
    let limit: usize = parameters
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(usize::MAX);
    let (version, mut items) = if let Some(token) = parameters.get("continue") {
        match state.pages.remove(token) {
            Some(page) => page,
            None => return refuse(410, "Expired", "the continue parameter is too old"),
        }
    } else {
        let selector = parameters.get("fieldSelector");
        let items: Vec<Value> = state
            .objects
            .iter()
            .filter(|((plural, namespace, _), _)| {
                *plural == place.plural
                    && (place.namespace.is_empty() || *namespace == place.namespace)
            })
            .map(|(_, object)| object.clone())
            .filter(|object| selected(selector, object))
            .collect();
        (state.version, items)
    };
    let mut meta = json!({ "resourceVersion": version.to_string() });
    if items.len() > limit {
        let rest = items.split_off(limit);
        let token = format!("page-{version}-{}", rest.len());
        meta["continue"] = json!(token);
        state.pages.insert(token, (version, rest));
    }
    drop(state);
    whole(
        StatusCode::OK,
        &json!({
            "kind": "List", "apiVersion": place.api_version, "metadata": meta, "items": items,
        }),
    )
}

fn write(shared: &Arc<Shared>, method: &Method, place: &Place, value: Value) -> Response<Answer> {
    let mut state = shared.state();
    let name = match *method {
        Method::POST => value["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        _ => place.name.clone(),
    };
    let key = (place.plural.clone(), place.namespace.clone(), name);
    let old = state.objects.get(&key).cloned();
    let (kind, mut object) = match (method, old) {
        (&Method::POST, Some(_)) => return refuse(409, "AlreadyExists", "it is there"),
        (&Method::POST, None) => {
            let long = value["message"].as_str().is_some_and(|m| m.len() > 1024);
            if long {
                return refuse(422, "Invalid", "message: can have at most 1024 bytes");
            }
            ("ADDED", value)
        }
        (_, None) => return refuse(404, "NotFound", "no such object"),
        (_, Some(mut old)) => {
            let stands = old["metadata"]["resourceVersion"].clone();
            let expected = &value["metadata"]["resourceVersion"];
            if !expected.is_null() && *expected != stands {
                return refuse(409, "Conflict", "the object has been modified");
            }
            if place.status {
                old["status"] = value["status"].clone();
            } else {
                old["spec"] = value["spec"].clone();
            }
            ("MODIFIED", old)
        }
    };
    state.version += 1;
    let version = state.version;
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    state.objects.insert(key.clone(), object.clone());
    state.change(version, kind, key, object.clone());
    let told = (state.version, state.era);
    drop(state);
    shared.changed.send_replace(told);
    whole(StatusCode::OK, &object)
}

fn gone(version: u64) -> Value {
    failure(
        410,
        "Expired",
        &format!("too old resource version: {version}"),
    )
}

fn open(
    shared: &Arc<Shared>,
    place: Place,
    parameters: &BTreeMap<String, String>,
    manners: &Manners,
) -> Response<Answer> {
    let from: u64 = parameters
        .get("resourceVersion")
        .and_then(|version| version.parse().ok())
        .unwrap_or(0);
    let too_old = from < shared.state().compacted;
    if too_old && manners.gone_at_once {
        return whole(StatusCode::GONE, &gone(from));
    }
    let (pieces, stream) = mpsc::channel(16);
    let teller = Teller {
        shared: Arc::clone(shared),
        pieces,
        slow: manners.slow,
        era: shared.state().era,
    };
    let wants_bookmarks = parameters
        .get("allowWatchBookmarks")
        .is_some_and(|wanted| wanted == "true");
    let bookmarks = wants_bookmarks.then_some(manners.bookmarks);
    let limit = parameters
        .get("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok())
        .map_or(Duration::from_mins(5), Duration::from_secs);
    let selector = parameters.get("fieldSelector").cloned();
    if manners.end_at_once {
        drop(teller);
    } else {
        teller.shared.state().streams += 1;
        tokio::spawn(async move {
            let told = async {
                if too_old {
                    let event = json!({ "type": "ERROR", "object": gone(from) });
                    teller.say(&event).await;
                } else {
                    teller
                        .tell(&place, selector.as_ref(), from, bookmarks)
                        .await;
                }
            };
            let _ = tokio::time::timeout(limit, told).await;
            teller.shared.state().streams -= 1;
        });
    }
    let mut response = Response::new(Answer::Stream(stream));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, json);
    response
}

struct Teller {
    shared: Arc<Shared>,
    pieces: mpsc::Sender<std::io::Result<Bytes>>,
    slow: Option<Duration>,
    era: u64,
}

impl Teller {
    fn is_cut(&self) -> bool {
        self.shared.state().era != self.era
    }

    /// Writes one event; whether the client is still there.
    async fn say(&self, event: &Value) -> bool {
        let line = Bytes::from(format!("{event}\n"));
        let Some(pause) = self.slow else {
            return self.pieces.send(Ok(line)).await.is_ok();
        };
        for piece in line.chunks(7) {
            if self.is_cut() {
                self.break_off().await;
                return false;
            }
            tokio::time::sleep(pause).await;
            if self
                .pieces
                .send(Ok(Bytes::copy_from_slice(piece)))
                .await
                .is_err()
            {
                return false;
            }
        }
        true
    }

    async fn break_off(&self) {
        let error = std::io::Error::other("cut");
        let _ = self.pieces.send(Err(error)).await;
    }

    async fn tell(
        &self,
        place: &Place,
        selector: Option<&String>,
        from: u64,
        bookmarks: Option<Duration>,
    ) {
        let mut changed = self.shared.changed.subscribe();
        let mut at = from;
        let mut bookmark = tokio::time::interval(bookmarks.unwrap_or(Duration::from_hours(1)));
        bookmark.tick().await;
        loop {
            changed.mark_unchanged();
            let (events, version, compacted) = {
                let state = self.shared.state();
                let events: Vec<Value> = state
                    .history
                    .iter()
                    .filter(|change| change.version > at)
                    .filter(|change| {
                        change.key.0 == place.plural
                            && (place.namespace.is_empty() || change.key.1 == place.namespace)
                            && selected(selector, &change.object)
                    })
                    .map(|change| json!({ "type": change.kind, "object": change.object }))
                    .collect();
                (events, state.version, state.compacted)
            };
            // What was forgotten before it was told cannot be told any more.
            if at < compacted {
                let event = json!({ "type": "ERROR", "object": gone(at) });
                self.say(&event).await;
                return;
            }
            for event in &events {
                if !self.say(event).await {
                    return;
                }
            }
            at = version;
            if self.is_cut() {
                // Half a line, as a server that dies leaves it.
                let _ = self
                    .pieces
                    .send(Ok(Bytes::from_static(b"{\"type\":\"MODI")))
                    .await;
                self.break_off().await;
                return;
            }
            tokio::select! {
                result = changed.changed() => if result.is_err() {
                    return;
                },
                _ = bookmark.tick() => if bookmarks.is_some() {
                    let object = json!({
                        "apiVersion": place.api_version, "kind": "Bookmark",
                        "metadata": { "resourceVersion": at.to_string() },
                    });
                    if !self.say(&json!({ "type": "BOOKMARK", "object": object })).await {
                        return;
                    }
                },
                () = self.pieces.closed() => return,
            }
        }
    }
}
