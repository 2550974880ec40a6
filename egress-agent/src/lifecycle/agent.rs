//! The agent: puts the rooms together, in the order in which they start.

use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, LocalSet};

use super::api::Process;
use super::handover::{self, TakenOver};
use super::lock::StateLock;
use super::logging::{self, LogControl};
use super::policies;
use super::running::Agent;
use super::signals::{NextOrder, Order, Orders};
use super::supervise::{Exit, Supervised, supervise};
use super::worker;
use super::{StartError, panics, process, serving, systemd};
use crate::accept::Inherited;
use crate::account::AccessLog;
use crate::admin::AdminApi;
use crate::admin::metrics::MetricsListener;
use crate::admin::socket::AdminListener;
use crate::capture::Kernel;
use crate::memory;
use crate::settings::value::{ConnectionLimit, MetricsListener as MetricsSetting};
use crate::settings::{Loaded, Settings, Sources};

/// Time for the workers to open their listeners.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Time for the workers to let go of what was cut.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// Time for the access log to be written to its end.
const LOG_DEADLINE: Duration = Duration::from_secs(2);

/// Runs the agent to its end.
pub fn run(sources: &Sources, loaded: &Loaded) -> ExitCode {
    let settings = &loaded.settings;
    let log = match logging::start(&settings.log, settings.log_format) {
        Ok(log) => log,
        Err(error) => {
            anstream::eprintln!("egress-agent: cannot start logging: {error}");
            return ExitCode::FAILURE;
        }
    };
    panics::install();
    for note in &loaded.notes {
        tracing::warn!("{note}");
    }
    let admitted = prepare(settings);
    tracing::debug!(admitted, "connections admitted at once");
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::Process {
            what: "the control runtime",
            error,
        })
        .and_then(|runtime| {
            LocalSet::new().block_on(&runtime, control(sources, loaded, log, admitted))
        });
    match ended {
        Ok((exit, access_log)) => {
            // The accounts have handed over their last lines by now.
            if access_log.is_some_and(|log| !log.flush(LOG_DEADLINE)) {
                tracing::warn!("the last lines of the access log are not written");
            }
            exit.code()
        }
        Err(error) => {
            tracing::error!("cannot start: {error}");
            systemd::status(&format!("cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What the process asks of the kernel for itself. None of it is worth not
/// starting for. Returns how many connections may be open at once.
fn prepare(settings: &Settings) -> u32 {
    match process::enter_host_cgroups() {
        Ok(true) => tracing::debug!("moved to the host's cgroup namespace"),
        Ok(false) => {}
        Err(error) => tracing::warn!("cannot see cgroups as the host does: {error}"),
    }
    if let Err(error) = process::forbid_dumps() {
        tracing::warn!("cannot forbid core dumps: {error}");
    }
    let possible = match process::raise_descriptor_limit() {
        Ok(limit) => process::connections_for(limit),
        Err(error) => {
            tracing::warn!("cannot raise the limit of open descriptors: {error}");
            u32::MAX
        }
    };
    match settings.max_connections {
        ConnectionLimit::Auto => possible,
        ConnectionLimit::At(wanted) => {
            if wanted.get() > possible {
                tracing::warn!(
                    wanted,
                    possible,
                    "max-connections is more than the limit of open descriptors allows; raise LimitNOFILE"
                );
            }
            wanted.get()
        }
    }
}

/// The control runtime, from the first lock to the last worker.
async fn control(
    sources: &Sources,
    loaded: &Loaded,
    log: LogControl,
    admitted: u32,
) -> Result<(Exit, Option<AccessLog>), StartError> {
    let settings = &loaded.settings;
    let (mut orders, order) = Orders::listen().map_err(|error| StartError::Process {
        what: "signal handlers",
        error,
    })?;
    policies::look(loaded)?;
    let mut taken = TakenOver::ask(settings);
    let taking_over = taken.is_some();
    let lock = match taken.as_mut().and_then(|taken| taken.lock.take()) {
        Some(lock) => StateLock::inherit(lock),
        None => StateLock::acquire(&settings.state_dir)?,
    };
    let (pins_lock, mut sockets) = match &mut taken {
        Some(taken) => (taken.pins_lock.take(), std::mem::take(&mut taken.sockets)),
        None => (None, Inherited::from_systemd()),
    };
    let mut registry = Registry::default();
    let mut agent = Agent::new(settings, admitted, &mut registry, pins_lock)?;
    let unready = Unready(Some(agent.kernel()));
    let handing_over = order.clone();
    let process = Rc::new(Process::new(loaded, registry, log, order));
    let admin = serve_admin(settings, &process, &agent, &mut sockets, taking_over).await?;
    agent.read_policy(loaded).await?;
    agent.join_cluster(settings).await?;
    process.views.replace(agent.views().await);

    let drain = process.drain.clone();
    let starts = agent.starts(settings, &drain, &mut sockets)?;
    let mut workers = worker::spawn(settings.workers.0.get(), &drain, move |context| {
        serving::body(context, Arc::clone(&starts))
    })
    .map_err(|error| StartError::Process {
        what: "worker threads",
        error,
    })?;
    let pulses = workers.pulses();
    process.pulses.replace(Some(pulses.clone()));

    let listening = tokio::time::timeout(START_DEADLINE, workers.all_ready());
    tokio::select! {
        result = listening => match result {
            Ok(result) => result.map_err(StartError::Worker)?,
            Err(_) => {
                return Err(StartError::Process {
                    what: "the listeners of the workers",
                    error: std::io::ErrorKind::TimedOut.into(),
                });
            }
        },
        () = told_to_stop(&mut orders) => {
            drain.cut();
            tracing::info!("stopped before it was ready");
            return Ok((Exit::Drained, None));
        }
    }
    agent.begin(settings, &workers.control_vitals()).await?;
    process.ready.set(true);
    unready.succeed();
    if let Some(taken) = taken {
        taken.ready();
    }
    offer_hand_over(settings, &process, &agent, &lock, handing_over, admin);
    workers
        .control_vitals()
        .spawn("watchdog", systemd::watchdog(pulses));
    agent.store(&sockets);
    say_ready(&process);
    memory::give_back();
    tokio::task::spawn_local(memory::settle_all());

    let mut parts = Parts {
        sources,
        process,
        agent,
    };
    let exit = supervise(&mut parts, &mut orders, &mut workers, &drain).await;
    if !workers.all_ended(END_DEADLINE).await {
        tracing::warn!("workers did not end in time");
    }
    parts.agent.leave();
    tracing::info!(
        "the kernel programs stay in force for the next agent, and refuse what only an agent can \
         carry until then; `egress-agent --cleanup` removes them"
    );
    Ok((exit, parts.agent.access_log()))
}

/// Takes the kernel programs back if the start ends before it is proven that
/// capture works: pinned, they would outlive it and refuse what nobody serves.
struct Unready(Option<Arc<Kernel>>);

impl Unready {
    fn succeed(mut self) {
        self.0 = None;
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|kernel| kernel.withdraw()) {
            tracing::error!("{error}; `egress-agent --cleanup` removes what is left");
        }
    }
}

/// Serves the admin API and metrics, in the place of an agent that hands over.
async fn serve_admin(
    settings: &Settings,
    process: &Rc<Process>,
    agent: &Agent,
    sockets: &mut Inherited,
    taking_over: bool,
) -> Result<Vec<AbortHandle>, StartError> {
    let api: Rc<dyn AdminApi> = Rc::<Process>::clone(process);
    let mut tasks = Vec::new();
    if let MetricsSetting::At(address) = settings.metrics {
        let inherited = sockets
            .take(&format!("{}-0", handover::METRICS))
            .and_then(|socket| MetricsListener::inherit(address, socket.into()));
        let metrics = match inherited {
            Some(listener) => listener,
            None => MetricsListener::bind(address)
                .await
                .map_err(StartError::Listen)?,
        };
        agent
            .keep(handover::METRICS, metrics.descriptor())
            .map_err(|error| StartError::Process {
                what: "a second descriptor",
                error,
            })?;
        tasks.push(tokio::task::spawn_local(metrics.serve(Rc::clone(&api))).abort_handle());
    }
    let bind = if taking_over {
        AdminListener::take_over
    } else {
        AdminListener::bind
    };
    let admin = bind(&settings.admin.0).map_err(StartError::Listen)?;
    tasks.push(tokio::task::spawn_local(admin.serve(api)).abort_handle());
    Ok(tasks)
}

/// Lets an agent that is started later take over. Not worth ending for.
fn offer_hand_over(
    settings: &Settings,
    process: &Rc<Process>,
    agent: &Agent,
    lock: &StateLock,
    orders: mpsc::Sender<Order>,
    admin: Vec<AbortHandle>,
) {
    let giver = agent
        .giver(process, lock, orders)
        .and_then(|giver| Ok((giver, handover::listen(&settings.state_dir)?)));
    match giver {
        Ok((giver, listener)) => {
            tokio::task::spawn_local(async move {
                giver.run(listener).await;
                // The other agent answers there now.
                for task in admin {
                    task.abort();
                }
            });
        }
        Err(error) => {
            tracing::warn!("another agent will not be able to take over from this one: {error}");
        }
    }
}

/// Waits for the first order to stop; others mean nothing before the start is
/// done.
async fn told_to_stop(orders: &mut Orders) {
    while orders.next().await == Order::Reload {}
}

/// One line `ready` on standard output, and to systemd.
fn say_ready(process: &Process) {
    systemd::ready(&status_line(process));
    tracing::info!("ready");
    let mut out = std::io::stdout().lock();
    // Whoever started us may have closed it.
    let _ = writeln!(out, "ready").and_then(|()| out.flush());
}

fn status_line(process: &Process) -> String {
    let settings = process.settings.borrow();
    format!("{} workers; admin {}", settings.workers.0, settings.admin)
}

/// What orders act on.
struct Parts<'a> {
    sources: &'a Sources,
    process: Rc<Process>,
    agent: Agent,
}

impl Supervised for Parts<'_> {
    async fn reload(&mut self) {
        systemd::reloading();
        match self.sources.load() {
            Ok(loaded) => {
                self.process.reload(&loaded.settings);
                let settings = self.process.settings.borrow().clone();
                self.agent.reload(&loaded, &settings).await;
            }
            Err(error) => {
                tracing::error!("settings stay as they were:\n{error}");
            }
        }
        systemd::ready(&status_line(&self.process));
    }

    fn drain_deadline(&self) -> Duration {
        self.process.settings.borrow().drain_deadline
    }

    fn draining(&mut self, deadline: Duration, live: usize) {
        let direct = self.agent.kernel().all_direct_connections().unwrap_or(0);
        let status =
            format!("draining {live} connections; {direct} on the direct path go on without it");
        tracing::info!("{status}");
        systemd::stopping(&status, deadline);
        let settings = self.process.settings.borrow();
        self.agent.stop_accepting(&settings, &self.process.drain);
    }
}

/// `--cleanup`: removes what an agent left in the kernel.
pub fn clean_up(loaded: &Loaded) -> ExitCode {
    let bpffs = &loaded.settings.bpffs;
    match crate::capture::clean_up(bpffs) {
        Ok(0) => anstream::println!("nothing is pinned in {}", bpffs.display()),
        Ok(objects) => {
            anstream::println!(
                "removed {objects} maps and links from {}; nothing is captured any more",
                bpffs.display()
            );
        }
        Err(error) => {
            anstream::eprintln!("egress-agent: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// `--check`: says whether the agent would start with these settings.
pub fn check(loaded: &Loaded) -> ExitCode {
    for note in &loaded.notes {
        anstream::eprintln!("warning: {note}");
    }
    match &loaded.file {
        Some(path) => anstream::println!("{}: settings are good", path.display()),
        None => anstream::println!("settings are good"),
    }
    ExitCode::SUCCESS
}
