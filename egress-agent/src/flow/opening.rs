//! What an application hears when TLS inside its protocol fails.

use super::error::FlowError;
use super::upstream;
use crate::connect::starttls;
use crate::identify::{Identified, Spoken};

/// Explains a failure of TLS to an application whose protocol has words for
/// it. A failure of TCP stays what it is: a reset.
pub(super) async fn refuse(identified: &mut Identified, error: &FlowError) {
    if !error.is_of_tls() || matches!(identified.spoken, Spoken::Tls { .. }) {
        return;
    }
    let cluster = upstream::route(identified, &identified.spoken);
    let tls = cluster
        .as_ref()
        .ok()
        .and_then(|cluster| cluster.policy.tls.as_ref());
    if let Some(protocol) = tls.and_then(|tls| tls.extra.starttls) {
        starttls::refuse(protocol, &mut identified.stream, &error.to_string()).await;
    }
}
