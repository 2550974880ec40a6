//! The data path ends, or goes on in another agent: what is kept for that one,
//! and how this one lets go.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::api::Process;
use super::drain::Drain;
use super::handover::Giver;
use super::hands::Hands;
use super::lock::StateLock;
use super::running::Agent;
use super::serving::DnsCommand;
use super::signals::Order;
use super::systemd;
use crate::accept::Inherited;
use crate::flow::Command;
use crate::settings::Settings;

/// Time for connections that the kernel handed over to reach `accept`.
const HANDED_OVER: Duration = Duration::from_millis(100);
/// Time that the last connections have that an agent accepts while it drains for
/// the next one of its unit; at most half of the drain deadline.
const LATE: Duration = Duration::from_secs(2);
/// How often it looks whether its connections from before have ended.
const TURN: Duration = Duration::from_millis(20);
/// Time for systemd to start the next agent of the unit. When it does not, it
/// closes the sockets, and the kernel programs see that.
const BETWEEN_AGENTS: Duration = Duration::from_secs(10);

impl Agent {
    /// What another agent can be given; see [`handover`](super::handover).
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(super) fn giver(
        &self,
        process: &Rc<Process>,
        lock: &StateLock,
        orders: mpsc::Sender<Order>,
    ) -> std::io::Result<Giver<Hands>> {
        Ok(Giver {
            agent: Hands {
                node: Rc::clone(&self.node),
                kernel: Arc::clone(&self.kernel),
                netns: self.netns.clone(),
                listeners: self.listeners,
                paused: Rc::clone(&self.paused),
                tasks: self.tasks.clone(),
                process: Rc::clone(process),
                orders,
                release: RefCell::default(),
            },
            settings: process.settings.borrow().clone(),
            lock: lock.share()?,
            pins_lock: self.kernel.pins_lock()?,
            sockets: Rc::clone(&self.kept),
            over: Rc::clone(&self.over),
        })
    }

    /// Has systemd keep the sockets, where the unit asks for that, and let go of
    /// those that it had kept and this agent did not take.
    pub(super) fn store(&mut self, left: &Inherited) {
        if !systemd::keeps_descriptors() {
            return;
        }
        for name in left.names() {
            systemd::forget(name);
        }
        for (name, descriptor) in self.kept.borrow().iter() {
            if let Err(error) = systemd::keep(name, descriptor.as_fd()) {
                tracing::warn!("systemd does not keep the sockets: {error}");
                return;
            }
        }
        self.stored = true;
    }

    /// Keeps one more socket for another agent.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(super) fn keep(&self, name: &str, socket: &impl AsFd) -> std::io::Result<()> {
        self.kept.borrow_mut().add(name, 0, socket)
    }

    /// The last thing that this agent does: what systemd keeps its sockets for
    /// may wait on them for the next one.
    pub(super) fn leave(&self) {
        if self.stored
            && !self.over.get()
            && let Err(error) = self.kernel.heartbeat_ahead(BETWEEN_AGENTS)
        {
            tracing::error!("{error}");
        }
    }

    /// Takes nothing new: proxied services are refused from now on, and names
    /// resolve as if the agent were not there. Open connections go on.
    pub(super) fn stop_accepting(&self, settings: &Settings, drain: &Drain) {
        let mut until = HANDED_OVER;
        if self.over.get() {
            // The kernel hands over to the other agent, which has the sockets
            // of this namespace too and answers from them.
            for worker in &self.workers {
                let _ = worker.dns.send(DnsCommand::Forget(self.netns.cookie));
            }
        } else if self.stored {
            // What comes after the last connection from before waits in the
            // sockets that systemd keeps. Until then it is served, or one that
            // does not end would hold up all that come.
            let deadline = settings.drain_deadline;
            until = deadline.saturating_sub(LATE.min(deadline / 2));
            tracing::info!("new connections wait for the next agent of this unit");
        } else {
            if let Ok(node) = self.node.try_lock()
                && let Err(error) = node.configure(settings, false)
            {
                tracing::error!("{error}");
            }
            if let Err(error) = self.kernel.remove_listeners(self.netns.cookie) {
                tracing::error!("{error}");
            }
        }
        if let Some(namespaces) = &self.namespaces {
            namespaces.stop();
        }
        // What the kernel has handed over by now still waits to be accepted.
        let workers = self.workers.clone();
        let kept = Rc::clone(&self.kept);
        let (stored, drain) = (self.stored && !self.over.get(), drain.clone());
        spawn_local(async move {
            let end = Instant::now() + until;
            while Instant::now() < end {
                tokio::time::sleep(TURN.min(end - Instant::now())).await;
                if stored && drain.is_draining() && drain.from_before() == 0 {
                    break;
                }
            }
            kept.borrow_mut().clear();
            for worker in &workers {
                // A worker that is gone accepts nothing either.
                let _ = worker.flow.send(Command::StopAccepting);
            }
        });
    }
}
