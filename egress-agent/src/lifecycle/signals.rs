//! What the agent is told to do, by signals and by the admin API.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// What the agent is told to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Take nothing new, finish what is open, stop. A second one while this
    /// runs stops at once.
    Stop,
    /// Read settings and policy again, open logs again.
    Reload,
    /// As [`Order::Stop`], but a second one changes nothing.
    Drain,
}

/// Orders from all sources.
#[derive(Debug)]
pub struct Orders {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    others: mpsc::Receiver<Order>,
}

/// Orders that may wait; more are from somebody who does not look at answers.
const QUEUE: usize = 16;

impl Orders {
    /// Listens for SIGTERM, SIGINT and SIGHUP from now on. Other parts of the
    /// process give orders through the sender.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn listen() -> io::Result<(Self, mpsc::Sender<Order>)> {
        let (sender, others) = mpsc::channel(QUEUE);
        let orders = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            others,
        };
        Ok((orders, sender))
    }
}

/// Where orders come from.
pub trait NextOrder {
    /// Waits for the next. Dropping the future loses none.
    fn next(&mut self) -> impl Future<Output = Order>;
}

impl NextOrder for Orders {
    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hangup.recv() => Order::Reload,
            Some(order) = self.others.recv() => order,
        }
    }
}
