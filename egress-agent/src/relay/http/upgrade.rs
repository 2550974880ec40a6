//! After a 101: both sides speak another protocol, which is passed on as it
//! is.

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use super::client::Open;
use super::tries::Judged;
use super::upload::RequestBody;
use crate::connect::pool::{Io, Lease};
use crate::endpoint::Permit;
use crate::flag::Flag;

/// What follows when the response is a 101.
pub(super) struct Tunnel<S: Io> {
    /// The service's stream.
    pub(super) upstream: Lease<RequestBody, S>,
    pub(super) open: Box<Open<S>>,
    pub(super) _picked: Judged,
    pub(super) _permit: Permit,
}

impl<S: Io> Tunnel<S> {
    /// Passes bytes both ways until both sides have ended. `read`: what was
    /// read from the client beyond its request.
    pub(super) async fn run<D: Io>(self, mut down: D, read: Bytes) {
        let mut open = self.open;
        let Some(mut up) = self.upstream.into_upgraded() else {
            let details = "the service's connection cannot be handed over";
            return open.broken(Flag::UpstreamConnectionTermination, details);
        };
        open.record.received = read.len() as u64;
        open.record.sent = up.read.len() as u64;
        let first = async {
            up.io.write_all(&read).await?;
            down.write_all(&up.read).await?;
            copy_bidirectional(&mut down, &mut up.io).await
        };
        match first.await {
            Ok((received, sent)) => {
                open.record.received += received;
                open.record.sent += sent;
                open.finish();
            }
            Err(error) => {
                open.broken(Flag::UpstreamConnectionTermination, &error.to_string());
            }
        }
    }
}
