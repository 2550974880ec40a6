//! What runs beside the connections and keeps the node up to date: with the
//! policy, the cluster, resolved addresses and cgroups.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};

use super::cgroups::CgroupWatch;
use super::node::Node;
use crate::capture::keys::Changed;
use crate::memory;
use crate::policy::model::Locality;
use crate::policy::source::keeper::{Keeper, Published};

/// How long addresses may go on changing before the kernel is told.
const SETTLE: Duration = Duration::from_millis(5);
/// How often new cgroups are looked for.
const CGROUPS: Duration = Duration::from_secs(5);
/// How often the cgroup of a new pod is looked for at first, how long that
/// often, and how long at all.
const POD_CGROUP: Duration = Duration::from_millis(100);
const POD_CGROUP_SOON: Duration = Duration::from_secs(20);
const POD_CGROUP_DEADLINE: Duration = Duration::from_mins(5);
/// Age of a record of a connection that nobody accepted.
const ORPHANED: Duration = Duration::from_mins(1);

/// Puts each new version of the policy in force.
pub(super) async fn follow_policy(
    node: Rc<Mutex<Node>>,
    mut published: watch::Receiver<Published>,
) {
    loop {
        let snapshot = Arc::clone(&published.borrow_and_update().snapshot);
        let mut node = node.lock().await;
        if node.live.load().snapshot.generation != snapshot.generation
            && let Err(error) = node.apply(snapshot).await
        {
            tracing::error!("policy is not wholly in force: {error}");
        }
        drop(node);
        if published.changed().await.is_err() {
            tracing::error!("the thread of the policy has ended; policy stays as it is");
            return;
        }
    }
}

/// Tells the kernel whose cgroups are whose when pods come and go. The API
/// server tells of a pod before kubelet makes its cgroup, so that is looked for
/// closely: it must be known before the first container runs.
pub(super) async fn follow_pods(node: Rc<Mutex<Node>>, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        let mut since = tokio::time::Instant::now();
        loop {
            let homeless = {
                let node = node.lock().await;
                if let Err(error) = node.sync_scopes() {
                    tracing::error!("{error}");
                }
                node.directory.homeless()
            };
            let waited = since.elapsed();
            if homeless == 0 || waited > POD_CGROUP_DEADLINE {
                break;
            }
            let pause = if waited < POD_CGROUP_SOON {
                POD_CGROUP
            } else {
                10 * POD_CGROUP
            };
            tokio::select! {
                () = changed.notified() => since = tokio::time::Instant::now(),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Puts another locality of this node in force.
pub(super) async fn follow_locality(
    node: Rc<Mutex<Node>>,
    policy: Keeper,
    mut told: watch::Receiver<Option<Locality>>,
) {
    while told.changed().await.is_ok() {
        let locality = told.borrow_and_update().clone().unwrap_or_default();
        node.lock().await.sets.set_locality(locality.clone());
        let changed = policy.change_options(move |options| options.locality = locality);
        if let Err(error) = changed.await {
            tracing::error!("{error}");
        }
    }
}

/// Tells the kernel when the addresses of hosts change.
pub(super) async fn follow(node: Rc<Mutex<Node>>, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        tokio::time::sleep(SETTLE).await;
        let node = node.lock().await;
        let snapshot = Arc::clone(&node.live.load().snapshot);
        if let Err(error) = node.sync_kernel(&snapshot, Changed::Addresses) {
            tracing::error!("{error}");
        }
    }
}

/// Tells the kernel of new cgroups before anything runs in them.
pub(super) async fn follow_cgroups(node: Rc<Mutex<Node>>, cgroup: PathBuf) {
    let mut watch = match CgroupWatch::new(&cgroup) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!("new cgroups are found some seconds late: {error}");
            return;
        }
    };
    loop {
        if let Err(error) = watch.changed().await {
            tracing::error!("new cgroups are found some seconds late: {error}");
            return;
        }
        if let Err(error) = node.lock().await.sync_scopes() {
            tracing::error!("{error}");
        }
        // One walk for all that are made together.
        tokio::time::sleep(SETTLE).await;
    }
}

/// Finds cgroups that appeared, records that nobody will take any more, and
/// memory that is not needed any more.
pub(super) async fn look_around(node: Rc<Mutex<Node>>) {
    let mut ticks = tokio::time::interval(CGROUPS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let node = node.lock().await;
        if let Err(error) = node.directory.refresh() {
            tracing::debug!("cannot look at the cgroups: {error}");
        }
        if let Err(error) = node.sync_scopes() {
            tracing::error!("{error}");
        }
        match node.kernel.sweep_origins(ORPHANED) {
            Ok(0) => {}
            Ok(swept) => tracing::warn!(swept, "connections were handed over and never accepted"),
            Err(error) => tracing::error!("{error}"),
        }
        drop(node);
        memory::give_back();
    }
}
