//! The agent: puts the rooms together, in the order in which they start.

use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::task::LocalSet;

use super::api::Process;
use super::lock::StateLock;
use super::logging::{self, LogControl};
use super::running::Agent;
use super::signals::{NextOrder, Order, Orders};
use super::supervise::{Exit, Supervised, supervise};
use super::worker;
use super::{StartError, panics, process, serving, systemd};
use crate::admin::AdminApi;
use crate::admin::metrics::MetricsListener;
use crate::admin::socket::AdminListener;
use crate::settings::value::{ConnectionLimit, MetricsListener as MetricsSetting};
use crate::settings::{Loaded, Settings, Sources};

/// Time for the workers to open their listeners.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Time for the workers to let go of what was cut.
const END_DEADLINE: Duration = Duration::from_secs(2);

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
        Ok(exit) => exit.code(),
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
) -> Result<Exit, StartError> {
    let settings = &loaded.settings;
    let (mut orders, order) = Orders::listen().map_err(|error| StartError::Process {
        what: "signal handlers",
        error,
    })?;
    let _lock = StateLock::acquire(&settings.state_dir)?;
    let mut registry = Registry::default();
    let mut agent = Agent::new(settings, admitted, &mut registry)?;
    let process = Rc::new(Process::new(loaded, registry, log, order));
    serve_admin(settings, &process).await?;
    agent.read_policy(loaded).await?;
    agent.join_cluster(settings).await?;
    process.views.replace(agent.views().await);

    let drain = process.drain.clone();
    let starts = agent.starts(settings, &drain)?;
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
            return Ok(Exit::Drained);
        }
    }
    agent.begin(settings, &workers.control_vitals()).await?;
    process.ready.set(true);
    workers
        .control_vitals()
        .spawn("watchdog", systemd::watchdog(pulses));
    say_ready(&process);

    let mut parts = Parts {
        sources,
        process,
        agent,
    };
    let exit = supervise(&mut parts, &mut orders, &mut workers, &drain).await;
    if !workers.all_ended(END_DEADLINE).await {
        tracing::warn!("workers did not end in time");
    }
    Ok(exit)
}

async fn serve_admin(settings: &Settings, process: &Rc<Process>) -> Result<(), StartError> {
    let api: Rc<dyn AdminApi> = Rc::<Process>::clone(process);
    let admin = AdminListener::bind(&settings.admin.0).map_err(StartError::Listen)?;
    if let MetricsSetting::At(address) = settings.metrics {
        let metrics = MetricsListener::bind(address)
            .await
            .map_err(StartError::Listen)?;
        tokio::task::spawn_local(metrics.serve(Rc::clone(&api)));
    }
    tokio::task::spawn_local(admin.serve(api));
    Ok(())
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
        systemd::stopping(&format!("draining {live} connections"), deadline);
        self.agent.stop_accepting(&self.process.settings.borrow());
    }
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
