//! The record of one connection.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::log::json;
use super::series::{FlagSet, TcpSeries};
use super::{Account, Inner, OpenTraffic};
use crate::accept::Accepted;
use crate::capture::Captured;
use crate::connect::{Connected, TlsFacts};
use crate::endpoint::resolved::Destination;
use crate::flag::Flag;
use crate::identify::{Spoken, Workload};
use crate::policy::snapshot::{Cluster, Service};
use crate::relay::{End, Traffic};

/// Who made a connection, when, and to what: shared by its record and those of
/// its requests.
#[derive(Debug)]
pub struct Origin {
    /// What the kernel recorded.
    pub captured: Captured,
    /// The workload.
    pub workload: Workload,
    /// When it was accepted.
    pub started: Instant,
    /// The same on the wall clock.
    pub started_at: SystemTime,
    /// The kernel picked the endpoint; no proxy was in the path.
    pub direct: bool,
}

/// What a connection's line says beyond its origin.
#[derive(Debug)]
pub(super) struct ConnectionLine {
    pub(super) origin: Arc<Origin>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) host: Option<Arc<str>>,
    pub(super) spoken: Option<Spoken>,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) endpoint: Option<Destination>,
    pub(super) local: Option<SocketAddr>,
    pub(super) tls: Option<TlsFacts>,
    pub(super) attempts: u32,
    pub(super) connect_time: Option<Duration>,
    pub(super) tls_time: Option<Duration>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) duration: Duration,
    pub(super) flags: FlagSet,
    pub(super) cause: Option<String>,
    pub(super) note: Option<&'static str>,
}

/// The record of one connection. Dropping it writes it: to the log as a line,
/// to the metrics as a closed connection. A connection that turns out to carry
/// HTTP is recorded request by request instead ([`Self::carries_http`]).
#[derive(Debug)]
pub struct ConnectionRecord {
    account: Account,
    number: u64,
    open: Rc<OpenTraffic>,
    /// `None` once written.
    line: Option<Box<ConnectionLine>>,
    http: bool,
    /// Somebody said how it ended.
    ended: bool,
    /// Made for the first request that is logged.
    origin_text: OnceCell<Box<[u8]>>,
}

impl Account {
    /// Begins the record of a connection.
    pub fn begin(&self, accepted: &Accepted, workload: Workload) -> ConnectionRecord {
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        let line = ConnectionLine::new(Arc::new(Origin {
            captured: accepted.captured.clone(),
            workload,
            started: accepted.started,
            started_at: accepted.started_at,
            direct: false,
        }));
        ConnectionRecord::of(self.clone(), number, Rc::default(), line)
    }
}

impl ConnectionLine {
    /// Nothing is known but who called, and what.
    pub(super) fn new(origin: Arc<Origin>) -> Self {
        Self {
            origin,
            service: None,
            host: None,
            spoken: None,
            cluster: None,
            endpoint: None,
            local: None,
            tls: None,
            attempts: 0,
            connect_time: None,
            tls_time: None,
            received: 0,
            sent: 0,
            duration: Duration::ZERO,
            flags: FlagSet::default(),
            cause: None,
            note: None,
        }
    }
}

impl ConnectionRecord {
    pub(super) fn of(
        account: Account,
        number: u64,
        open: Rc<OpenTraffic>,
        line: ConnectionLine,
    ) -> Self {
        Self {
            account,
            number,
            open,
            http: false,
            ended: false,
            line: Some(Box::new(line)),
            origin_text: OnceCell::new(),
        }
    }

    /// It was carried to its end.
    pub(super) const fn ended_well(&mut self) {
        self.ended = true;
    }

    /// The metrics that it counts in.
    pub(super) fn series(&self) -> Option<Rc<TcpSeries>> {
        let line = self.line.as_ref()?;
        let account = &self.account.0;
        Some(account.series.borrow_mut().tcp(
            &account.metrics,
            line.service.as_ref()?,
            &line.origin.workload,
            security(line),
        ))
    }

    fn edit(&mut self, change: impl FnOnce(&mut ConnectionLine)) {
        if let Some(line) = &mut self.line {
            change(line);
        }
    }

    /// Which service, under which name, and what the client speaks.
    pub fn identified(&mut self, service: &Arc<Service>, host: &Arc<str>, spoken: &Spoken) {
        self.edit(|line| {
            line.service = Some(service.clone());
            line.host = Some(host.clone());
            line.spoken = Some(spoken.clone());
        });
    }

    /// What the client's bytes told later.
    pub fn heard(&mut self, spoken: &Spoken) {
        self.edit(|line| line.spoken = Some(spoken.clone()));
    }

    /// The cluster that the connection is routed to.
    pub fn routed(&mut self, cluster: &Arc<Cluster>) {
        self.edit(|line| line.cluster = Some(cluster.clone()));
    }

    /// Another endpoint is tried.
    pub fn trying(&mut self, endpoint: &Destination) {
        self.edit(|line| {
            line.endpoint = Some(endpoint.clone());
            line.attempts += 1;
        });
    }

    /// Of two endpoints that were tried at a time, this one answered.
    pub fn reached(&mut self, endpoint: &Destination) {
        self.edit(|line| line.endpoint = Some(endpoint.clone()));
    }

    /// Connected: from here on it counts as open.
    pub fn connected(&mut self, connected: &Connected) {
        let logged = self.is_logged();
        self.edit(|line| {
            if logged {
                line.local = connected.local();
            }
            line.tls.clone_from(&connected.tls);
            line.connect_time = Some(connected.tcp_time);
            line.tls_time = connected.tls.as_ref().map(|_| connected.tls_time);
        });
        if let Some(line) = &self.line
            && let Some(service) = &line.service
        {
            let security = security(line);
            let account = &self.account.0;
            let series = account.series.borrow_mut().tcp(
                &account.metrics,
                service,
                &line.origin.workload,
                security,
            );
            series.opened();
            self.open.series.replace(Some(series));
            account
                .open
                .borrow_mut()
                .insert(self.number, self.open.clone());
        }
    }

    /// Counters for the relay.
    pub fn traffic(&self) -> &Traffic {
        &self.open.traffic
    }

    /// Remarks what is out of the ordinary though nothing failed.
    pub fn note(&mut self, note: &'static str) {
        self.edit(|line| line.note = Some(note));
    }

    /// It failed, or ended other than in order. The last cause given stands.
    pub fn failed(&mut self, flag: Flag, cause: String) {
        self.ended = true;
        self.edit(|line| {
            line.flags.add(flag);
            line.cause = Some(cause);
        });
    }

    /// How the relay ended.
    pub fn ended(&mut self, end: &End) {
        self.ended = true;
        if let Some(flag) = end.flag() {
            self.failed(flag, end.to_string());
        }
    }

    /// Its requests have records of their own, so it writes one only if it
    /// fails as a whole.
    pub fn carries_http(&mut self) {
        self.http = true;
        self.ended = true;
    }

    /// Whether there is a log, so that what only the log shows is worth keeping.
    pub fn is_logged(&self) -> bool {
        self.account.0.log.is_some()
    }

    /// The access log's line as it would be written now.
    pub fn json(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Some(line) = &self.line {
            json::connection(&mut text, line);
        }
        text
    }

    /// Its account and line, as long as it is not written.
    pub(super) fn open_line(&self) -> Option<(&Inner, &ConnectionLine)> {
        Some((&self.account.0, self.line.as_deref()?))
    }

    /// What the lines of all its requests say of it, as JSON.
    pub(super) fn origin_text(&self) -> &[u8] {
        self.origin_text.get_or_init(|| {
            let mut text = Vec::new();
            if let Some(line) = &self.line {
                json::origin(&mut text, &line.origin, line.service.as_deref());
            }
            text.into()
        })
    }
}

/// `connection_security_policy`.
fn security(line: &ConnectionLine) -> &'static str {
    match (&line.tls, &line.spoken) {
        (Some(tls), _) if tls.mutual => "mutual_tls",
        (Some(_), _) => "tls",
        (None, Some(Spoken::Tls { .. })) => "passthrough",
        (None, _) => "none",
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if !self.ended {
            self.failed(Flag::LocalReset, "the agent stopped".to_owned());
        }
        let Some(mut line) = self.line.take() else {
            return;
        };
        let account = &self.account.0;
        account.open.borrow_mut().remove(&self.number);
        self.open.report();
        if self.http && line.cause.is_none() {
            return;
        }
        line.received = self.open.traffic.received.get();
        line.sent = self.open.traffic.sent.get();
        line.duration = line.origin.started.elapsed();
        let series = self.open.series.take().or_else(|| {
            // Never connected: counted as closed all the same, as Envoy does.
            let service = line.service.as_ref()?;
            let security = security(&line);
            let mut cache = account.series.borrow_mut();
            let series = cache.tcp(&account.metrics, service, &line.origin.workload, security);
            series.opened();
            Some(series)
        });
        if let Some(series) = series {
            series.closed(line.flags);
        }
        if let Some(log) = &account.log {
            log.line(|text| json::connection(text, &line));
        }
    }
}
