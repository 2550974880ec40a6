//! After a 101: both sides speak another protocol, which is passed on as it
//! is.

use std::rc::Rc;

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use super::client::Client;
use super::record::Record;
use super::tries::Judged;
use super::upload::RequestBody;
use crate::connect::pool::{Io, Lease};
use crate::endpoint::Permit;
use crate::flag::Flag;

/// What follows when the response is a 101.
pub(super) struct Tunnel<S: Io> {
    /// The service's stream.
    pub(super) upstream: Lease<RequestBody, S>,
    pub(super) record: Box<Record>,
    pub(super) _picked: Judged,
    pub(super) _permit: Permit,
}

impl<S: Io> Tunnel<S> {
    /// Passes bytes both ways until both sides have ended. `read`: what was
    /// read from the client beyond its request.
    pub(super) async fn run<D: Io>(self, client: &Rc<Client<S>>, mut down: D, read: Bytes) {
        let mut record = self.record;
        let Some(mut up) = self.upstream.into_upgraded() else {
            record.flag(Flag::UpstreamConnectionTermination);
            client.finish(&mut record);
            return;
        };
        record.received = read.len() as u64;
        record.sent = up.read.len() as u64;
        let first = async {
            up.io.write_all(&read).await?;
            down.write_all(&up.read).await?;
            copy_bidirectional(&mut down, &mut up.io).await
        };
        match first.await {
            Ok((received, sent)) => {
                record.received += received;
                record.sent += sent;
            }
            Err(error) => {
                record.flag(Flag::UpstreamConnectionTermination);
                record.details = error.to_string().into();
            }
        }
        client.finish(&mut record);
    }
}
