//! Keeps the [`Store`] in step with the files, on a thread of its own: reading,
//! compiling and syncing files must not hold up the rest of the agent.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};

use super::files::Watcher;
use super::reader::Reader;
use crate::flag::Side;
use crate::memory;
use crate::numbers::Known;
use crate::policy::Options;
use crate::policy::diagnostic::{Diagnostic, Severity};
use crate::policy::snapshot::Snapshot;
use crate::policy::store::{Change, Counts, DocumentStatus, ObjectChange, Store, StoreError};

/// Orders that wait, at most; who brings more waits as well.
const ORDERS_MAX: usize = 16;
/// Looks in a row while new directories keep appearing.
const LOOKS_MAX: usize = 16;

/// Where the documents are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Files and directories (setting `policy`).
    pub paths: Vec<PathBuf>,
    /// State directory, for applied documents.
    pub state: PathBuf,
    /// How documents are read.
    pub options: Options,
    /// Numbers of services that an agent before gave out.
    pub known: Known,
}

/// The policy in force.
#[derive(Clone, Debug)]
pub struct Published {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// How many documents there are.
    pub counts: Counts,
    /// Warnings about documents that do not fit each other.
    pub warnings: Arc<[Diagnostic]>,
    /// When it was made.
    pub at: SystemTime,
    /// Why files are looked at every 2 s only; `None` when the kernel tells of
    /// changes.
    pub watch_fault: Option<Box<str>>,
}

/// Why the keeper did not do what it should.
#[derive(Debug)]
pub enum KeeperError {
    /// Its thread cannot be started.
    Thread(io::Error),
    /// Documents cannot be kept.
    Store(StoreError),
    /// It has ended.
    Ended,
}

impl KeeperError {
    /// Whose side this is.
    pub const fn side(&self) -> Side {
        Side::Policy
    }
}

impl fmt::Display for KeeperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread(error) => write!(f, "cannot start the thread of the policy: {error}"),
            Self::Store(error) => error.fmt(f),
            Self::Ended => f.write_str("the thread of the policy has ended; see the log"),
        }
    }
}

impl std::error::Error for KeeperError {}

type Reply<T> = oneshot::Sender<T>;

enum Order {
    Apply(String, bool, Reply<Result<Vec<Change>, StoreError>>),
    Delete(String, bool, Reply<Result<Vec<Change>, StoreError>>),
    Documents(Reply<Vec<DocumentStatus>>),
    Reload(Vec<PathBuf>, Options, Reply<()>),
    Objects(Vec<ObjectChange>, Reply<()>),
    Options(Box<dyn FnOnce(&mut Options) + Send>, Reply<()>),
}

/// Gives orders to the keeper, which ends when the last of its handles is
/// dropped.
#[derive(Clone, Debug)]
pub struct Keeper {
    orders: mpsc::Sender<Order>,
    published: watch::Receiver<Published>,
}

impl Keeper {
    /// Starts the thread, and waits for the first snapshot.
    ///
    /// # Errors
    /// When the thread cannot be started or the state directory cannot be
    /// used. Documents that are wrong are no error.
    pub async fn start(places: Places) -> Result<Self, KeeperError> {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let (ready, started) = oneshot::channel();
        std::thread::Builder::new()
            .name("policy".into())
            .spawn(move || body(places, inbox, ready))
            .map_err(KeeperError::Thread)?;
        let published = started.await.map_err(|_| KeeperError::Ended)??;
        Ok(Self { orders, published })
    }

    /// The policy in force, and how to wait for the next.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }

    async fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, KeeperError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.orders.send(order(reply)).await;
        sent.map_err(|_| KeeperError::Ended)?;
        answer.await.map_err(|_| KeeperError::Ended)
    }

    /// Takes documents and keeps them. They are published before this returns.
    /// With `dry_run`, nothing is done.
    ///
    /// # Errors
    /// When they cannot be kept.
    pub async fn apply(&self, text: String, dry_run: bool) -> Result<Vec<Change>, KeeperError> {
        self.ask(|reply| Order::Apply(text, dry_run, reply))
            .await?
            .map_err(KeeperError::Store)
    }

    /// Removes applied documents that a text names. It is published before
    /// this returns. With `dry_run`, nothing is done.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub async fn delete(&self, text: String, dry_run: bool) -> Result<Vec<Change>, KeeperError> {
        self.ask(|reply| Order::Delete(text, dry_run, reply))
            .await?
            .map_err(KeeperError::Store)
    }

    /// Every document and what became of it.
    ///
    /// # Errors
    /// When the keeper has ended.
    pub async fn documents(&self) -> Result<Vec<DocumentStatus>, KeeperError> {
        self.ask(Order::Documents).await
    }

    /// Takes objects of a Kubernetes API server. They are published before this
    /// returns.
    ///
    /// # Errors
    /// When the keeper has ended.
    pub async fn objects(&self, changes: Vec<ObjectChange>) -> Result<(), KeeperError> {
        self.ask(|reply| Order::Objects(changes, reply)).await
    }

    /// Changes how documents are compiled. It is published before this
    /// returns.
    ///
    /// # Errors
    /// When the keeper has ended.
    pub async fn change_options(
        &self,
        change: impl FnOnce(&mut Options) + Send + 'static,
    ) -> Result<(), KeeperError> {
        self.ask(|reply| Order::Options(Box::new(change), reply))
            .await
    }

    /// Reads every file again, perhaps from other places or in another way. It
    /// is published before this returns.
    ///
    /// # Errors
    /// When the keeper has ended.
    pub async fn reload(&self, paths: Vec<PathBuf>, options: Options) -> Result<(), KeeperError> {
        self.ask(|reply| Order::Reload(paths, options, reply)).await
    }
}

fn tell(problems: Vec<Diagnostic>) {
    for problem in problems {
        match problem.severity {
            Severity::Note => tracing::debug!("{problem}"),
            Severity::Warning | Severity::Error => tracing::warn!("{problem}"),
        }
    }
}

/// What the thread has.
struct Body {
    store: Store,
    reader: Reader,
    watcher: Watcher,
}

impl Body {
    /// Looks at the files until no directory is new.
    fn look(&mut self) {
        for _ in 0..LOOKS_MAX {
            let changes = self.reader.changes();
            tell(self.store.replace(changes.files));
            if !self.watcher.watch(&changes.directories) {
                return;
            }
        }
        self.watcher.look_again();
    }

    fn compile(&mut self) -> Published {
        let began = std::time::Instant::now();
        let (snapshot, warnings) = self.store.compile();
        let warnings: Arc<[Diagnostic]> = warnings.into();
        tracing::debug!(
            generation = snapshot.generation,
            services = snapshot.services.len(),
            took = ?began.elapsed(),
            "policy compiled"
        );
        Published {
            snapshot,
            counts: self.store.counts(),
            warnings,
            at: SystemTime::now(),
            watch_fault: self.watcher.fault().map(Into::into),
        }
    }

    /// Publishes what changed.
    fn publish(&mut self, publisher: &watch::Sender<Published>) {
        if self.store.is_changed() {
            publisher.send_replace(self.compile());
            memory::give_back();
            return;
        }
        // Texts that cannot be read change no document.
        let counts = self.store.counts();
        let fault = self.watcher.fault();
        publisher.send_if_modified(|published| {
            let other = published.counts != counts || published.watch_fault.as_deref() != fault;
            if other {
                published.counts = counts;
                published.watch_fault = fault.map(Into::into);
            }
            other
        });
    }
}

type Started = Result<watch::Receiver<Published>, KeeperError>;

fn body(places: Places, inbox: mpsc::Receiver<Order>, ready: oneshot::Sender<Started>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            // Whoever waits for it may have gone.
            let _ = ready.send(Err(KeeperError::Thread(error)));
            return;
        }
    };
    runtime.block_on(async move {
        match Store::open(places.options, &places.state) {
            Ok(mut store) => {
                store.go_on_with(places.known);
                let mut body = Body {
                    store,
                    reader: Reader::new(places.paths),
                    watcher: Watcher::new(),
                };
                body.look();
                let (publisher, published) = watch::channel(body.compile());
                if ready.send(Ok(published)).is_ok() {
                    memory::give_back();
                    serve(body, inbox, &publisher).await;
                }
            }
            Err(error) => {
                let _ = ready.send(Err(KeeperError::Store(error)));
            }
        }
    });
}

async fn serve(
    mut body: Body,
    mut inbox: mpsc::Receiver<Order>,
    publisher: &watch::Sender<Published>,
) {
    loop {
        let order = tokio::select! {
            order = inbox.recv() => match order {
                Some(order) => Some(order),
                None => return,
            },
            () = body.watcher.changed() => None,
        };
        // Who asked may have gone; what was asked for is done all the same.
        match order {
            None => {
                body.look();
                body.publish(publisher);
            }
            Some(Order::Apply(text, dry_run, reply)) => {
                let result = body.store.apply(text, dry_run);
                body.publish(publisher);
                let _ = reply.send(result);
            }
            Some(Order::Delete(text, dry_run, reply)) => {
                let result = body.store.delete_text(text, dry_run);
                body.publish(publisher);
                let _ = reply.send(result);
            }
            Some(Order::Objects(changes, reply)) => {
                tell(body.store.replace_objects(changes));
                body.publish(publisher);
                let _ = reply.send(());
            }
            Some(Order::Options(change, reply)) => {
                let mut options = body.store.options().clone();
                change(&mut options);
                body.store.set_options(options);
                body.publish(publisher);
                let _ = reply.send(());
            }
            Some(Order::Documents(reply)) => {
                let _ = reply.send(body.store.documents());
            }
            Some(Order::Reload(paths, options, reply)) => {
                body.store.set_options(options);
                body.reader.set_paths(paths);
                body.reader.forget();
                body.look();
                body.publish(publisher);
                let _ = reply.send(());
            }
        }
    }
}
