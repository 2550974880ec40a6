//! In place of `kubernetes.rs` where the agent is built without it.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::StartError;
use crate::capture::sockets::{NetNs, Sockets};
use crate::kubernetes::health::Board;
use crate::policy::model::Locality;
use crate::policy::source::keeper::Keeper;
use crate::secret::Secrets;
use crate::settings::Settings;
use crate::workload::directory::Directory;

#[expect(dead_code, reason = "the same as with Kubernetes")]
pub(super) struct Rooms {
    pub(super) keeper: Keeper,
    pub(super) secrets: Arc<Secrets>,
    pub(super) directory: Directory,
    pub(super) sockets: Sockets,
    pub(super) netns: NetNs,
}

pub(super) struct Cluster {
    pub(super) board: Board,
    pub(super) pods: Arc<Notify>,
    pub(super) locality: watch::Receiver<Option<Locality>>,
}

impl Cluster {
    #[expect(clippy::unused_async, reason = "the same as with Kubernetes")]
    pub(super) async fn join(_: &Settings, _: Rooms) -> Result<Self, StartError> {
        Err(StartError::NoKubernetes)
    }

    pub(super) fn read_again(&self) {}
}
