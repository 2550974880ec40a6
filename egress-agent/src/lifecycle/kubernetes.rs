//! Joins the agent to a Kubernetes API server, on a thread of its own: reading
//! thousands of objects must not hold up the rest.
//!
//! What an earlier run kept is in force at once; then the server is followed,
//! and as long as it is away everything stays as it was.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use super::StartError;
use crate::capture::sockets::{NetNs, Sockets};
use crate::kubernetes::KubernetesError;
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::client::{Access, Clients};
use crate::kubernetes::follow::follow;
use crate::kubernetes::health::Board;
use crate::policy::model::Locality;
use crate::policy::source::keeper::Keeper;
use crate::policy::source::kubernetes::documents::Documents;
use crate::policy::source::kubernetes::kept::Kept;
use crate::policy::source::kubernetes::report;
use crate::secret::Secrets;
use crate::secret::kubernetes::{Watches, wanted};
use crate::settings::Settings;
use crate::workload::directory::Directory;
use crate::workload::kubernetes::node::locality;
use crate::workload::kubernetes::pods::Table;
use crate::workload::pods::{PodInfo, Pods};

/// Time that a start waits for the first lists; with documents of an earlier
/// run in force, less.
const FIRST_LISTS: Duration = Duration::from_secs(10);
const FIRST_LISTS_KEPT: Duration = Duration::from_secs(2);
/// Between two looks at the labels of our own node.
const NODE: Duration = Duration::from_mins(10);
/// Time for the node to be read.
const NODE_DEADLINE: Duration = Duration::from_secs(20);
/// Quiet time before pods are kept, and before the Secrets that policies name
/// are counted anew.
const SETTLE: Duration = Duration::from_millis(100);
const KEEP_PODS: Duration = Duration::from_secs(2);

const PODS: &str = "pods.json";
const LOCALITY: &str = "locality.json";

/// What the rooms give to the cluster, and take from it.
pub(super) struct Rooms {
    pub(super) keeper: Keeper,
    pub(super) secrets: Arc<Secrets>,
    pub(super) directory: Directory,
    pub(super) sockets: Sockets,
    pub(super) netns: NetNs,
}

enum Order {
    /// Documents are read in another way now.
    Again,
}

/// The cluster as the control runtime sees it.
pub(super) struct Cluster {
    pub(super) board: Board,
    /// Told when pods came or went.
    pub(super) pods: Arc<Notify>,
    /// Where the node says that it is.
    pub(super) locality: watch::Receiver<Option<Locality>>,
    orders: mpsc::UnboundedSender<Order>,
}

impl Cluster {
    /// Joins, and waits a while for the first lists.
    ///
    /// # Errors
    /// When nothing says how the server is reached, or the state directory
    /// cannot be used. That the server cannot be reached is no error.
    pub(super) async fn join(settings: &Settings, rooms: Rooms) -> Result<Self, StartError> {
        let node = node_name(settings)?;
        let kept = Kept::open(&settings.state_dir).map_err(|error| {
            StartError::Kubernetes(KubernetesError::Local("the state directory", error))
        })?;
        let access = Access {
            kubeconfig: settings.kubeconfig.clone(),
            sockets: rooms.sockets.clone(),
            netns: rooms.netns.clone(),
        };
        let board = Board::new(&node);
        let pods = Arc::new(Notify::new());
        let (told, found) = watch::channel(
            kept.value(LOCALITY)
                .map(|text: String| Locality::parse(&text)),
        );
        let (orders, inbox) = mpsc::unbounded_channel();
        let (started, ready) = oneshot::channel();
        let body = Body {
            node: Arc::clone(&node),
            report: settings.kubernetes_report.is_on(),
            default_namespace: Arc::clone(&settings.namespace.0),
            kept,
            access,
            rooms,
            board: board.clone(),
            pods: Arc::clone(&pods),
            locality: told,
        };
        std::thread::Builder::new()
            .name("kubernetes".into())
            .spawn(move || body.run(inbox, started))
            .map_err(|error| StartError::Kubernetes(KubernetesError::Local("a thread", error)))?;
        let ended = || {
            let error = std::io::Error::other("it has ended; see the log");
            StartError::Kubernetes(KubernetesError::Local("the thread of Kubernetes", error))
        };
        ready
            .await
            .map_err(|_| ended())?
            .map_err(StartError::Kubernetes)?;
        Ok(Self {
            board,
            pods,
            locality: found,
            orders,
        })
    }

    /// Gives every document to the keeper again.
    pub(super) fn read_again(&self) {
        // A thread that has ended was told of in the log.
        let _ = self.orders.send(Order::Again);
    }
}

/// The node's name: as set, else the host's, as kubelet does it.
fn node_name(settings: &Settings) -> Result<Arc<str>, StartError> {
    if let Some(name) = &settings.node_name {
        return Ok(Arc::clone(&name.0));
    }
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy().to_ascii_lowercase();
    if name.is_empty() {
        let why = "this host has no name; set --node-name";
        return Err(StartError::Kubernetes(KubernetesError::Access(why.into())));
    }
    Ok(name.into())
}

type Started = Result<(), KubernetesError>;

/// What the thread has.
struct Body {
    node: Arc<str>,
    report: bool,
    default_namespace: Arc<str>,
    kept: Kept,
    access: Access,
    rooms: Rooms,
    board: Board,
    pods: Arc<Notify>,
    locality: watch::Sender<Option<Locality>>,
}

impl Body {
    fn run(self, inbox: mpsc::UnboundedReceiver<Order>, started: oneshot::Sender<Started>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => LocalSet::new().block_on(&runtime, self.follow(inbox, started)),
            Err(error) => {
                // Whoever waits for it may have gone.
                let _ = started.send(Err(KubernetesError::Local("a runtime", error)));
            }
        }
    }

    async fn follow(
        self,
        mut inbox: mpsc::UnboundedReceiver<Order>,
        started: oneshot::Sender<Started>,
    ) {
        let made = async {
            let clients = Clients::new(&self.access).await?;
            let client = clients.client()?;
            Ok((clients, client))
        };
        let (clients, client) = match made.await {
            Ok(made) => made,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        self.board.server(&clients.server());
        tracing::info!(
            server = clients.server(),
            node = &*self.node,
            "policy, pods and Secrets come from a Kubernetes API server"
        );
        let documents = Documents::new(self.rooms.keeper.clone(), self.kept.clone(), &self.board);
        let known = self.read_kept_pods() || !documents.is_empty();
        let pods = Rc::new(RefCell::new(Table::default()));
        let row = self.board.watch("pods");
        let namespaces = Rc::new(Notify::new());

        let wait = if known { FIRST_LISTS_KEPT } else { FIRST_LISTS };
        let waiting = async {
            let lists = async {
                while !self.board.is_synced() {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            if timeout(wait, lists).await.is_err() {
                tracing::warn!(
                    "the first lists of the API server did not come within {wait:?}; {}",
                    if known {
                        "policy of the last run is in force"
                    } else {
                        "going on without policy from it"
                    }
                );
            }
            documents.settled().await;
            let _ = started.send(Ok(()));
        };
        let orders = async {
            while let Some(order) = inbox.recv().await {
                match order {
                    Order::Again => documents.again(),
                }
            }
        };
        let watching_pods = async {
            let api: Api<Pod> = Api::all(client.clone());
            let fields = format!("spec.nodeName={}", self.node);
            loop {
                follow(&api, Some(&fields), &row, |event| {
                    let mut table = pods.borrow_mut();
                    if table.take(event) {
                        row.objects(table.len());
                        self.rooms.directory.set_pods(table.pods());
                        self.pods.notify_one();
                        namespaces.notify_one();
                    }
                })
                .await;
                sleep(NODE_DEADLINE).await;
            }
        };
        let reporting = async {
            if self.report {
                let keeper = self.rooms.keeper.clone();
                report::run(
                    client.clone(),
                    documents.clone(),
                    keeper,
                    Arc::clone(&self.node),
                )
                .await;
            }
            std::future::pending::<()>().await;
        };
        let running = async {
            tokio::join!(
                waiting,
                watching_pods,
                self.keep_pods(&pods, &namespaces),
                self.watch_node(&client),
                self.watch_secrets(clients.clone()),
                reporting,
            );
        };
        tokio::select! {
            result = documents.run(&client) => {
                if let Err(error) = result {
                    tracing::error!("{error}");
                }
            }
            () = orders => {}
            () = running => {}
        }
    }

    /// Puts the pods of an earlier run in force.
    fn read_kept_pods(&self) -> bool {
        let Some(kept): Option<Vec<(Box<str>, PodInfo)>> = self.kept.value(PODS) else {
            return false;
        };
        let pods: Pods = kept
            .into_iter()
            .map(|(uid, info)| (uid, Arc::new(info)))
            .collect();
        self.rooms.directory.set_pods(pods);
        self.pods.notify_one();
        true
    }

    async fn keep_pods(&self, pods: &Rc<RefCell<Table>>, changed: &Rc<Notify>) {
        loop {
            changed.notified().await;
            sleep(KEEP_PODS).await;
            let now = pods.borrow().pods();
            let list: Vec<(&str, &PodInfo)> =
                now.iter().map(|(uid, pod)| (&**uid, &**pod)).collect();
            if let Err(error) = self.kept.set_value(PODS, &list) {
                tracing::warn!("the pods of this node are not kept for a restart: {error}");
            }
        }
    }

    /// Reads our own node now and then: its locality hardly ever changes, and
    /// to list nodes the agent would have to be allowed to see all of them.
    async fn watch_node(&self, client: &kube::Client) {
        let api: Api<Node> = Api::all(client.clone());
        let row = self.board.watch_optional("nodes");
        let mut backoff = Backoff::default();
        loop {
            let read = match timeout(NODE_DEADLINE, api.get(&self.node)).await {
                Ok(read) => read.map_err(KubernetesError::from),
                Err(_) => Err(KubernetesError::Slow("the node")),
            };
            match read {
                Ok(node) => {
                    backoff.reset();
                    row.listed();
                    row.objects(1);
                    let found = locality(&node.metadata.labels.unwrap_or_default());
                    if *self.locality.borrow() != found {
                        let text = found.as_ref().map(ToString::to_string);
                        tracing::info!(locality = text, "the node says where it is");
                        if let Err(error) = self.kept.set_value(LOCALITY, &text) {
                            tracing::warn!("the locality is not kept for a restart: {error}");
                        }
                        self.locality.send_replace(found);
                    }
                    sleep(NODE).await;
                }
                Err(error) if error.status() == Some(404) => {
                    row.nothing("there is no Node of this name; set --node-name");
                    sleep(NODE_DEADLINE).await;
                }
                Err(error) => {
                    if error.status() == Some(403) {
                        row.refused(&error.to_string());
                    } else {
                        row.failed(&error.to_string());
                    }
                    sleep(backoff.wait()).await;
                }
            }
        }
    }

    /// Watches exactly the Secrets that policies name.
    async fn watch_secrets(&self, clients: Clients) {
        let secrets = Arc::clone(&self.rooms.secrets);
        let mut watches = Watches::new(clients, secrets, self.board.clone());
        let mut published = self.rooms.keeper.published();
        loop {
            let snapshot = Arc::clone(&published.borrow_and_update().snapshot);
            let mut callers: BTreeSet<Arc<str>> = self.rooms.directory.namespaces();
            callers.insert(Arc::clone(&self.default_namespace));
            if let Err(error) = watches.watch(wanted(&snapshot, &callers)) {
                tracing::error!("Secrets cannot be read: {error}");
            }
            tokio::select! {
                changed = published.changed() => if changed.is_err() {
                    return;
                },
                () = self.namespaces_changed(&callers) => {}
            }
            sleep(SETTLE).await;
        }
    }

    /// Waits until callers of other namespaces are on this node.
    async fn namespaces_changed(&self, before: &BTreeSet<Arc<str>>) {
        loop {
            sleep(Duration::from_secs(1)).await;
            let mut now = self.rooms.directory.namespaces();
            now.insert(Arc::clone(&self.default_namespace));
            if now != *before {
                return;
            }
        }
    }
}
