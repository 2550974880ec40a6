//! The data path begins: from workers that serve to capture that is proven.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::StartError;
use super::bridges::Callers;
use super::direct::Direct;
use super::drains::Drains;
use super::dynamic_names;
use super::following::{
    follow, follow_cgroups, follow_locality, follow_pods, follow_policy, look_around,
};
use super::heartbeat;
use super::namespaces::{self, Namespaces};
use super::outbound;
use super::running::Agent;
use super::worker::Vitals;
use crate::account::Account;
use crate::connect::EndpointProber;
use crate::settings::Settings;

/// How often the log lines of the kernel programs are read.
const KERNEL_LOG: Duration = Duration::from_millis(200);
/// Health checks that run at once.
const CHECKS: usize = 64;

impl Agent {
    /// Begins to capture, once the workers serve, and proves that it works.
    ///
    /// # Errors
    /// When the kernel cannot be told, or the proof fails.
    pub(super) async fn begin(
        &mut self,
        settings: &Settings,
        vitals: &Vitals,
    ) -> Result<(), StartError> {
        let node = self.node.lock().await;
        if let Some(listeners) = &self.listeners {
            self.kernel
                .set_listeners(self.netns.cookie, listeners)
                .map_err(StartError::Capture)?;
        }
        let namespaces = Namespaces::new(
            Arc::clone(&self.kernel),
            &self.netns,
            self.dns.clone(),
            self.workers.clone(),
        );
        namespaces.open_present().await;
        node.configure(settings, settings.dns.is_on())?;
        // Only now: what an agent before named may be ports of nobody.
        let beating = Arc::clone(&self.kernel);
        beating.heartbeat().map_err(StartError::Capture)?;
        let limit = settings.heartbeat_limit;
        let beat = vitals.spawn("heartbeat", async move {
            heartbeat::beat(limit, || beating.heartbeat()).await;
        });
        self.tasks.push(beat.abort_handle());
        // Before namespaces are followed: its own would be taken for a caller's.
        let kernel = Arc::clone(&self.kernel);
        tokio::task::spawn_blocking(move || kernel.prove())
            .await
            .map_err(|error| StartError::Process {
                what: "the proof that capture works",
                error: std::io::Error::other(error),
            })?
            .map_err(StartError::Capture)?;
        let reports = namespaces::reports(&self.kernel)?;
        vitals.spawn("network namespaces", namespaces.clone().run(reports));
        self.namespaces = Some(namespaces.clone());
        let sweeps = node.sets.run_sweeps();
        vitals.spawn("ejection sweeps", sweeps);
        let real = Arc::clone(node.names.real());
        let names = dynamic_names::follow(
            node.resolvers.clone(),
            Arc::clone(&real),
            node.sets.subscribe(),
        );
        vitals.spawn("dynamic names", names);
        let changed = Arc::clone(&node.feed.changed);
        vitals.spawn("real addresses", async move {
            real.keep(|| changed.notify_one()).await;
        });
        let secrets = Arc::clone(&node.secrets);
        let prober = EndpointProber::new(self.sockets.clone(), self.netns.clone(), secrets);
        let checks = node.sets.run_health_checks(Arc::new(prober), CHECKS);
        vitals.spawn("health checks", checks);
        vitals.spawn("secrets", Arc::clone(&node.secrets).watch());
        let identity = Arc::clone(&node.secrets).follow_workload_api();
        vitals.spawn("the SPIFFE Workload API", identity);
        let addresses = Arc::clone(node.names.addresses());
        let saving = vitals.spawn("virtual addresses", async move {
            let never = addresses.keep_saved().await;
            match never {}
        });
        self.tasks.push(saving.abort_handle());
        if let Some(refusals) = self.kernel.take_refusals() {
            let telling = outbound::tell_refusals(
                refusals,
                node.directory.clone(),
                Arc::clone(&node.names),
                self.capture_metrics.clone(),
            );
            vitals.spawn("refusals", telling);
        }
        let changed = Arc::clone(&node.feed.changed);
        if let Some(reports) = self.kernel.take_direct_reports() {
            let account = Account::new(Arc::clone(&self.metrics), self.log.clone());
            let flushing = account.clone();
            vitals.spawn("metrics", async move { flushing.keep_flushing().await });
            let direct = Direct::new(
                Arc::clone(&self.kernel),
                Arc::clone(&node.live),
                Callers(node.directory.clone()),
                account,
                &settings.namespace.0,
                Drains::new(namespaces),
            );
            vitals.spawn(
                "direct",
                direct.run(node.sets.subscribe(), reports, self.paused.subscribe()),
            );
        }
        drop(node);
        vitals.spawn("resolved addresses", follow(Rc::clone(&self.node), changed));
        let cgroup = self.kernel.cgroup().to_owned();
        vitals.spawn("cgroups", look_around(Rc::clone(&self.node)));
        vitals.spawn("new cgroups", follow_cgroups(Rc::clone(&self.node), cgroup));
        if settings.kernel_log.is_on()
            && let Some(mut lines) = self.kernel.take_logger()
        {
            vitals.spawn("kernel log", async move {
                let mut ticks = tokio::time::interval(KERNEL_LOG);
                loop {
                    ticks.tick().await;
                    lines.flush();
                }
            });
        }
        if let Some(policy) = &self.policy {
            let published = policy.published();
            vitals.spawn("policy", follow_policy(Rc::clone(&self.node), published));
            if let Some(cluster) = &self.cluster {
                let pods = Arc::clone(&cluster.pods);
                vitals.spawn("pods", follow_pods(Rc::clone(&self.node), pods));
                if settings.locality.is_none() {
                    let node = Rc::clone(&self.node);
                    let locality = cluster.locality.clone();
                    vitals.spawn("locality", follow_locality(node, policy.clone(), locality));
                }
            }
        }

        match self.kernel.remove_obsolete() {
            Ok(0) => {}
            Ok(sets) => tracing::info!(sets, "kernel programs of an agent before were replaced"),
            Err(error) => tracing::error!("{error}; both old and new programs are attached"),
        }
        Ok(())
    }
}
