//! The data path of the agent: made, begun, reloaded and stopped.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use egress_common::Listeners;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, spawn_local};

use super::StartError;
use super::api::Process;
use super::bridges::{Callers, Names, Resolvers};
use super::connect::Connector;
use super::direct::Direct;
use super::drain::Drain;
use super::dynamic_names;
use super::following::{
    follow, follow_cgroups, follow_locality, follow_pods, follow_policy, look_around,
};
use super::handover::Giver;
use super::hands::Hands;
use super::heartbeat;
use super::kubernetes::{Cluster, Rooms};
use super::lock::StateLock;
use super::namespaces::{self, Namespaces, WorkerChannels};
use super::node::Node;
use super::outbound;
use super::policies;
use super::serving::{self, DnsCommand, DnsShared, Start, Starts};
use super::signals::Order;
use super::systemd;
use super::views::Views;
use super::worker::Vitals;
use crate::accept::{Inherited, IntakeStats, Kept};
use crate::account::{AccessLog, Account, LogTarget, Metrics};
use crate::capture::sockets::{NetNs, Sockets};
use crate::capture::{Kernel, Numbered, Options as AttachOptions, cgroup_root};
use crate::connect::EndpointProber;
use crate::endpoint;
use crate::endpoint::resolve::{Resolver, SocketRoutes, Upstream, UpstreamOptions};
use crate::flow::{self, Command, Shared};
use crate::kubernetes::metrics::Slot as ClusterMetrics;
use crate::policy::source::keeper::Keeper;
use crate::secret::{MeshIdentity, SecretSettings, Secrets};
use crate::settings::value::AccessLog as LogSetting;
use crate::settings::{Loaded, Settings};
use crate::workload::directory::Directory;
use crate::workload::hierarchy::Hierarchy;

/// Time for connections that the kernel handed over to reach `accept`.
const HANDED_OVER: Duration = Duration::from_millis(100);
/// How often the log lines of the kernel programs are read.
const KERNEL_LOG: Duration = Duration::from_millis(200);
/// Health checks that run at once.
const CHECKS: usize = 64;

/// The data path.
pub(super) struct Agent {
    node: Rc<tokio::sync::Mutex<Node>>,
    kernel: Arc<Kernel>,
    netns: NetNs,
    sockets: Sockets,
    metrics: Arc<Metrics>,
    log: Option<AccessLog>,
    intake: Arc<IntakeStats>,
    /// Owner of the documents; unset until the policy was read.
    pub(super) policy: Option<Keeper>,
    workers: Vec<WorkerChannels>,
    dns: Option<DnsShared>,
    namespaces: Option<Namespaces>,
    /// The Kubernetes API server, where the settings ask for it.
    cluster: Option<Cluster>,
    cluster_metrics: ClusterMetrics,
    listeners: Option<Listeners>,
    admitted: u32,
    /// True while another agent, which takes over, does what the control
    /// runtime does.
    paused: Rc<watch::Sender<bool>>,
    /// Second descriptors of the sockets that another agent could go on with.
    kept: Rc<RefCell<Kept>>,
    /// True once another agent serves in this one's place.
    over: Rc<Cell<bool>>,
    /// What ends when it does: heartbeat, saving of addresses.
    tasks: Vec<AbortHandle>,
    /// Whether systemd keeps the sockets for the next process of the unit.
    stored: bool,
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
        let kernel = Kernel::attach(&AttachOptions {
            cgroup: settings.cgroup.clone(),
            bpffs: Some(settings.bpffs.clone()),
            pins_lock,
        })
        .map_err(StartError::Capture)?;
        let kernel = Arc::new(kernel);
        let netns = NetNs::current().map_err(failed("a socket"))?;
        let sockets = Sockets::marked(kernel.bypass());
        let servers = settings.dns_upstream.iter().map(|s| s.0).collect();
        let upstream = Upstream::new(
            UpstreamOptions::new(servers),
            sockets.clone(),
            netns.clone(),
        );
        let routes = SocketRoutes::new(sockets.clone(), netns.clone());
        let resolver = Resolver::new(upstream, routes);
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
        let cluster_metrics = ClusterMetrics::default();
        cluster_metrics.register(registry);
        let target = match &settings.access_log {
            LogSetting::Off => None,
            LogSetting::Stdout => Some(LogTarget::Stdout),
            LogSetting::File(path) => Some(LogTarget::File(path.clone())),
        };
        let log = target
            .map(|target| AccessLog::open(target, &metrics))
            .transpose()
            .map_err(failed("the access log"))?;
        let node = Node::new(Arc::clone(&kernel), settings, directory, resolver, secrets)?;
        let live = Arc::clone(&node.live);
        registry.register_collector(Box::new(endpoint::Metrics::new(live)));
        Ok(Self {
            node: Rc::new(tokio::sync::Mutex::new(node)),
            kernel,
            netns,
            sockets,
            metrics,
            log,
            intake,
            policy: None,
            cluster: None,
            cluster_metrics,
            workers: Vec::new(),
            dns: None,
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
            resolver: node.resolver.clone(),
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
            counters: Arc::default(),
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

    /// Begins to capture, once the workers serve, and proves that it works.
    ///
    /// # Errors
    /// When the kernel cannot be told, or the proof fails.
    pub(super) async fn begin(
        &mut self,
        settings: &Settings,
        vitals: &Vitals,
    ) -> Result<(), StartError> {
        let node = self.node.lock().await;
        if let Some(listeners) = &self.listeners {
            self.kernel
                .set_listeners(self.netns.cookie, listeners)
                .map_err(StartError::Capture)?;
        }
        let namespaces = Namespaces::new(
            Arc::clone(&self.kernel),
            &self.netns,
            self.dns.clone(),
            self.workers.clone(),
        );
        namespaces.open_present().await;
        node.configure(settings, settings.dns.is_on())?;
        // Only now: what an agent before named may be ports of nobody.
        let beating = Arc::clone(&self.kernel);
        beating.heartbeat().map_err(StartError::Capture)?;
        let limit = settings.heartbeat_limit;
        let beat = vitals.spawn("heartbeat", async move {
            heartbeat::beat(limit, || beating.heartbeat()).await;
        });
        self.tasks.push(beat.abort_handle());
        let reports = namespaces::reports(&self.kernel)?;
        vitals.spawn("network namespaces", namespaces.clone().run(reports));
        self.namespaces = Some(namespaces);
        let sweeps = node.sets.run_sweeps();
        vitals.spawn("ejection sweeps", sweeps);
        let names = dynamic_names::follow(node.resolver.clone(), node.sets.subscribe());
        vitals.spawn("dynamic names", names);
        let secrets = Arc::clone(&node.secrets);
        let prober = EndpointProber::new(self.sockets.clone(), self.netns.clone(), secrets);
        let checks = node.sets.run_health_checks(Arc::new(prober), CHECKS);
        vitals.spawn("health checks", checks);
        vitals.spawn("secrets", Arc::clone(&node.secrets).watch());
        let identity = Arc::clone(&node.secrets).follow_workload_api();
        vitals.spawn("the SPIFFE Workload API", identity);
        let addresses = Arc::clone(node.names.addresses());
        let saving = vitals.spawn("virtual addresses", async move {
            let never = addresses.keep_saved().await;
            match never {}
        });
        self.tasks.push(saving.abort_handle());
        if let Some(refusals) = self.kernel.take_refusals() {
            let telling =
                outbound::tell_refusals(refusals, node.directory.clone(), Arc::clone(&node.names));
            vitals.spawn("refusals", telling);
        }
        let changed = Arc::clone(&node.feed.changed);
        if let Some(reports) = self.kernel.take_direct_reports() {
            let account = Account::new(Arc::clone(&self.metrics), self.log.clone());
            let flushing = account.clone();
            vitals.spawn("metrics", async move { flushing.keep_flushing().await });
            let direct = Direct::new(
                Arc::clone(&self.kernel),
                Arc::clone(&node.live),
                Callers(node.directory.clone()),
                account,
                &settings.namespace.0,
            );
            vitals.spawn(
                "direct",
                direct.run(node.sets.subscribe(), reports, self.paused.subscribe()),
            );
        }
        drop(node);
        vitals.spawn("resolved addresses", follow(Rc::clone(&self.node), changed));
        let cgroup = self.kernel.cgroup().to_owned();
        vitals.spawn("cgroups", look_around(Rc::clone(&self.node)));
        vitals.spawn("new cgroups", follow_cgroups(Rc::clone(&self.node), cgroup));
        if settings.kernel_log.is_on()
            && let Some(mut lines) = self.kernel.take_logger()
        {
            vitals.spawn("kernel log", async move {
                let mut ticks = tokio::time::interval(KERNEL_LOG);
                loop {
                    ticks.tick().await;
                    lines.flush();
                }
            });
        }
        if let Some(policy) = &self.policy {
            let published = policy.published();
            vitals.spawn("policy", follow_policy(Rc::clone(&self.node), published));
            if let Some(cluster) = &self.cluster {
                let pods = Arc::clone(&cluster.pods);
                vitals.spawn("pods", follow_pods(Rc::clone(&self.node), pods));
                if settings.locality.is_none() {
                    let node = Rc::clone(&self.node);
                    let locality = cluster.locality.clone();
                    vitals.spawn("locality", follow_locality(node, policy.clone(), locality));
                }
            }
        }

        let kernel = Arc::clone(&self.kernel);
        tokio::task::spawn_blocking(move || kernel.prove())
            .await
            .map_err(|error| StartError::Process {
                what: "the proof that capture works",
                error: std::io::Error::other(error),
            })?
            .map_err(StartError::Capture)?;
        match self.kernel.remove_obsolete() {
            Ok(0) => {}
            Ok(sets) => tracing::info!(sets, "kernel programs of an agent before were replaced"),
            Err(error) => tracing::error!("{error}; both old and new programs are attached"),
        }
        Ok(())
    }

    /// What is attached to the kernel.
    pub(super) fn kernel(&self) -> Arc<Kernel> {
        Arc::clone(&self.kernel)
    }

    /// What another agent can be given; see [`handover`](super::handover).
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(super) fn giver(
        &self,
        process: &Rc<Process>,
        lock: &StateLock,
        orders: mpsc::Sender<Order>,
    ) -> std::io::Result<Giver<Hands>> {
        Ok(Giver {
            agent: Hands {
                node: Rc::clone(&self.node),
                kernel: Arc::clone(&self.kernel),
                netns: self.netns.clone(),
                listeners: self.listeners,
                paused: Rc::clone(&self.paused),
                tasks: self.tasks.clone(),
                process: Rc::clone(process),
                orders,
                release: RefCell::default(),
            },
            settings: process.settings.borrow().clone(),
            lock: lock.share()?,
            pins_lock: self.kernel.pins_lock()?,
            sockets: Rc::clone(&self.kept),
            over: Rc::clone(&self.over),
        })
    }

    /// Has systemd keep the sockets, where the unit asks for that.
    pub(super) fn store(&mut self) {
        if !systemd::keeps_descriptors() {
            return;
        }
        for (name, descriptor) in self.kept.borrow().iter() {
            if let Err(error) = systemd::keep(name, descriptor.as_fd()) {
                tracing::warn!("systemd does not keep the sockets: {error}");
                return;
            }
        }
        self.stored = true;
    }

    /// Keeps one more socket for another agent.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(super) fn keep(&self, name: &str, socket: &impl AsFd) -> std::io::Result<()> {
        self.kept.borrow_mut().add(name, 0, socket)
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

    /// Takes nothing new: proxied services are refused from now on, and names
    /// resolve as if the agent were not there. Open connections go on.
    pub(super) fn stop_accepting(&self, settings: &Settings) {
        if self.over.get() {
            // The kernel hands over to the other agent, which has the sockets
            // of this namespace too and answers from them.
            for worker in &self.workers {
                let _ = worker.dns.send(DnsCommand::Forget(self.netns.cookie));
            }
        } else if self.stored {
            // What comes now waits in the sockets that systemd keeps, for as
            // long as the heartbeat is fresh.
            tracing::info!("new connections wait for the next agent of this unit");
        } else {
            if let Ok(node) = self.node.try_lock()
                && let Err(error) = node.configure(settings, false)
            {
                tracing::error!("{error}");
            }
            if let Err(error) = self.kernel.remove_listeners(self.netns.cookie) {
                tracing::error!("{error}");
            }
        }
        if let Some(namespaces) = &self.namespaces {
            namespaces.stop();
        }
        // What the kernel has handed over by now still waits to be accepted.
        let workers = self.workers.clone();
        let kept = Rc::clone(&self.kept);
        spawn_local(async move {
            tokio::time::sleep(HANDED_OVER).await;
            kept.borrow_mut().clear();
            for worker in &workers {
                // A worker that is gone accepts nothing either.
                let _ = worker.flow.send(Command::StopAccepting);
            }
        });
    }
}

fn per_worker(admitted: u32, workers: usize) -> usize {
    usize::try_from(admitted)
        .unwrap_or(usize::MAX)
        .div_ceil(workers.max(1))
}
