//! The agent as the admin room sees it.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::drain::Drain;
use super::logging::LogControl;
use super::signals::Order;
use super::views::Views;
use super::worker::Pulses;
use super::{metrics, panics};
use crate::admin::{AdminApi, ApiError, Pending, Query, documents, view};
use crate::policy::source::keeper::Keeper;
use crate::settings::value::{LogFilter, Outbound, Scalar};
use crate::settings::{Loaded, Reloaded, Settings};

/// A worker that has not turned for this long is stalled.
const STALL: Duration = Duration::from_secs(5);

/// State of the process that the control runtime shares between its tasks.
pub struct Process {
    /// Settings in force; changed by a reload.
    pub settings: RefCell<Settings>,
    /// Metrics of every room.
    pub registry: Registry,
    /// The drain.
    pub drain: Drain,
    /// What changes the log filter.
    pub log: LogControl,
    /// Keys that were changed and wait for a restart.
    pub need_restart: RefCell<Vec<&'static str>>,
    /// Whether the workers turn; unset until they are started.
    pub pulses: RefCell<Option<Pulses>>,
    /// Capture is proven and connections are taken.
    pub ready: Cell<bool>,
    /// What the rooms look like; unset until they stand.
    pub(super) views: RefCell<Option<Views>>,
    orders: mpsc::Sender<Order>,
    settings_file: Option<String>,
    started: Instant,
}

impl Process {
    /// A process that is starting.
    pub fn new(
        loaded: &Loaded,
        mut registry: Registry,
        log: LogControl,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let drain = Drain::new();
        metrics::register(&mut registry, &drain);
        Self {
            settings: RefCell::new(loaded.settings.clone()),
            registry,
            drain,
            log,
            need_restart: RefCell::default(),
            pulses: RefCell::default(),
            ready: Cell::new(false),
            views: RefCell::default(),
            orders,
            settings_file: loaded.file.as_ref().map(|path| path.display().to_string()),
            started: Instant::now(),
        }
    }

    /// `starting`, `ready` or `draining`.
    pub fn state(&self) -> &'static str {
        if self.drain.is_draining() {
            "draining"
        } else if self.ready.get() {
            "ready"
        } else {
            "starting"
        }
    }

    /// Puts settings in force as far as they may change while the agent runs,
    /// and says which others were changed.
    pub fn reload(&self, new: &Settings) -> Reloaded {
        let mut settings = self.settings.borrow_mut();
        let outcome = settings.reload(new);
        // Also when it was changed through the admin API since.
        self.log.set(&settings.log);
        tracing::info!(changed = ?outcome.taken, "settings read again");
        if !outcome.need_restart.is_empty() {
            tracing::warn!(
                settings = ?outcome.need_restart,
                "these settings were changed and wait for a restart"
            );
        }
        self.need_restart.replace(outcome.need_restart.clone());
        outcome
    }

    fn look<T>(&self, tell: impl FnOnce(&Views) -> Result<T, ApiError>) -> Result<T, ApiError> {
        match &*self.views.borrow() {
            Some(views) => tell(views),
            None => Err(ApiError::Unavailable("the agent is starting".to_owned())),
        }
    }

    fn keep<T: 'static>(&self, ask: impl FnOnce(&Keeper) -> Pending<T>) -> Pending<T> {
        self.look(|views| Ok(ask(&views.policy)))
            .unwrap_or_else(|error| Box::pin(std::future::ready(Err(error))))
    }

    fn stalled(&self) -> Vec<usize> {
        let pulses = self.pulses.borrow();
        pulses
            .as_ref()
            .map(|pulses| pulses.stalled(STALL))
            .unwrap_or_default()
    }

    /// The process part of the status, and its warnings.
    pub fn status(&self) -> view::Status {
        let stalled = self.stalled();
        let need_restart: Vec<String> = self
            .need_restart
            .borrow()
            .iter()
            .map(|key| (*key).to_owned())
            .collect();
        let panics = panics::count();
        let mut warnings = Vec::new();
        if !stalled.is_empty() {
            warnings.push(format!("workers {stalled:?} do not turn"));
        }
        if panics > 0 {
            warnings.push(format!(
                "{panics} panics since the start: bugs of the agent; see the log"
            ));
        }
        if !need_restart.is_empty() {
            warnings.push(format!(
                "changed settings wait for a restart: {}",
                need_restart.join(", ")
            ));
        }
        let views = self.views.borrow();
        let policy = views.as_ref().map(Views::policy);
        let capture = views.as_ref().map(|views| views.capture(&mut warnings));
        let kubernetes = views.as_ref().and_then(|v| v.kubernetes(&mut warnings));
        if let Some(refused) = policy.as_ref().map(|p| p.rejected).filter(|n| *n > 0) {
            warnings.push(format!(
                "{refused} policy documents were refused; `egressctl get -o wide` says why"
            ));
        }
        view::Status {
            agent: view::Agent {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                state: self.state().to_owned(),
                uptime_seconds: self.started.elapsed().as_secs(),
                settings_file: self.settings_file.clone(),
                workers: self.settings.borrow().workers.0.get(),
                stalled_workers: stalled,
                connections: self.drain.live(),
                log: self.log.current(),
                panics,
                need_restart,
            },
            policy,
            kubernetes,
            capture,
            warnings,
        }
    }
}

impl AdminApi for Process {
    fn status(&self) -> view::Status {
        Self::status(self)
    }

    fn healthy(&self) -> Result<(), String> {
        let stalled = self.stalled();
        if stalled.is_empty() {
            Ok(())
        } else {
            Err(format!("workers {stalled:?} do not turn"))
        }
    }

    fn ready(&self) -> Result<(), String> {
        match self.state() {
            "ready" => self.healthy(),
            other => Err(other.to_owned()),
        }
    }

    fn metrics(&self) -> Result<String, ApiError> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .map_err(|error| ApiError::Failed(error.to_string()))?;
        Ok(text)
    }

    fn drain(&self) -> Result<view::Draining, ApiError> {
        // A full queue means that orders of this kind are waiting already.
        self.orders
            .try_send(Order::Drain)
            .map_err(|_| ApiError::Unavailable("the agent is busy with other orders".into()))?;
        let deadline = self.settings.borrow().drain_deadline;
        Ok(view::Draining {
            connections: self.drain.live(),
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn set_log(&self, filter: &str) -> Result<view::Log, ApiError> {
        let filter = LogFilter::parse(filter).map_err(|fault| ApiError::Invalid(fault.message))?;
        self.log.set(&filter);
        Ok(view::Log {
            filter: self.log.current(),
        })
    }

    fn services(&self, query: &Query) -> Result<Vec<view::Service>, ApiError> {
        self.look(|views| Ok(views.services(query)))
    }

    fn endpoints(&self, query: &Query) -> Result<Vec<view::Endpoint>, ApiError> {
        self.look(|views| Ok(views.endpoints(query)))
    }

    fn secrets(&self, query: &Query) -> Result<Vec<view::Secret>, ApiError> {
        self.look(|views| Ok(views.secrets(query)))
    }

    fn dns(&self, query: &Query) -> Result<Vec<view::Name>, ApiError> {
        self.look(|views| Ok(views.dns(query)))
    }

    fn observe(&self, query: &Query) -> Result<Vec<view::Unregistered>, ApiError> {
        self.look(|views| views.observe(query).map_err(ApiError::Failed))
    }

    fn forget_observed(&self) -> Result<(), ApiError> {
        self.look(|views| {
            views
                .kernel
                .forget_unregistered()
                .map_err(|error| ApiError::Failed(error.to_string()))
        })
    }

    fn documents(&self, query: &Query) -> Pending<Vec<view::Document>> {
        self.keep(|keeper| documents::documents(keeper, query))
    }

    fn apply(&self, text: String, query: &Query) -> Pending<Vec<view::Change>> {
        self.keep(|keeper| documents::apply(keeper, text, query))
    }

    fn delete(&self, text: String, query: &Query) -> Pending<Vec<view::Change>> {
        self.keep(|keeper| documents::delete(keeper, text, query))
    }

    fn explain(&self, query: &Query) -> Pending<serde_json::Value> {
        let registry_only = self.settings.borrow().outbound == Outbound::RegistryOnly;
        let answer = self.look(|views| {
            let (explanation, attempt) = views.explain(query, registry_only)?;
            Ok((explanation, attempt, views.connector.clone()))
        });
        Box::pin(async move {
            let (mut explanation, attempt, connector) = answer?;
            if let Some(attempt) = attempt {
                explanation.connections = connector.connect(attempt).await?;
            }
            serde_json::to_value(&explanation).map_err(|error| ApiError::Failed(error.to_string()))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::worker;
    use super::*;
    use crate::settings::{Sources, command};

    fn loaded(flags: &[&str]) -> Loaded {
        let line = [&["egress-agent", "--settings", "/dev/null"], flags].concat();
        let matches = command::command().try_get_matches_from(line).unwrap();
        Sources::new(&matches, []).load().unwrap()
    }

    #[tokio::test]
    async fn it_is_ready_only_between_start_and_drain() {
        let (log, _layer) = LogControl::detached();
        let (orders, mut waiting) = mpsc::channel(2);
        let process = Process::new(&loaded(&[]), Registry::default(), log, orders);
        assert_eq!(process.ready(), Err("starting".to_owned()));
        process.ready.set(true);
        assert_eq!(process.ready(), Ok(()));

        let _open = process.drain.enter();
        let draining = AdminApi::drain(&process).unwrap();
        assert_eq!((draining.connections, draining.deadline_ms), (1, 30_000));
        assert_eq!(waiting.recv().await, Some(Order::Drain));
        process.drain.begin(Duration::from_secs(1));
        assert_eq!(process.ready(), Err("draining".to_owned()));
        assert_eq!(process.status().agent.state, "draining");
        assert_eq!(process.status().agent.connections, 1);
        assert!(process.metrics().unwrap().contains("egress_draining 1"));

        // Orders that nobody takes do not pile up.
        for _ in 0..2 {
            AdminApi::drain(&process).unwrap();
        }
        assert!(AdminApi::drain(&process).is_err());
    }

    #[tokio::test]
    async fn a_reload_is_told_in_the_status() {
        let (log, _layer) = LogControl::detached();
        let (orders, _waiting) = mpsc::channel(1);
        let process = Process::new(&loaded(&[]), Registry::default(), log, orders);
        assert_eq!(process.set_log("debug").unwrap().filter, "debug");
        assert!(process.set_log("[").is_err());

        let new = loaded(&["--drain-deadline", "5s", "--state-dir", "/elsewhere"]);
        let outcome = process.reload(&new.settings);
        assert_eq!(outcome.taken, ["drain-deadline"]);
        let status = process.status();
        assert_eq!(status.agent.need_restart, ["state-dir"]);
        assert!(status.warnings[0].contains("state-dir"));
        // What was set by hand ends with a reload.
        assert_eq!(status.agent.log, "info");

        process.reload(&loaded(&["--drain-deadline", "5s"]).settings);
        assert!(process.status().warnings.is_empty());
    }

    #[tokio::test]
    async fn workers_that_turn_are_healthy() {
        let (log, _layer) = LogControl::detached();
        let (orders, _waiting) = mpsc::channel(1);
        let process = Process::new(&loaded(&[]), Registry::default(), log, orders);
        let mut workers = worker::spawn(1, &process.drain, |context| async move {
            context.ready();
            context.drain.ended().await;
            Ok::<_, std::io::Error>(())
        })
        .unwrap();
        workers.all_ready().await.unwrap();
        process.pulses.replace(Some(workers.pulses()));
        assert_eq!(process.healthy(), Ok(()));
        process.drain.cut();
        assert!(workers.all_ended(Duration::from_mins(1)).await);
    }
}
