//! Listeners in every network namespace that captured programs use, for as
//! long as they do.
//!
//! The kernel programs report a socket in a namespace without listeners, and
//! at the start the namespaces of all captured processes are looked up. The
//! agent enters each, opens listeners, gives them to the workers, and tells
//! the kernel. A connection that is faster than this is met by the service's
//! `on-agent-failure`: refused, or passed on.
//!
//! Listeners hold a namespace, so every two seconds the agent asks who else
//! does (see [`namespaces`]). Where nobody was found twice, they are closed;
//! connections go on until no application holds its end of one.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use egress_common::Listeners;
use egress_common::caller::NamespaceEvent;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::StartError;
use super::serving::{self, DnsCommand, DnsShared, DnsStart};
use crate::accept::WorkerListeners;
use crate::capture::sockets::NetNs;
use crate::capture::{Kernel, Reports, namespaces};
use crate::flow::Command;

/// How often the agent looks whether namespaces are still used.
const SWEEP: Duration = Duration::from_secs(2);
/// Looks in a row that must find nobody.
const UNUSED_LOOKS: u8 = 2;
/// A namespace that could not be opened is tried again no sooner.
const RETRY: Duration = Duration::from_millis(40);
/// Namespaces that are opened at a time.
const AT_ONCE: usize = 8;
/// Namespaces that wait to be opened; further ones are reported again.
const WAITING: usize = 4096;
/// Reports taken in a row before others have their turn.
const BATCH: usize = 256;

/// The channels of one worker.
#[derive(Clone)]
pub(super) struct WorkerChannels {
    pub(super) flow: UnboundedSender<Command>,
    pub(super) dns: UnboundedSender<DnsCommand>,
}

/// Which namespaces have listeners.
#[derive(Clone)]
pub(super) struct Namespaces(Rc<Shared>);

struct Shared {
    kernel: Arc<Kernel>,
    /// Cookie of the agent's own namespace.
    home: u64,
    home_netns: NetNs,
    cgroup: PathBuf,
    dns: Option<DnsShared>,
    workers: Vec<WorkerChannels>,
    open: RefCell<HashMap<u64, Entry>>,
    stopped: Cell<bool>,
}

/// A namespace with listeners.
struct Entry {
    netns: NetNs,
    inode: u64,
    listeners: Listeners,
    unused: u8,
}

/// A namespace without listeners, where connections may still be open.
struct Leaving {
    netns: NetNs,
    ports: [u16; 2],
}

/// What was opened off the runtime.
struct Opened {
    netns: NetNs,
    inode: u64,
    listeners: Listeners,
    flows: Vec<WorkerListeners>,
    dns: Vec<DnsStart>,
}

/// Where a namespace is to be found.
#[derive(Clone, Copy)]
enum Clue {
    /// A thread made a socket in the namespace with this cookie.
    Socket(NamespaceEvent),
    /// A process is in it.
    Process(u32),
}

impl Clue {
    fn find(self) -> Option<NetNs> {
        match self {
            Self::Socket(event) => namespaces::find(event.netns, event.pid, event.tid),
            Self::Process(pid) => namespaces::of_process(pid).ok(),
        }
    }
}

impl Namespaces {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        home: &NetNs,
        dns: Option<DnsShared>,
        workers: Vec<WorkerChannels>,
    ) -> Self {
        Self(Rc::new(Shared {
            cgroup: kernel.cgroup().to_owned(),
            kernel,
            home: home.cookie,
            home_netns: home.clone(),
            dns,
            workers,
            open: RefCell::default(),
            stopped: Cell::new(false),
        }))
    }

    /// Every namespace that captured programs use, as far as it is known.
    pub(super) fn all(&self) -> Vec<NetNs> {
        let open = self.0.open.borrow();
        let others = open.values().map(|entry| entry.netns.clone());
        std::iter::once(self.0.home_netns.clone())
            .chain(others)
            .collect()
    }

    /// Opens listeners in the namespaces of all processes that are captured
    /// now. What cannot be opened is logged and tried again when the kernel
    /// reports it.
    pub(super) async fn open_present(&self) {
        let cgroup = self.0.cgroup.clone();
        let home = namespaces_home();
        let found = match spawn_blocking(move || namespaces::below(&cgroup)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!("cannot look for network namespaces: {error}");
                return;
            }
            Err(_) => return,
        };
        let mut clues = found
            .into_iter()
            .filter(|(inode, _)| Some(*inode) != home)
            .map(|(_, pid)| Clue::Process(pid));
        let mut opening = JoinSet::new();
        loop {
            while opening.len() < AT_ONCE
                && let Some(clue) = clues.next()
            {
                self.open(&mut opening, clue);
            }
            match opening.join_next().await {
                // A predecessor's listeners are replaced.
                Some(Ok((_, opened))) => self.take(opened, true),
                Some(Err(error)) => tracing::error!("opening a network namespace: {error}"),
                None => break,
            }
        }
        let open = self.0.open.borrow();
        let own = |cookie| cookie == self.0.home || open.contains_key(&cookie);
        if let Err(error) = self.0.kernel.retain_listeners(own) {
            tracing::error!("{error}");
        }
    }

    /// Opens and closes listeners for ever.
    pub(super) async fn run(self, reports: Reports<NamespaceEvent>) {
        let mut reports = match reports.watched() {
            Ok(reports) => reports,
            Err(error) => {
                tracing::error!("new network namespaces are not reported: {error}");
                return;
            }
        };
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut queue: VecDeque<NamespaceEvent> = VecDeque::new();
        let mut busy: HashSet<u64> = HashSet::new();
        let mut failed: HashMap<u64, Instant> = HashMap::new();
        let mut leaving: Vec<Leaving> = Vec::new();
        let mut opening = JoinSet::new();
        loop {
            while opening.len() < AT_ONCE
                && let Some(event) = queue.pop_front()
            {
                self.open(&mut opening, Clue::Socket(event));
            }
            tokio::select! {
                ready = reports.readable_mut() => {
                    let Ok(mut ready) = ready else { return };
                    let ring = ready.get_inner_mut();
                    let mut taken = 0;
                    while taken < BATCH && let Some(event) = ring.next() {
                        taken += 1;
                        let recent = failed
                            .get(&event.netns)
                            .is_some_and(|at| at.elapsed() < RETRY);
                        if self.wants(&event) && !recent && queue.len() < WAITING
                            && busy.insert(event.netns)
                        {
                            queue.push_back(event);
                        }
                    }
                    if taken < BATCH {
                        ready.clear_ready();
                    }
                }
                Some(done) = opening.join_next(), if !opening.is_empty() => match done {
                    Ok((clue, opened)) => {
                        if let Clue::Socket(event) = clue {
                            busy.remove(&event.netns);
                            match &opened {
                                Ok(_) => failed.remove(&event.netns),
                                Err(_) => failed.insert(event.netns, Instant::now()),
                            };
                        }
                        self.take(opened, false);
                    }
                    Err(error) => {
                        tracing::error!("opening a network namespace: {error}");
                        busy.clear();
                    }
                },
                _ = sweep.tick() => {
                    failed.retain(|_, at| at.elapsed() < SWEEP);
                    self.sweep(&mut leaving).await;
                }
            }
        }
    }

    /// Takes the listeners of all namespaces from the kernel, and opens no
    /// more. The workers are told to stop by whoever calls this.
    pub(super) fn stop(&self) {
        self.0.stopped.set(true);
        for (cookie, entry) in self.0.open.borrow_mut().drain() {
            self.withdraw(cookie, &entry.listeners);
        }
    }

    fn wants(&self, event: &NamespaceEvent) -> bool {
        event.pid != std::process::id()
            && event.netns != self.0.home
            && !self.0.stopped.get()
            && !self.0.open.borrow().contains_key(&event.netns)
    }

    fn open(&self, opening: &mut JoinSet<(Clue, Result<Opened, String>)>, clue: Clue) {
        let workers = self.0.workers.len();
        let dns = self.0.dns.clone();
        opening.spawn_blocking(move || {
            let opened = clue
                .find()
                .ok_or_else(|| "it is gone".to_owned())
                .and_then(|netns| {
                    let (listeners, flows, dns) = serving::open(&netns, workers, dns.as_ref())
                        .map_err(|error| error.to_string())?;
                    let inode = netns.inode().map_err(|error| error.to_string())?;
                    Ok(Opened {
                        netns,
                        inode,
                        listeners,
                        flows,
                        dns,
                    })
                });
            (clue, opened)
        });
    }

    /// Puts what was opened in service: the kernel may hand over from now on,
    /// and what it does waits in the listeners' queues for the workers.
    fn take(&self, opened: Result<Opened, String>, replace: bool) {
        let Opened {
            netns,
            inode,
            listeners,
            flows,
            dns,
        } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!("no listeners in a network namespace: {error}");
                return;
            }
        };
        let cookie = netns.cookie;
        let mut open = self.0.open.borrow_mut();
        if self.0.stopped.get() || cookie == self.0.home || open.contains_key(&cookie) {
            return;
        }
        let told = if replace {
            self.0
                .kernel
                .set_listeners(cookie, &listeners)
                .map(|()| true)
        } else {
            self.0.kernel.add_listeners(cookie, &listeners)
        };
        match told {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!(netns = cookie, "{error}");
                return;
            }
        }
        // A worker that is gone takes the process along.
        for (worker, flow) in self.0.workers.iter().zip(flows) {
            let _ = worker.flow.send(Command::Listen(flow));
        }
        // Spread by cookie, which the kernel counts up.
        let count = u64::try_from(self.0.workers.len()).unwrap_or(1).max(1);
        let chosen = usize::try_from(cookie % count).unwrap_or_default();
        for start in dns {
            if let Some(worker) = self.0.workers.get(chosen) {
                let _ = worker.dns.send(DnsCommand::Serve(Box::new(start)));
            }
        }
        tracing::debug!(netns = cookie, inode, "listening in a network namespace");
        open.insert(
            cookie,
            Entry {
                netns,
                inode,
                listeners,
                unused: 0,
            },
        );
    }

    fn forget(&self, cookie: u64) {
        for worker in &self.0.workers {
            let _ = worker.flow.send(Command::Forget(cookie));
            let _ = worker.dns.send(DnsCommand::Forget(cookie));
        }
    }

    fn withdraw(&self, cookie: u64, listeners: &Listeners) {
        if let Err(error) = self.0.kernel.withdraw_listeners(cookie, listeners) {
            tracing::error!(netns = cookie, "{error}");
        }
    }

    /// Closes listeners where nobody is left, and ends connections whose
    /// applications are gone.
    async fn sweep(&self, leaving: &mut Vec<Leaving>) {
        let asked: HashSet<u64> = self
            .0
            .open
            .borrow()
            .values()
            .map(|entry| entry.inode)
            .collect();
        if asked.is_empty() && leaving.is_empty() {
            return;
        }
        let before = std::mem::take(leaving);
        let looked = spawn_blocking(move || {
            let used = namespaces::in_use(&asked);
            let (stay, gone): (Vec<Leaving>, Vec<Leaving>) = before
                .into_iter()
                // One that cannot be looked into is left alone.
                .partition(|one| namespaces::has_clients(&one.netns, &one.ports).unwrap_or(true));
            (asked, used, stay, gone)
        });
        let Ok((asked, used, stay, gone)) = looked.await else {
            tracing::error!("the look at network namespaces panicked");
            return;
        };
        *leaving = stay;
        for one in gone {
            tracing::debug!(netns = one.netns.cookie, "left a network namespace");
            for worker in &self.0.workers {
                let _ = worker.flow.send(Command::Cut(one.netns.cookie));
            }
        }
        let mut open = self.0.open.borrow_mut();
        for entry in open.values_mut() {
            // One that was opened meanwhile was not asked about.
            if used.contains(&entry.inode) || !asked.contains(&entry.inode) {
                entry.unused = 0;
            } else {
                entry.unused += 1;
            }
        }
        for (cookie, entry) in open.extract_if(|_, entry| entry.unused >= UNUSED_LOOKS) {
            self.withdraw(cookie, &entry.listeners);
            self.forget(cookie);
            leaving.push(Leaving {
                ports: [entry.listeners.tcp4, entry.listeners.tcp6],
                netns: entry.netns,
            });
        }
    }
}

/// Inode number of the agent's own namespace.
fn namespaces_home() -> Option<u64> {
    NetNs::current().ok()?.inode().ok()
}

/// Begins to follow namespaces.
///
/// # Errors
/// When the reports were taken before.
pub(super) fn reports(kernel: &Kernel) -> Result<Reports<NamespaceEvent>, StartError> {
    kernel
        .take_namespace_reports()
        .ok_or_else(|| StartError::Process {
            what: "reports of network namespaces",
            error: std::io::ErrorKind::ResourceBusy.into(),
        })
}
