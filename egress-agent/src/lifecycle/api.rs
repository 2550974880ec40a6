//! The agent as the admin room sees it.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::drain::Drain;
use super::logging::LogControl;
use super::panics;
use super::signals::Order;
use super::worker::Pulses;
use crate::admin::{AdminApi, ApiError, view};
use crate::settings::value::{LogFilter, Scalar};
use crate::settings::{Loaded, Settings};

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
    orders: mpsc::Sender<Order>,
    settings_file: Option<String>,
    started: Instant,
}

impl Process {
    /// A process that is starting.
    pub fn new(
        loaded: &Loaded,
        registry: Registry,
        log: LogControl,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        Self {
            settings: RefCell::new(loaded.settings.clone()),
            registry,
            drain: Drain::new(),
            log,
            need_restart: RefCell::default(),
            pulses: RefCell::default(),
            ready: Cell::new(false),
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
            policy: None,
            capture: None,
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
}
