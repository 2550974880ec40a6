//! The race between a client's first bytes and its service's, on ports where
//! nobody knows who speaks first.

use std::pin::pin;

use tokio::time::timeout;

use super::context::Context;
use super::error::FlowError;
use super::upstream::{self, Upstream};
use crate::account::ConnectionRecord;
use crate::endpoint::Live;
use crate::identify::{Identified, Look, Patience, Question, Silence, Spoken, sniff};
use crate::policy::model::Protocol;

/// What came of it.
pub(super) enum Heard {
    /// The connection to the service stands as its policy says.
    Connected(Box<Upstream>),
    /// The client speaks something that asks for another way; what was dialled
    /// has been dropped, and the service has not been relayed a byte.
    Spoken(Spoken),
}

/// Dials as the policy says and listens to the client meanwhile. Nothing is
/// consumed from the client.
pub(super) async fn hear(
    context: &Context,
    live: &Live,
    identified: &Identified,
    record: &mut ConnectionRecord,
) -> Result<Heard, FlowError> {
    let cluster = upstream::route(identified, &Spoken::Unheard)?;
    let look = match identified.service.protocol {
        Protocol::Unset => Look::Any,
        _ => Look::TlsOnly,
    };
    let idle = cluster.policy.connection_pool.idle_timeout;
    let connecting = upstream::connect(
        context,
        live,
        identified,
        &cluster,
        &Spoken::Unheard,
        record,
    );
    if look == Look::TlsOnly && cluster.policy.tls.is_none() {
        // Whatever the client says, it goes on as it is.
        return connecting.await.map(Heard::connected);
    }
    // Lets the runtime learn of bytes that came with the connection, so that
    // nothing is dialled that they make needless.
    tokio::task::yield_now().await;
    let mut connecting = pin!(connecting);
    let mut sniffing = pin!(sniff(
        &identified.stream,
        Question { look, host: false },
        Patience {
            first: None,
            rest: context.settings().sniff_timeout,
        },
    ));
    let heard = tokio::select! {
        // A client that has spoken already is heard before anything is
        // dialled for nothing.
        biased;
        heard = &mut sniffing => heard,
        connected = &mut connecting => {
            let mut upstream = connected?;
            let first = async {
                tokio::select! {
                    biased;
                    heard = &mut sniffing => Some(heard),
                    () = upstream.speaks() => None,
                }
            };
            let first = match idle {
                // The relay's own timer then ends it.
                Some(limit) => timeout(limit, first).await.unwrap_or(None),
                None => first.await,
            };
            return match first {
                Some(Ok(heard)) if changes_the_way(&heard.spoken) => {
                    Ok(Heard::Spoken(heard.spoken))
                }
                _ => Ok(Heard::connected(upstream)),
            };
        }
    };
    match heard {
        Ok(heard) if changes_the_way(&heard.spoken) => Ok(Heard::Spoken(heard.spoken)),
        Err(Silence::Gone(Some(error))) => Err(FlowError::Client(error)),
        // Opaque bytes, or a half-close without a byte: a client may want only
        // to hear.
        _ => connecting.await.map(Heard::connected),
    }
}

fn changes_the_way(spoken: &Spoken) -> bool {
    matches!(spoken, Spoken::Tls { .. } | Spoken::Http)
}

impl Heard {
    fn connected(upstream: Upstream) -> Self {
        Self::Connected(Box::new(upstream))
    }
}
