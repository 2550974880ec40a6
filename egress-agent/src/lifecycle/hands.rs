//! How this agent stands aside for one that takes over, and comes back if that
//! one does not get ready.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use egress_common::Listeners;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, spawn_local};

use super::StartError;
use super::api::Process;
use super::handover::HandsOver;
use super::node::Node;
use super::signals::Order;
use crate::capture::Kernel;
use crate::capture::sockets::NetNs;

/// The agent as another one meets it that takes over.
pub(super) struct Hands {
    pub(super) node: Rc<Mutex<Node>>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) netns: NetNs,
    pub(super) listeners: Option<Listeners>,
    pub(super) paused: Rc<watch::Sender<bool>>,
    pub(super) tasks: Vec<AbortHandle>,
    pub(super) process: Rc<Process>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) release: RefCell<Option<oneshot::Sender<()>>>,
}

impl HandsOver for Hands {
    async fn pause(&self) {
        self.paused.send_replace(true);
        let (release, released) = oneshot::channel();
        let (locked, is_locked) = oneshot::channel();
        let node = Rc::clone(&self.node);
        // All that writes to the kernel holds this lock.
        spawn_local(async move {
            let node = node.lock().await;
            if let Err(error) = node.names.addresses().save().await {
                tracing::warn!("virtual addresses are not kept: {error}");
            }
            let _ = locked.send(());
            if released.await.is_err() {
                // The other agent writes from now on.
                std::future::pending::<()>().await;
            }
        });
        let _ = is_locked.await;
        self.release.replace(Some(release));
    }

    async fn resume(&self) {
        if let Some(release) = self.release.take() {
            let _ = release.send(());
        }
        let settings = self.process.settings.borrow().clone();
        let node = self.node.lock().await;
        let told = || {
            self.kernel.adopt().map_err(StartError::Capture)?;
            let snapshot = Arc::clone(&node.live.load().snapshot);
            node.sync_kernel_anew(&snapshot)?;
            self.kernel.forget_adopted().map_err(StartError::Capture)?;
            if let Some(listeners) = &self.listeners {
                self.kernel
                    .set_listeners(self.netns.cookie, listeners)
                    .map_err(StartError::Capture)?;
            }
            node.configure(&settings, settings.dns.is_on())
        };
        if let Err(error) = told() {
            tracing::error!("the kernel's maps are not as they should be: {error}");
        }
        self.paused.send_replace(false);
    }

    async fn gone_over(&self) {
        // Not released: nothing of this agent writes any more.
        drop(self.release.take());
        if *self.paused.borrow() {
            for task in &self.tasks {
                task.abort();
            }
        }
        let _ = self.orders.send(Order::Drain).await;
    }
}
