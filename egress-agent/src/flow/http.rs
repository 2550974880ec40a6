//! The seam between the flow and the HTTP relay: who calls, and where the
//! records of requests go.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::spawn_local;

use super::complaints::Complaints;
use super::context::Context;
use crate::account::{ConnectionRecord, RequestDetails, RequestEnd};
use crate::capture;
use crate::flag::Flag;
use crate::identify::Identified;
use crate::lifecycle::drain::DrainGuard;
use crate::policy::snapshot::Service;
use crate::relay::http::{Caller, End, Log, Record, serve};

/// Carries a connection on which the application speaks HTTP in the clear, in
/// a task of its own: such connections are many, live long, and do nothing
/// most of the time, so theirs is the smallest possible. `open` counts it as
/// open until its end.
pub(super) fn carry(
    context: &Context,
    identified: Identified,
    mut record: ConnectionRecord,
    open: DrainGuard,
) {
    let complaint = Complaint {
        complaints: context.complaints.clone(),
        service: Arc::clone(&identified.service),
        host: Arc::clone(&identified.host),
        caller: identified.captured.caller,
    };
    let Identified {
        captured,
        stream,
        netns,
        service,
        host,
        client,
        admitted,
        ..
    } = identified;
    let caller = Caller {
        peer: context.source(&netns, &captured),
        original: captured.original,
        name_decides: captured.name_decides,
        netns,
        host,
        client,
    };
    record.carries_http();
    let worker = Rc::clone(&context.http);
    let peer: SocketAddr = caller.peer;
    let log = Requests {
        connection: record,
        complaint,
    };
    let serving = serve(worker, caller, service, stream, log);
    spawn_local(async move {
        match serving.await {
            End::Closed => {}
            end @ (End::Client(_) | End::NoPolicy) => {
                tracing::debug!(%peer, "HTTP connection: {end}");
            }
        }
        drop((open, admitted));
    });
}

/// Writes the records of a connection's requests, and tells failures in the
/// log.
struct Requests {
    connection: ConnectionRecord,
    complaint: Complaint,
}

/// Whose requests fail, for the log.
struct Complaint {
    complaints: Complaints,
    service: Arc<Service>,
    host: Arc<str>,
    caller: capture::Caller,
}

impl Complaint {
    /// Tells what an operator has to look at: that the service was not
    /// reached. What it answers, and what clients do, stays in the records.
    fn tell(&self, record: &Record) {
        if record.details.is_empty() {
            return;
        }
        let unreached = record.flags.iter().any(|flag| {
            matches!(
                flag,
                Flag::UpstreamConnectionFailure
                    | Flag::NoHealthyUpstream
                    | Flag::DnsResolutionFailure
                    | Flag::UpstreamOverflow
                    | Flag::NoClusterFound
                    | Flag::UpstreamProtocolError
            )
        });
        if unreached {
            let Self {
                complaints,
                service,
                host,
                caller,
            } = self;
            complaints.tell(service, host, caller, &record.details);
        }
    }
}

impl Log for Requests {
    fn wants_details(&self) -> bool {
        self.connection.is_logged()
    }

    fn request(&self, record: &Record) {
        self.complaint.tell(record);
        let end = RequestEnd {
            duration: record.duration,
            received: record.received,
            sent: record.sent,
            flags: &record.flags,
            status: record.status.map_or(0, |status| status.as_u16()),
            grpc: record.grpc_status,
            security: record.security.name(),
            attempts: record.attempts,
        };
        self.connection.request(&end, || RequestDetails {
            method: &record.method,
            path: record.path.as_ref(),
            protocol: record.version,
            authority: record.authority.as_ref(),
            user_agent: record.user_agent.as_ref(),
            request_id: record.request_id.as_ref(),
            forwarded_for: record.forwarded_for.as_ref(),
            answer: record.answer,
            cause: (!record.details.is_empty()).then_some(&*record.details),
            route: record.route.as_deref(),
            cluster: record.cluster.as_deref(),
            endpoint: record.upstream.as_ref(),
            upstream_local: record.upstream_local,
            service_time: record.service_time,
        });
    }
}
