//! Follows the documents of the API server and gives what changes to the
//! keeper, many changes at once where they come at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::KINDS;
use super::discover::{Served, discover};
use super::kept::Kept;
use super::object::{Meta, Object, hash};
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::follow::{Event, follow};
use crate::kubernetes::health::{Board, Row};
use crate::policy::schema::meta::Kind;
use crate::policy::source::keeper::{Keeper, KeeperError};
use crate::policy::store::ObjectChange;

/// Quiet time in which changes gather.
const SETTLE: Duration = Duration::from_millis(20);
/// Between two questions whether a kind is served now.
const ABSENT: Duration = Duration::from_secs(20);
/// A kind counts as gone when it was not served for this long: while a server
/// starts it may answer 404 for kinds that it serves in a moment.
const GONE: Duration = Duration::from_mins(1);
/// How often it is noted that the server is in step.
const CONTACT: Duration = Duration::from_mins(1);

/// A document that is known.
#[derive(Debug)]
struct Known {
    hash: u64,
    /// `None` while only the state directory knows it.
    meta: Option<Meta>,
    has_status: bool,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<Arc<str>, Known>,
    pending: BTreeMap<Arc<str>, ObjectChange>,
}

/// The documents of the API server.
#[derive(Clone, Debug)]
pub struct Documents {
    state: Rc<RefCell<State>>,
    wake: Rc<Notify>,
    keeper: Keeper,
    kept: Kept,
    rows: Rc<Vec<(Kind, Row)>>,
    board: Board,
}

impl Documents {
    /// Puts what was kept in force. The server is asked by
    /// [`run`](Self::run).
    pub fn new(keeper: Keeper, kept: Kept, board: &Board) -> Self {
        let rows: Vec<(Kind, Row)> = KINDS
            .into_iter()
            .map(|kind| (kind, board.watch(plural(kind))))
            .collect();
        let documents = Self {
            state: Rc::default(),
            wake: Rc::default(),
            keeper,
            kept,
            rows: Rc::new(rows),
            board: board.clone(),
        };
        documents.read_kept();
        documents
    }

    fn read_kept(&self) {
        let found = self.kept.load();
        if found.is_empty() {
            return;
        }
        let age = self.kept.age();
        for (_, row) in &*self.rows {
            row.kept(age);
        }
        let mut state = self.state.borrow_mut();
        for (name, document) in found {
            state.known.entry(Arc::clone(&name)).or_insert(Known {
                hash: hash(&document.text),
                meta: None,
                has_status: false,
            });
            state
                .pending
                .entry(Arc::clone(&name))
                .or_insert(ObjectChange {
                    name,
                    modified: document.modified,
                    text: Some(document.text),
                });
        }
        drop(state);
        self.count();
        self.wake.notify_one();
    }

    /// Gives every document to the keeper again, which may read it in another
    /// way now.
    pub fn again(&self) {
        self.read_kept();
    }

    /// What reports need to know of a document.
    pub fn meta(&self, name: &str) -> Option<(Meta, bool)> {
        let state = self.state.borrow();
        let known = state.known.get(name)?;
        Some((known.meta.clone()?, known.has_status))
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.state.borrow().known.is_empty()
    }

    /// Waits until nothing waits to be given to the keeper.
    pub async fn settled(&self) {
        while !self.state.borrow().pending.is_empty() {
            sleep(SETTLE).await;
        }
    }

    /// Follows the server for ever.
    ///
    /// # Errors
    /// When the keeper has ended.
    pub async fn run(&self, client: &Client) -> Result<(), KeeperError> {
        let following = async {
            let kinds = self.rows.iter();
            join_all(kinds.map(|(kind, row)| self.follow(client, *kind, row))).await;
        };
        tokio::select! {
            () = following => Ok(()),
            error = self.pump() => Err(error),
            never = self.note_contact() => match never {},
        }
    }

    async fn note_contact(&self) -> std::convert::Infallible {
        loop {
            if self.board.is_synced() && self.board.report().error.is_none() {
                self.kept.touch();
            }
            sleep(CONTACT).await;
        }
    }

    /// Follows one kind, in whatever version it is served.
    async fn follow(&self, client: &Client, kind: Kind, row: &Row) {
        let mut backoff = Backoff::default();
        let mut missing: Option<Instant> = None;
        loop {
            match discover(client, kind).await {
                Ok(Some(served)) => {
                    if missing.take().is_some() {
                        tracing::info!("the API server serves {} now", plural(kind));
                    }
                    backoff.reset();
                    let api = Api::all_with(client.clone(), &served.resource);
                    let began = Instant::now();
                    follow(&api, None, row, |event| self.take(&served, row, event)).await;
                    if began.elapsed() < ABSENT {
                        sleep(backoff.wait()).await;
                    }
                }
                Ok(None) => {
                    let since = *missing.get_or_insert_with(|| {
                        tracing::warn!(
                            "the API server serves no {}; install the CustomResourceDefinitions",
                            plural(kind)
                        );
                        Instant::now()
                    });
                    let why = "the API server does not serve this kind; install the CustomResourceDefinitions";
                    row.nothing(why);
                    if since.elapsed() >= GONE {
                        self.drop_kind(kind);
                    }
                    sleep(ABSENT.mul_f64(fastrand::f64().mul_add(0.5, 0.75))).await;
                }
                Err(error) => {
                    row.failed(&error.to_string());
                    let wait = backoff.wait();
                    if backoff.failures() == 1 {
                        tracing::warn!(what = plural(kind), "{error}");
                    }
                    sleep(wait).await;
                }
            }
        }
    }

    fn take(&self, served: &Served, row: &Row, event: Event<DynamicObject>) {
        let mut state = self.state.borrow_mut();
        match event {
            Event::Listed(objects) => {
                let prefix = format!("{}/", served.resource.kind);
                let mut gone: HashSet<Arc<str>> = state
                    .known
                    .keys()
                    .filter(|name| name.starts_with(&prefix))
                    .cloned()
                    .collect();
                for object in objects {
                    let object = Object::read(&served.resource, object);
                    gone.remove(&object.name);
                    state.apply(object, served.has_status);
                }
                for name in gone {
                    state.delete(name);
                }
            }
            Event::Applied(object) => {
                let object = Object::read(&served.resource, object);
                state.apply(object, served.has_status);
            }
            Event::Deleted(object) => {
                state.delete(Object::read(&served.resource, object).name);
            }
        }
        let pending = !state.pending.is_empty();
        row.objects(state.count(&served.resource));
        drop(state);
        if pending {
            self.wake.notify_one();
        }
    }

    fn drop_kind(&self, kind: Kind) {
        let prefix = format!("{}/", kind.name());
        let mut state = self.state.borrow_mut();
        let names = state.known.keys().filter(|name| name.starts_with(&prefix));
        for name in names.cloned().collect::<Vec<_>>() {
            state.delete(name);
        }
        drop(state);
        self.count();
        self.wake.notify_one();
    }

    fn count(&self) {
        let state = self.state.borrow();
        for (kind, row) in &*self.rows {
            let prefix = format!("{}/", kind.name());
            let names = state.known.keys();
            row.objects(names.filter(|name| name.starts_with(&prefix)).count());
        }
    }

    /// Hands what changed to the keeper, and keeps it.
    async fn pump(&self) -> KeeperError {
        loop {
            self.wake.notified().await;
            sleep(SETTLE).await;
            let batch = self.state.borrow().batch();
            if batch.is_empty() {
                continue;
            }
            for change in &batch {
                let document = change.text.as_deref();
                let document = document.map(|text| (change.modified, text));
                if let Err(error) = self.kept.set(&change.name, document) {
                    tracing::warn!("{} is not kept for a restart: {error}", change.name);
                }
            }
            let given: Vec<(Arc<str>, Option<u64>)> = batch
                .iter()
                .map(|change| (Arc::clone(&change.name), change.text.as_deref().map(hash)))
                .collect();
            if let Err(error) = self.keeper.objects(batch).await {
                return error;
            }
            // What changed meanwhile waits for the next round.
            let mut state = self.state.borrow_mut();
            for (name, hash_given) in given {
                let now = state
                    .pending
                    .get(&name)
                    .map(|c| c.text.as_deref().map(hash));
                if now == Some(hash_given) {
                    state.pending.remove(&name);
                }
            }
            if !state.pending.is_empty() {
                self.wake.notify_one();
            }
        }
    }
}

impl State {
    fn apply(&mut self, object: Object, has_status: bool) {
        let hash = hash(&object.text);
        let before = self.known.insert(
            Arc::clone(&object.name),
            Known {
                hash,
                meta: Some(object.meta),
                has_status,
            },
        );
        // Writes to the status change no document.
        if before.is_some_and(|known| known.hash == hash) {
            return;
        }
        self.change(object.name, object.modified, Some(object.text));
    }

    fn delete(&mut self, name: Arc<str>) {
        if self.known.remove(&name).is_some() {
            self.change(name, SystemTime::now(), None);
        }
    }

    fn change(&mut self, name: Arc<str>, modified: SystemTime, text: Option<String>) {
        let change = ObjectChange {
            name: Arc::clone(&name),
            modified,
            text,
        };
        self.pending.insert(name, change);
    }

    fn count(&self, resource: &ApiResource) -> usize {
        let prefix = format!("{}/", resource.kind);
        let names = self.known.keys();
        names.filter(|name| name.starts_with(&prefix)).count()
    }

    fn batch(&self) -> Vec<ObjectChange> {
        let changes = self.pending.values();
        changes
            .map(|change| ObjectChange {
                name: Arc::clone(&change.name),
                modified: change.modified,
                text: change.text.clone(),
            })
            .collect()
    }
}

/// As the API server and RBAC name the kind.
pub const fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::ServiceEntry => "serviceentries",
        Kind::DestinationRule => "destinationrules",
        Kind::VirtualService => "virtualservices",
        Kind::Secret => "secrets",
    }
}
