//! The data path of the agent: made, begun, reloaded and stopped.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use egress_common::Listeners;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::StartError;
use super::bridges::{Callers, Names, Resolvers};
use super::capture_metrics::CaptureMetrics;
use super::connect::Connector;
use super::drain::Drain;
use super::kubernetes::{Cluster, Rooms};
use super::name_servers;
use super::namespaces::{Namespaces, WorkerChannels};
use super::node::Node;
use super::policies;
use super::serving::{self, DnsShared, Start, Starts};
use super::views::Views;
use crate::accept::{Inherited, IntakeStats, Kept};
use crate::account::{AccessLog, LogTarget, Metrics};
use crate::capture::sockets::{NetNs, Sockets};
use crate::capture::{Kernel, Numbered, Options as AttachOptions, cgroup_root};
use crate::dns;
use crate::endpoint;
use crate::flow::{self, Command, Shared};
use crate::kubernetes::metrics::Slot as ClusterMetrics;
use crate::memory::Thrift;
use crate::policy::source::keeper::Keeper;
use crate::secret::{MeshIdentity, SecretSettings, Secrets};
use crate::settings::value::AccessLog as LogSetting;
use crate::settings::{Loaded, Settings};
use crate::workload::directory::Directory;
use crate::workload::hierarchy::Hierarchy;

/// The data path.
pub(super) struct Agent {
    pub(super) node: Rc<tokio::sync::Mutex<Node>>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) netns: NetNs,
    pub(super) sockets: Sockets,
    pub(super) metrics: Arc<Metrics>,
    pub(super) capture_metrics: CaptureMetrics,
    pub(super) log: Option<AccessLog>,
    pub(super) intake: Arc<IntakeStats>,
    /// Owner of the documents; unset until the policy was read.
    pub(super) policy: Option<Keeper>,
    pub(super) workers: Vec<WorkerChannels>,
    pub(super) dns: Option<DnsShared>,
    dns_counters: Arc<dns::server::Counters>,
    pub(super) namespaces: Option<Namespaces>,
    /// The Kubernetes API server, where the settings ask for it.
    pub(super) cluster: Option<Cluster>,
    pub(super) cluster_metrics: ClusterMetrics,
    pub(super) listeners: Option<Listeners>,
    pub(super) admitted: u32,
    /// True while another agent, which takes over, does what the control
    /// runtime does.
    pub(super) paused: Rc<watch::Sender<bool>>,
    /// Second descriptors of the sockets that another agent could go on with.
    pub(super) kept: Rc<RefCell<Kept>>,
    /// True once another agent serves in this one's place.
    pub(super) over: Rc<Cell<bool>>,
    /// What ends when it does: heartbeat, saving of addresses.
    pub(super) tasks: Vec<AbortHandle>,
    /// Whether systemd keeps the sockets for the next process of the unit.
    pub(super) stored: bool,
}

impl Agent {
    /// The access log, if there is one.
    pub(super) fn access_log(&self) -> Option<AccessLog> {
        self.log.clone()
    }

    /// Loads and attaches the kernel programs, which let everything pass until
    /// [`begin`](Self::begin).
    ///
    /// # Errors
    /// What the host lacks, or what cannot be opened.
    pub(super) fn new(
        settings: &Settings,
        admitted: u32,
        registry: &mut Registry,
        pins_lock: Option<Arc<OwnedFd>>,
    ) -> Result<Self, StartError> {
        let failed = |what| move |error| StartError::Process { what, error };
        // BTF of the kernel and the programs' code are large, and soon dropped.
        let thrift = Thrift::begin();
        let kernel = Kernel::attach(&AttachOptions {
            cgroup: settings.cgroup.clone(),
            bpffs: Some(settings.bpffs.clone()),
            pins_lock,
        })
        .map_err(StartError::Capture)?;
        drop(thrift);
        let kernel = Arc::new(kernel);
        let netns = NetNs::current().map_err(failed("a socket"))?;
        let sockets = Sockets::marked(kernel.bypass());
        let resolvers = name_servers::resolvers(settings, &sockets, &netns);
        let root = cgroup_root().map_err(StartError::Capture)?;
        let directory =
            Directory::new(Hierarchy::at(root), &settings.workload, &settings.namespace);
        let secrets = Secrets::new(SecretSettings {
            directory: Some(settings.secrets_dir.clone()),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            mesh: settings.mesh_identity.as_deref().map(MeshIdentity::parse),
        });
        let metrics = Metrics::new();
        let intake = Arc::new(IntakeStats::default());
        metrics.register(registry, Arc::clone(&intake));
        secrets.register(registry);
        let capture_metrics = CaptureMetrics::new(Arc::clone(&kernel), registry);
        let cluster_metrics = ClusterMetrics::default();
        cluster_metrics.register(registry);
        let dns_counters = Arc::default();
        let dns_metrics = dns::metrics::Metrics::new(Arc::clone(&dns_counters));
        registry.register_collector(Box::new(dns_metrics));
        let target = match &settings.access_log {
            LogSetting::Off => None,
            LogSetting::Stdout => Some(LogTarget::Stdout),
            LogSetting::File(path) => Some(LogTarget::File(path.clone())),
        };
        let log = target
            .map(|target| {
                let log = AccessLog::open(target, &metrics)?;
                Ok(log.lingering(settings.access_log_linger))
            })
            .transpose()
            .map_err(failed("the access log"))?;
        let node = Node::new(Arc::clone(&kernel), settings, directory, resolvers, secrets)?;
        let live = Arc::clone(&node.live);
        registry.register_collector(Box::new(endpoint::Metrics::new(live)));
        Ok(Self {
            node: Rc::new(tokio::sync::Mutex::new(node)),
            kernel,
            netns,
            sockets,
            metrics,
            capture_metrics,
            log,
            intake,
            policy: None,
            cluster: None,
            cluster_metrics,
            workers: Vec::new(),
            dns: None,
            dns_counters,
            namespaces: None,
            listeners: None,
            admitted,
            paused: Rc::new(watch::Sender::new(false)),
            kept: Rc::default(),
            over: Rc::default(),
            tasks: Vec::new(),
            stored: false,
        })
    }

    /// Reads the policy and puts what is good in force.
    ///
    /// # Errors
    /// When applied documents cannot be kept, or the kernel's maps not be
    /// written.
    pub(super) async fn read_policy(&mut self, loaded: &Loaded) -> Result<(), StartError> {
        let known = self
            .kernel
            .known(Numbered::Service)
            .map_err(StartError::Capture)?;
        let keeper = Keeper::start(policies::places(loaded, known))
            .await
            .map_err(StartError::Policy)?;
        let snapshot = Arc::clone(&keeper.published().borrow().snapshot);
        self.policy = Some(keeper);
        self.node.lock().await.apply(snapshot).await
    }

    /// Joins a Kubernetes API server, if the settings ask for it, and puts what
    /// it has in force.
    ///
    /// # Errors
    /// When nothing says how it is reached. That it cannot be reached is no
    /// error.
    pub(super) async fn join_cluster(&mut self, settings: &Settings) -> Result<(), StartError> {
        let Some(policy) = self.policy.clone().filter(|_| settings.kubernetes.is_on()) else {
            return Ok(());
        };
        let rooms = {
            let node = self.node.lock().await;
            Rooms {
                keeper: policy.clone(),
                secrets: Arc::clone(&node.secrets),
                directory: node.directory.clone(),
                sockets: self.sockets.clone(),
                netns: self.netns.clone(),
            }
        };
        let cluster = Cluster::join(settings, rooms).await?;
        let locality = cluster.locality.borrow().clone();
        self.cluster_metrics.show(cluster.board.clone());
        self.cluster = Some(cluster);
        let mut node = self.node.lock().await;
        if settings.locality.is_none()
            && let Some(locality) = locality
        {
            node.sets.set_locality(locality.clone());
            policy
                .change_options(move |options| options.locality = locality)
                .await
                .map_err(StartError::Policy)?;
        }
        let snapshot = Arc::clone(&policy.published().borrow().snapshot);
        node.apply(snapshot).await
    }

    /// What the admin API tells about the rooms, once the policy was read.
    pub(super) async fn views(&self) -> Option<Views> {
        let node = self.node.lock().await;
        Some(Views {
            kernel: Arc::clone(&self.kernel),
            live: Arc::clone(&node.live),
            names: Arc::clone(&node.names),
            resolvers: node.resolvers.clone(),
            secrets: Arc::clone(&node.secrets),
            policy: self.policy.clone()?,
            directory: node.directory.clone(),
            cluster: self.cluster.as_ref().map(|cluster| cluster.board.clone()),
            connector: Connector {
                sockets: self.sockets.clone(),
                netns: self.netns.clone(),
                secrets: Arc::clone(&node.secrets),
            },
        })
    }

    /// Opens the listeners, or takes those that are inherited. What each worker needs is in the result.
    ///
    /// # Errors
    /// When a listener cannot be opened.
    pub(super) fn starts(
        &mut self,
        settings: &Settings,
        drain: &Drain,
        inherited: &mut Inherited,
    ) -> Result<Starts, StartError> {
        let node = self.node.try_lock().map_err(|_| StartError::Process {
            what: "the workers",
            error: std::io::ErrorKind::ResourceBusy.into(),
        })?;
        let count = settings.workers.0.get();
        let callers = Callers(node.directory.clone());
        let shared = Arc::new(Shared {
            live: Arc::clone(&node.live),
            origins: Arc::new(self.kernel.origins()),
            names: Arc::new(Names(Arc::clone(node.names.addresses()))),
            callers: Arc::new(callers.clone()),
            sockets: self.sockets.clone(),
            secrets: Arc::clone(&node.secrets),
            metrics: Arc::clone(&self.metrics),
            log: self.log.clone(),
            intake: Arc::clone(&self.intake),
            drain: drain.clone(),
            settings: flow::Settings {
                max_connections: per_worker(self.admitted, count),
                ..flow::Settings::default()
            },
        });
        let dns = settings.dns.is_on().then(|| DnsShared {
            registry: Arc::clone(&node.names),
            resolvers: Arc::new(Resolvers {
                kernel: Arc::clone(&self.kernel),
                scopes: node.scope_names(),
                default: Arc::clone(&settings.namespace.0),
            }),
            callers,
            counters: Arc::clone(&self.dns_counters),
            sockets: self.sockets.clone(),
        });
        self.dns.clone_from(&dns);
        let (listeners, flows, dns) = serving::open_or_inherit(
            &self.netns,
            count,
            dns.as_ref(),
            inherited,
            Some(&mut self.kept.borrow_mut()),
        )?;
        self.listeners = Some(listeners);
        let mut dns = dns.into_iter();
        let mut starts = Vec::with_capacity(count);
        for flow in flows {
            let (sender, commands) = mpsc::unbounded_channel();
            let (dns_sender, dns_commands) = mpsc::unbounded_channel();
            // The receiver is in the same list.
            let _ = sender.send(Command::Listen(flow));
            self.workers.push(WorkerChannels {
                flow: sender,
                dns: dns_sender,
            });
            starts.push(Mutex::new(Some(Start {
                shared: Arc::clone(&shared),
                commands,
                dns: dns.next(),
                dns_commands,
            })));
        }
        Ok(starts.into())
    }

    /// What is attached to the kernel.
    pub(super) fn kernel(&self) -> Arc<Kernel> {
        Arc::clone(&self.kernel)
    }

    /// Puts reloaded settings and policy in force.
    pub(super) async fn reload(&mut self, loaded: &Loaded, settings: &Settings) {
        if *self.paused.borrow() {
            tracing::warn!("not reloading: another agent takes over");
            return;
        }
        {
            let node = self.node.lock().await;
            node.directory
                .set_rules(&settings.workload, &settings.namespace);
            node.secrets.reload();
            if let Err(error) = node.configure(settings, settings.dns.is_on()) {
                tracing::error!("{error}");
            }
        }
        if let Some(log) = &self.log {
            log.reopen();
        }
        let mut options = policies::options(settings);
        if let Some(cluster) = &self.cluster
            && settings.locality.is_none()
        {
            options.locality = cluster.locality.borrow().clone().unwrap_or_default();
        }
        if let Some(policy) = &self.policy
            && let Err(error) = policy.reload(policies::paths(loaded), options).await
        {
            tracing::error!("{error}");
        }
        if let Some(cluster) = &self.cluster {
            cluster.read_again();
        }
    }
}

fn per_worker(admitted: u32, workers: usize) -> usize {
    usize::try_from(admitted)
        .unwrap_or(usize::MAX)
        .div_ceil(workers.max(1))
}
