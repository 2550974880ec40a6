//! The path of a connection, from the kernel's hand-over to its record.
//!
//! [`serve`] takes what a listener accepted through the stages in order. Each
//! consumes the value of the one before; the record that runs along is written
//! when it is dropped, whatever happens.

use std::rc::Rc;

use tokio::net::TcpStream;

use crate::accept::socket::reset;
use crate::accept::{Accepted, Admitted};
use crate::account::ConnectionRecord;
use crate::endpoint::Live;
use crate::identify::{Identified, IdentifyContext, Identity, PassOn, Spoken, identify};
use crate::policy::snapshot::Client;

mod complaints;
mod context;
mod error;
mod eyeballs;
mod first_bytes;
mod http;
mod opening;
mod source;
mod upstream;
mod worker;

pub use context::{Context, Settings, Shared};
pub use error::FlowError;
use first_bytes::Heard;
use upstream::Upstream;
pub use worker::{Command, run_worker};

/// Carries one connection from its hand-over to its end.
pub async fn serve(context: Rc<Context>, accepted: Accepted) {
    let open = context.open();
    let workload = context.workload_of(&accepted.captured.caller);
    let client = workload.client.clone();
    let mut record = context.account.begin(&accepted, workload);
    // In a box of its own, so that what is needed only until the service is
    // reached is freed then: most open connections are idle relays.
    match Box::pin(reach(&context, accepted, client, &mut record)).await {
        Reached::Bytes(connection) => relay(&context, connection, &mut record).await,
        Reached::Http(identified) => http::carry(&context, *identified, record, open),
        Reached::Nobody => {}
    }
}

/// How far a connection came.
enum Reached {
    /// The service is connected; what follows are bytes.
    Bytes(Box<Connection>),
    /// The application speaks HTTP in the clear: each request goes its own way.
    Http(Box<Identified>),
    /// The connection is over, and its record says why.
    Nobody,
}

/// An application and its service, connected.
struct Connection {
    client: TcpStream,
    upstream: Upstream,
    /// Its place among the open connections.
    _admitted: Admitted,
}

/// Identified, routed, picked, connected.
async fn reach(
    context: &Context,
    accepted: Accepted,
    client: Client,
    record: &mut ConnectionRecord,
) -> Reached {
    let live = context.live();
    let identifying = IdentifyContext {
        snapshot: &live.snapshot,
        names: context.names(),
        sniff_timeout: context.settings().sniff_timeout,
    };
    let identified = match identify(accepted, client, &identifying).await {
        Ok(Identity::Service(identified)) => identified,
        Ok(Identity::PassOn(connection)) => return pass_on(context, connection, record).await,
        Err(error) => {
            record.failed(error.flag(), error.to_string());
            return Reached::Nobody;
        }
    };
    record.identified(&identified.service, &identified.host, &identified.spoken);
    let connected = match identified.spoken {
        Spoken::Http => return Reached::Http(Box::new(identified)),
        Spoken::Tls { .. } | Spoken::Opaque => {
            connect(context, &live, &identified, &identified.spoken, record).await
        }
        Spoken::Unheard => match first_bytes::hear(context, &live, &identified, record).await {
            Ok(Heard::Connected(upstream)) => Ok(*upstream),
            Ok(Heard::Spoken(Spoken::Http)) => {
                record.heard(&Spoken::Http);
                let spoken = Spoken::Http;
                let identified = Identified {
                    spoken,
                    ..identified
                };
                return Reached::Http(Box::new(identified));
            }
            Ok(Heard::Spoken(spoken)) => {
                record.heard(&spoken);
                connect(context, &live, &identified, &spoken, record).await
            }
            Err(error) => Err(error),
        },
    };
    let mut identified = identified;
    let mut upstream = match connected {
        Ok(upstream) => upstream,
        Err(error) => {
            fail(context, &identified, &error, record);
            opening::refuse(&mut identified, &error).await;
            reset(identified.stream);
            return Reached::Nobody;
        }
    };
    if let Err(error) = upstream.open(&mut identified.stream).await {
        fail(context, &identified, &error, record);
        reset(identified.stream);
        return Reached::Nobody;
    }
    Reached::Bytes(Box::new(Connection {
        client: identified.stream,
        upstream,
        _admitted: identified.admitted,
    }))
}

/// Bytes that are not looked into: routed, then connected.
async fn connect(
    context: &Context,
    live: &Live,
    identified: &Identified,
    spoken: &Spoken,
    record: &mut ConnectionRecord,
) -> Result<Upstream, FlowError> {
    let cluster = upstream::route(identified, spoken)?;
    upstream::connect(context, live, identified, &cluster, spoken, record).await
}

/// A connection that only shares its address with a registered host: to that
/// address, untouched.
async fn pass_on(context: &Context, connection: PassOn, record: &mut ConnectionRecord) -> Reached {
    context.account.metrics().passed_on();
    record.note("passed on: SNI or Host names no registered host at this address");
    record.heard(&connection.spoken);
    let PassOn {
        captured, netns, ..
    } = &connection;
    match upstream::connect_untouched(context, captured, netns, record).await {
        Ok(upstream) => Reached::Bytes(Box::new(Connection {
            client: connection.stream,
            upstream,
            _admitted: connection.admitted,
        })),
        Err(error) => {
            record.failed(error.flag(), error.to_string());
            reset(connection.stream);
            Reached::Nobody
        }
    }
}

/// Moves bytes until the end.
async fn relay(context: &Context, mut connection: Box<Connection>, record: &mut ConnectionRecord) {
    record.connected(connection.upstream.connected());
    let Connection {
        client, upstream, ..
    } = &mut *connection;
    let end = upstream.relay(context, client, record.traffic()).await;
    record.ended(&end);
}

/// No connection to the service: the application learns it by a reset, the
/// operator by the record and, once a minute for each cause, by the log.
fn fail(
    context: &Context,
    identified: &Identified,
    error: &FlowError,
    record: &mut ConnectionRecord,
) {
    let cause = error.to_string();
    context.complain(identified, &cause);
    record.failed(error.flag(), cause);
}
