//! One record per connection and request, to metrics and access log.
//!
//! A [`ConnectionRecord`] is begun when a connection is accepted and filled in
//! on its way. When it is dropped, however that comes about, it writes its
//! line and its metrics: exactly once. Nothing on that path takes a lock or waits: handles to metrics are kept for each series, and lines
//! go to the log's own thread many at a time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

mod direct;
mod histogram;
mod lines;
mod log;
mod metrics;
mod record;
mod request;
mod series;
#[cfg(test)]
mod tests;

pub use direct::{DirectConnection, DirectEnd};
use lines::Lines;
pub use log::{AccessLog, LogTarget};
pub use metrics::Metrics;
pub use record::{ConnectionRecord, Origin};
pub use request::{RequestDetails, RequestEnd};
use series::SeriesCache;

use crate::relay::Traffic;

/// How often the bytes of long connections reach the metrics, as Istio does
/// for TCP.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(15);

/// Accounting of one worker.
#[derive(Clone, Debug)]
pub struct Account(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Arc<Metrics>,
    log: Option<Lines>,
    series: RefCell<SeriesCache>,
    /// Relayed connections that are open, to report their bytes while they
    /// run.
    open: RefCell<HashMap<u64, Rc<OpenTraffic>>>,
    next: Cell<u64>,
}

/// Bytes of an open connection, and how many of them the metrics know.
#[derive(Debug, Default)]
struct OpenTraffic {
    traffic: Traffic,
    reported_received: Cell<u64>,
    reported_sent: Cell<u64>,
    series: RefCell<Option<Rc<series::TcpSeries>>>,
}

impl OpenTraffic {
    fn report(&self) {
        let series = self.series.borrow();
        let Some(series) = series.as_ref() else {
            return;
        };
        let (received, sent) = (self.traffic.received.get(), self.traffic.sent.get());
        series.received(received - self.reported_received.replace(received));
        series.sent(sent - self.reported_sent.replace(sent));
    }
}

impl Account {
    /// Accounting for one worker; without a log, only metrics.
    pub fn new(metrics: Arc<Metrics>, log: Option<AccessLog>) -> Self {
        Self(Rc::new(Inner {
            metrics,
            log: log.map(Lines::new),
            series: RefCell::default(),
            open: RefCell::default(),
            next: Cell::new(0),
        }))
    }

    /// The metrics of the process.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Reports the bytes of open connections, and hands lines to the log while
    /// they are fresh, for ever. Without this every line goes at once.
    pub async fn keep_flushing(&self) {
        let mut clock = tokio::time::interval(FLUSH_INTERVAL);
        let Some(lines) = &self.0.log else {
            loop {
                clock.tick().await;
                self.flush();
            }
        };
        let _gathering = lines.gather();
        loop {
            tokio::select! {
                _ = clock.tick() => self.flush(),
                () = lines.gathered() => {}
            }
            // Also when the clock has cut a wait short.
            lines.hand_over();
        }
    }

    /// Reports the bytes of open connections now.
    pub fn flush(&self) {
        for open in self.0.open.borrow().values() {
            open.report();
        }
    }
}
