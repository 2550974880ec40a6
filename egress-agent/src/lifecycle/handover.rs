//! Hand-over: a second agent is started on the same state directory, and the
//! first one lets it go on with everything.
//!
//! ```text
//!   new                              old
//!   Hello {format, layout}   ──────►   stops changing the kernel's maps,
//!                                      saves its state
//!   locks, sockets           ◄──────   Welcome {format, layout}, descriptors
//!   starts, proves capture             (accepts and answers all the while)
//!   "ready"                  ──────►   stops accepting, drains, ends
//! ```
//!
//! Until `ready` the old one serves; when the new one ends before that, the old
//! one goes on as if nothing had been. Sockets are shared, so a connection or a
//! query is taken by one or the other and never refused. Agents whose maps have
//! different layouts share no sockets, since neither can read what the other's
//! programs recorded: the new one opens its own.

use std::cell::{Cell, RefCell};
use std::fs;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use egress_common::LAYOUT_VERSION;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::accept::{Inherited, Kept};
use crate::settings::Settings;

/// Version of these messages.
const FORMAT: u32 = 1;
/// Name of the socket, in the state directory.
const SOCKET: &str = "handover.sock";
/// Time for one message.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the new agent to get ready.
const START: Duration = Duration::from_secs(60);
/// Longest message.
const LONGEST: usize = 64 << 10;
/// Most descriptors in one message (`SCM_MAX_FD`).
const DESCRIPTORS: usize = 253;
const READY: &[u8] = b"ready\n";

const LOCK: &str = "lock";
const PINS: &str = "pins";
/// Name of the listener of metrics.
pub(super) const METRICS: &str = "metrics";

#[derive(Serialize, Deserialize, Debug)]
struct Hello {
    format: u32,
    layout: u32,
    version: String,
    cgroup: Option<PathBuf>,
    bpffs: PathBuf,
}

impl Hello {
    fn new(settings: &Settings) -> Self {
        Self {
            format: FORMAT,
            layout: LAYOUT_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cgroup: settings.cgroup.clone(),
            bpffs: settings.bpffs.clone(),
        }
    }
}

#[derive(Serialize, Deserialize, Debug)]
struct Welcome {
    format: u32,
    layout: u32,
    version: String,
    pid: u32,
    /// Of the descriptors that come along.
    names: Vec<String>,
    /// Why there is no hand-over: this agent drains and ends instead.
    refused: Option<String>,
}

/// What the agent before gave.
#[derive(Debug)]
pub(super) struct TakenOver {
    stream: StdStream,
    pub(super) lock: Option<OwnedFd>,
    pub(super) pins_lock: Option<Arc<OwnedFd>>,
    pub(super) sockets: Inherited,
}

impl TakenOver {
    /// Asks the agent that uses the state directory to hand over. `None`: there
    /// is none, or it ends without handing over.
    pub(super) fn ask(settings: &Settings) -> Option<Self> {
        let path = settings.state_dir.join(SOCKET);
        // Refused or not there: nobody runs.
        let stream = StdStream::connect(&path).ok()?;
        match Self::converse(stream, settings) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(
                    "the agent that runs does not answer on {}: {error}; its place is taken only \
                     when it ends",
                    path.display()
                );
                None
            }
        }
    }

    fn converse(mut stream: StdStream, settings: &Settings) -> io::Result<Option<Self>> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&line(&Hello::new(settings))?)?;
        let (text, descriptors) = receive(&mut stream)?;
        let welcome: Welcome = serde_json::from_slice(&text)?;
        if let Some(reason) = welcome.refused {
            tracing::warn!(
                pid = welcome.pid,
                version = welcome.version,
                "no hand-over: {reason}; the other agent drains, and its place is taken then"
            );
            return Ok(None);
        }
        let mut sockets = Inherited::new(welcome.names.into_iter().zip(descriptors));
        let lock = sockets.take(LOCK);
        let pins_lock = sockets.take(PINS).map(Arc::new);
        let same = welcome.layout == LAYOUT_VERSION;
        tracing::info!(
            pid = welcome.pid,
            version = welcome.version,
            "taking over from the agent that runs"
        );
        if !same {
            tracing::warn!(
                its = welcome.layout,
                ours = LAYOUT_VERSION,
                "its kernel maps have another layout: programs, maps and sockets are replaced"
            );
            let name = format!("{METRICS}-0");
            let metrics = sockets.take(&name);
            sockets = Inherited::new(metrics.map(|fd| (name, fd)));
        }
        Ok(Some(Self {
            stream,
            lock,
            pins_lock,
            sockets,
        }))
    }

    /// This agent serves: the one before may drain.
    pub(super) fn ready(mut self) {
        if let Err(error) = self.stream.write_all(READY) {
            tracing::warn!("cannot tell the agent before to drain: {error}");
        }
    }
}

/// What a running agent can be asked to hand over.
pub(super) trait HandsOver {
    /// Stops all writing to what both will use, and saves what is on disk.
    fn pause(&self) -> impl Future<Output = ()>;
    /// The other one gave up: goes on.
    fn resume(&self) -> impl Future<Output = ()>;
    /// The other one serves: drains and ends.
    fn gone_over(&self) -> impl Future<Output = ()>;
}

/// The side that gives.
pub(super) struct Giver<Agent> {
    pub(super) agent: Agent,
    pub(super) settings: Settings,
    pub(super) lock: OwnedFd,
    pub(super) pins_lock: Option<OwnedFd>,
    pub(super) sockets: Rc<RefCell<Kept>>,
    /// True from the moment at which another agent serves.
    pub(super) over: Rc<Cell<bool>>,
}

/// Opens the socket on which this agent is asked. Another one that has it has
/// handed over, or is dead.
pub(super) fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    let aside = state_dir.join(format!("{SOCKET}.{}", std::process::id()));
    let _ = fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside)?;
    fs::rename(&aside, &path)?;
    Ok(listener)
}

impl<Agent: HandsOver> Giver<Agent> {
    /// Waits until it is asked, and hands over. Returns once it has.
    pub(super) async fn run(self, listener: UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("hand-over: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let allowed = stream.peer_cred().is_ok_and(|peer| {
                peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw()
            });
            if !allowed {
                tracing::warn!("hand-over: a process of another user was refused");
                continue;
            }
            match self.serve(stream).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!("no hand-over: {error}"),
            }
        }
    }

    /// One request; true when the other agent serves.
    async fn serve(&self, mut stream: UnixStream) -> io::Result<bool> {
        let mut text = Vec::new();
        timeout(PATIENCE, async {
            while text.last() != Some(&b'\n') && text.len() < LONGEST {
                if stream.read_buf(&mut text).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            io::Result::Ok(())
        })
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let hello: Hello = serde_json::from_slice(&text)?;
        if let Some(reason) = self.objection(&hello) {
            tracing::warn!(version = hello.version, "no hand-over: {reason}");
            self.answer(stream, Some(reason)).await?;
            self.agent.gone_over().await;
            return Ok(true);
        }
        tracing::info!(version = hello.version, "another agent takes over");
        self.agent.pause().await;
        let outcome = self.wait_for_ready(stream).await;
        if let Ok(()) = outcome {
            self.over.set(true);
            self.sockets.borrow_mut().clear();
            tracing::info!("another agent has taken over");
            self.agent.gone_over().await;
            return Ok(true);
        }
        self.agent.resume().await;
        tracing::warn!("the other agent did not get ready; this one goes on");
        outcome.map(|()| false)
    }

    fn objection(&self, hello: &Hello) -> Option<String> {
        let own = Hello::new(&self.settings);
        if hello.format != own.format {
            return Some(format!(
                "its messages have format {}, ours {}",
                hello.format, own.format
            ));
        }
        (hello.cgroup != own.cgroup || hello.bpffs != own.bpffs)
            .then(|| "it has another cgroup or bpffs".to_owned())
    }

    async fn wait_for_ready(&self, stream: UnixStream) -> io::Result<()> {
        let mut stream = self.answer(stream, None).await?;
        let mut answer = Vec::new();
        let said = timeout(START, async {
            while answer.len() < READY.len() {
                if stream.read_buf(&mut answer).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        });
        said.await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if answer == READY {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    async fn answer(&self, stream: UnixStream, refused: Option<String>) -> io::Result<UnixStream> {
        let mut names = Vec::new();
        let mut descriptors = Vec::new();
        if refused.is_none() {
            names.push(LOCK.to_owned());
            descriptors.push(self.lock.try_clone()?);
            if let Some(lock) = &self.pins_lock {
                names.push(PINS.to_owned());
                descriptors.push(lock.try_clone()?);
            }
            for (name, fd) in self.sockets.borrow().iter() {
                names.push(name.to_owned());
                descriptors.push(fd.try_clone()?);
            }
            // More workers than descriptors fit: the new agent opens its own.
            names.truncate(DESCRIPTORS);
            descriptors.truncate(DESCRIPTORS);
        }
        let text = line(&Welcome {
            format: FORMAT,
            layout: LAYOUT_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            names,
            refused,
        })?;
        let stream = stream.into_std()?;
        let stream = spawn_blocking(move || {
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            send(&stream, &text, &descriptors)?;
            stream.set_nonblocking(true)?;
            io::Result::Ok(stream)
        })
        .await
        .map_err(io::Error::other)??;
        UnixStream::from_std(stream)
    }
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(message)?;
    text.push(b'\n');
    Ok(text)
}

/// Sends a line, with descriptors on its first byte.
fn send(mut stream: &StdStream, text: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(text)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    stream.write_all(text.get(sent..).unwrap_or_default())
}

/// Receives a line and the descriptors that came with it.
fn receive(stream: &mut StdStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; LONGEST];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        &*stream,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let mut length = got.bytes;
    while length < text.len() && text.get(length.wrapping_sub(1)) != Some(&b'\n') {
        match stream.read(text.get_mut(length..).unwrap_or_default())? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
    text.truncate(length);
    Ok((text, descriptors))
}
