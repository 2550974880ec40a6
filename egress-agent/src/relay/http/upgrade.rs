//! After a 101: both sides speak another protocol, which is passed on as it
//! is.

use std::rc::Rc;

use ::bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::ServiceStream;
use super::client::{Client, Open};
use super::tries::Judged;
use super::upload::RequestBody;
use crate::connect::pool::Lease;
use crate::endpoint::Permit;
use crate::flag::Flag;
use crate::relay::{Limits, Traffic, Transport, bytes};

/// What follows when the response is a 101.
pub(super) struct Tunnel<S: ServiceStream> {
    /// The service's stream.
    pub(super) upstream: Lease<RequestBody, S>,
    pub(super) open: Box<Open<S>>,
    /// `tcp.idleTimeout` and the like.
    pub(super) limits: Limits,
    pub(super) _picked: Judged,
    pub(super) _permit: Permit,
}

impl<S: ServiceStream> Tunnel<S> {
    /// Passes bytes both ways until both sides have ended. `read`: what was
    /// read from the client beyond its request.
    pub(super) async fn run<D: Transport>(self, client: &Rc<Client<S>>, mut down: D, read: Bytes) {
        let mut open = self.open;
        let Some(mut up) = self.upstream.into_upgraded() else {
            let details = "the service's connection cannot be handed over";
            return open.broken(Flag::UpstreamConnectionTermination, details);
        };
        let traffic = Traffic::default();
        traffic.received.set(read.len() as u64);
        traffic.sent.set(up.read.len() as u64);
        let first = async {
            up.io.write_all(&read).await?;
            down.write_all(&up.read).await?;
            down.flush().await?;
            up.io.flush().await
        };
        if let Err(error) = first.await {
            return open.broken(Flag::UpstreamConnectionTermination, &error.to_string());
        }
        let buffers = &client.worker.buffers;
        let end = bytes(&mut down, &mut up.io, self.limits, buffers, &traffic).await;
        open.record.received = traffic.received.get();
        open.record.sent = traffic.sent.get();
        match end.flag() {
            None => open.finish(Instant::now()),
            Some(flag) => open.broken(flag, &end.to_string()),
        }
    }
}
