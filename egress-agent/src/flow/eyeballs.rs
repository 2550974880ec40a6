//! One try to connect, which may go to two addresses of one name.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::account::ConnectionRecord;
use crate::connect::starttls::Opening;
use crate::connect::{ConnectError, Connected, DialContext, Phase, dial_observed};
use crate::endpoint::{Endpoint, EndpointId, Outcome, Picked};

/// How long an address has to itself (RFC 8305 section 5 recommends this).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

type Dialled = Result<(Connected, Picked), ConnectError>;

/// Dials, and tells the endpoint how it went. An address that does not answer
/// TCP for a moment gets the company that `company` finds (given the endpoints
/// tried so far), and the one that connects first wins: a host with a broken
/// IPv6 path costs its clients a quarter of a second, not the whole
/// `connectTimeout`.
pub(super) async fn dial(
    context: &DialContext<'_>,
    picked: Picked,
    company: impl Fn(&Endpoint, &[EndpointId]) -> Option<Picked>,
    tried: &mut Vec<EndpointId>,
    record: &mut ConnectionRecord,
) -> Dialled {
    let phase = Cell::new(Phase::Tcp);
    let endpoint = Arc::clone(&picked.endpoint);
    let mut first = pin!(one(context, picked, &phase));
    let other = tokio::select! {
        biased;
        dialled = &mut first => return dialled,
        () = sleep(ATTEMPT_DELAY) => match phase.get() {
            Phase::Tcp => company(&endpoint, tried),
            Phase::Tls => None,
        },
    };
    let Some(other) = other else {
        return first.await;
    };
    tried.push(other.endpoint.id);
    record.trying(&other.destination);
    let unseen = Cell::new(Phase::Tcp);
    let mut second = pin!(one(context, other, &unseen));
    let dialled = tokio::select! {
        biased;
        dialled = &mut first => match dialled {
            Err(_) => second.await,
            dialled => dialled,
        },
        dialled = &mut second => match dialled {
            Err(_) => first.await,
            dialled => dialled,
        },
    };
    if let Ok((_, picked)) = &dialled {
        record.reached(&picked.destination);
    }
    dialled
}

async fn one(context: &DialContext<'_>, picked: Picked, phase: &Cell<Phase>) -> Dialled {
    match dial_observed(context, &picked.destination, phase).await {
        Ok(connected) => {
            // An endpoint whose TLS has yet to start is judged when it has.
            if !matches!(connected.opening, Some(Opening::Mysql(_))) {
                picked.report(Outcome::Connected);
            }
            Ok((connected, picked))
        }
        Err(error) => {
            picked.report(error.outcome());
            Err(error)
        }
    }
}
