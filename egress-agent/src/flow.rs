//! The path of a connection, from the kernel's hand-over to its record.
//!
//! [`serve`] takes what a listener accepted through the stages in order. Each
//! consumes the value of the one before; the record that runs along is written
//! when it is dropped, whatever happens.

use std::rc::Rc;
use std::sync::Arc;

use crate::accept::Accepted;
use crate::accept::socket::reset;
use crate::account::ConnectionRecord;
use crate::endpoint::Live;
use crate::identify::{Identified, IdentifyContext, Identity, PassOn, Spoken, identify};

mod context;
mod error;
mod first_bytes;
mod http;
mod upstream;
mod worker;

pub use context::{Context, Settings, Shared};
pub use error::FlowError;
use first_bytes::Heard;
use upstream::Upstream;
pub use worker::{Command, run_worker};

/// Carries one connection from its hand-over to its end.
pub async fn serve(context: Rc<Context>, accepted: Accepted) {
    let workload = context.workload_of(&accepted.captured.caller);
    let client = workload.client.clone();
    let mut record = context.account.begin(&accepted, workload);
    let live = context.live();
    let identified = identify(
        accepted,
        client,
        &IdentifyContext {
            snapshot: &live.snapshot,
            names: context.names(),
            sniff_timeout: context.settings().sniff_timeout,
        },
    )
    .await;
    match identified {
        Ok(Identity::Service(identified)) => {
            record.identified(&identified.service, &identified.host, &identified.spoken);
            match identified.spoken {
                Spoken::Http => http::carry(&context, identified, record),
                Spoken::Unheard => unheard(context, live, identified, record).await,
                Spoken::Tls { .. } | Spoken::Opaque => {
                    opaque(&context, &live, identified, &mut record).await;
                }
            }
        }
        Ok(Identity::PassOn(connection)) => pass_on(&context, connection, &mut record).await,
        Err(error) => record.failed(error.flag(), error.to_string()),
    }
}

/// A port where the server may speak first: the service is dialled at once, as
/// its policy says, and the client's first bytes are watched meanwhile. As long
/// as no byte of the service has been relayed, they can still change the way:
/// a client that speaks TLS itself gets a connection in which its bytes pass
/// untouched, one that speaks HTTP is routed by request.
async fn unheard(
    context: Rc<Context>,
    live: Arc<Live>,
    mut identified: Identified,
    mut record: ConnectionRecord,
) {
    match first_bytes::hear(&context, &live, &identified, &mut record).await {
        Ok(Heard::Connected(upstream)) => {
            relay(&context, identified, *upstream, &mut record).await;
        }
        Ok(Heard::Spoken(spoken)) => {
            record.heard(&spoken);
            let is_http = spoken == Spoken::Http;
            identified.spoken = spoken;
            if is_http {
                http::carry(&context, identified, record);
            } else {
                opaque(&context, &live, identified, &mut record).await;
            }
        }
        Err(error) => fail(&context, identified, &error, &mut record),
    }
}

/// Bytes that are not looked into: routed, connected and relayed as they are.
async fn opaque(
    context: &Context,
    live: &Live,
    identified: Identified,
    record: &mut ConnectionRecord,
) {
    match upstream::connect(context, live, &identified, &identified.spoken, record).await {
        Ok(upstream) => relay(context, identified, upstream, record).await,
        Err(error) => fail(context, identified, &error, record),
    }
}

/// A connection that only shares its address with a registered host: to that
/// address, untouched.
async fn pass_on(context: &Context, connection: PassOn, record: &mut ConnectionRecord) {
    context.account.metrics().passed_on();
    record.note("passed on: SNI or Host names another host than the one registered");
    let PassOn {
        captured,
        mut stream,
        netns,
        admitted: _admitted,
        ..
    } = connection;
    match upstream::connect_untouched(context, &captured, &netns, record).await {
        Ok(mut connected) => {
            record.connected(&connected);
            let limits = context.default_limits();
            let end = crate::relay::bytes(
                &mut stream,
                &mut connected.stream,
                limits,
                &context.buffers,
                record.traffic(),
            )
            .await;
            record.ended(&end);
        }
        Err(error) => {
            record.failed(error.flag(), error.to_string());
            reset(stream);
        }
    }
}

/// Moves bytes until the end.
async fn relay(
    context: &Context,
    identified: Identified,
    upstream: Upstream,
    record: &mut ConnectionRecord,
) {
    record.connected(&upstream.connected);
    let mut stream = identified.stream;
    let end = upstream.relay(context, &mut stream, record.traffic()).await;
    record.ended(&end);
}

/// No connection to the service: the application learns it by a reset, the
/// operator by the record and, once a minute for each cause, by the log.
fn fail(
    context: &Context,
    identified: Identified,
    error: &FlowError,
    record: &mut ConnectionRecord,
) {
    let cause = error.to_string();
    context.complain(&identified, &cause);
    record.failed(error.flag(), cause);
    reset(identified.stream);
}
