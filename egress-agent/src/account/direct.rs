//! Records of connections that the kernel carried alone. Its reports say what a
//! relay would have seen, so the line and the metrics are the same.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Account;
use super::record::{ConnectionLine, ConnectionRecord, Origin};
use crate::capture::Captured;
use crate::endpoint::resolved::Destination;
use crate::flag::Flag;
use crate::identify::Workload;
use crate::policy::snapshot::{Cluster, Service};

/// A direct connection, as far as the kernel has reported it.
#[derive(Debug)]
pub struct DirectConnection {
    /// Who called, and what was dialled. The client's own address is not in
    /// the report: it is unspecified.
    pub captured: Captured,
    /// Who that is.
    pub workload: Workload,
    /// The service.
    pub service: Arc<Service>,
    /// The cluster whose endpoints were picked from.
    pub cluster: Arc<Cluster>,
    /// The endpoint, if one was used.
    pub endpoint: Option<Destination>,
    /// From `connect` to this report.
    pub age: Duration,
    /// From `connect` to the end of the handshake.
    pub handshake: Option<Duration>,
}

/// How it ended.
#[derive(Debug)]
pub enum DirectEnd {
    /// Carried to its end.
    Closed {
        /// Bytes from the application.
        received: u64,
        /// Bytes to the application.
        sent: u64,
    },
    /// It never was, or ended badly.
    Failed {
        /// Flag of the record.
        flag: Flag,
        /// Cause for people.
        cause: String,
        /// Bytes from the application.
        received: u64,
        /// Bytes to the application.
        sent: u64,
    },
}

impl Account {
    /// Counts a direct connection as open.
    pub fn direct_opened(&self, service: &Arc<Service>, workload: &Workload) {
        let account = &self.0;
        account
            .series
            .borrow_mut()
            .tcp(&account.metrics, service, workload, "none")
            .opened();
    }

    /// Writes the record of a direct connection that is over.
    pub fn direct_ended(&self, connection: DirectConnection, end: DirectEnd) {
        let now = Instant::now();
        let age = connection.age;
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        let line = ConnectionLine {
            service: Some(Arc::clone(&connection.service)),
            host: connection.service.key.host.exact().cloned(),
            cluster: Some(connection.cluster),
            attempts: u32::from(connection.endpoint.is_some()),
            endpoint: connection.endpoint,
            connect_time: connection.handshake,
            ..ConnectionLine::new(Arc::new(Origin {
                captured: connection.captured,
                workload: connection.workload,
                started: now.checked_sub(age).unwrap_or(now),
                started_at: SystemTime::now() - age,
                direct: true,
            }))
        };
        let mut record = ConnectionRecord::of(self.clone(), number, Rc::default(), line);
        let (received, sent) = match end {
            DirectEnd::Closed { received, sent } => {
                record.ended_well();
                (received, sent)
            }
            DirectEnd::Failed {
                flag,
                cause,
                received,
                sent,
            } => {
                record.failed(flag, cause);
                (received, sent)
            }
        };
        if let Some(series) = record.series() {
            series.received(received);
            series.sent(sent);
        }
        record.traffic().received.set(received);
        record.traffic().sent.set(sent);
    }
}
