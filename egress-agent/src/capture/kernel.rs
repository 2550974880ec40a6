//! Loads and attaches the kernel programs, and holds them attached.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;

use super::Captured;
use super::bypass::Bypass;
use super::control::Control;
use super::error::CaptureError;
use super::origins::Origins;
use super::pins::Pins;
use super::system;

mod load;

use self::load::Maps;
pub(super) use self::load::PROGRAMS;

/// How to attach.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The cgroup whose processes are captured; `None` for all: the root of
    /// the unified hierarchy.
    pub cgroup: Option<PathBuf>,
    /// A directory for pins, on a bpf file system or where one can be mounted;
    /// `None` for no pins.
    pub bpffs: Option<PathBuf>,
    /// The lock of that directory, from an agent that hands over to this one.
    pub pins_lock: Option<Arc<OwnedFd>>,
}

/// The kernel programs, attached, and their maps.
///
/// Without pins all is detached when this is dropped or the process ends.
/// With pins everything stays, and the next agent goes on with it:
/// [`super::clean_up`] removes it.
#[derive(Debug)]
pub struct Kernel {
    pub(super) cgroup: PathBuf,
    pub(super) cgroup_fd: OwnedFd,
    pub(super) maps: Maps,
    /// What the control side knows to be in the maps.
    pub(super) control: Mutex<Control>,
    pub(super) ebpf: Mutex<Ebpf>,
    pub(super) pins: Option<Mutex<Pins>>,
    /// Whether the maps are those of an agent before.
    adopted: bool,
    _links: Vec<OwnedFd>,
}

impl Kernel {
    /// Checks the host, loads the programs and attaches them to the cgroup,
    /// beside whatever is attached there. New maps let everything pass until
    /// [`Self::configure`] is called; pinned ones go on as they are.
    ///
    /// # Errors
    /// What the host lacks, or what the kernel refused.
    pub fn attach(options: &Options) -> Result<Self, CaptureError> {
        system::check()?;
        let cgroup = match &options.cgroup {
            Some(path) => path.clone(),
            None => system::cgroup_root()?,
        };
        let cgroup_fd = system::open_cgroup(&cgroup)?;
        if load::OBJECT.is_empty() {
            return Err(CaptureError::NotBuilt);
        }
        let cgroup_id = system::cgroup_id(&cgroup_fd, &cgroup)?;
        let mut pins = options
            .bpffs
            .as_deref()
            .map(|root| Pins::open(root, cgroup_id, options.pins_lock.clone()))
            .transpose()?;
        let mut adopted = pins.as_ref().is_some_and(|pins| pins.holds("CONFIG"));
        let opened = load::open(pins.as_ref());
        let (mut ebpf, maps) = match (opened, &mut pins) {
            (Err(CaptureError::Misfit { map }), Some(pins)) => {
                tracing::warn!(map, "a pinned map has another form; all will be replaced");
                pins.set_aside()?;
                adopted = false;
                load::open(Some(pins))?
            }
            (opened, _) => opened?,
        };
        let links = load::attach_programs(&mut ebpf, &cgroup_fd, pins.as_ref())?;
        let kernel = Self {
            maps,
            control: Mutex::new(Control::new()),
            ebpf: Mutex::new(ebpf),
            pins: pins.map(Mutex::new),
            adopted,
            _links: links,
            cgroup,
            cgroup_fd,
        };
        if adopted {
            kernel.adopt()?;
        }
        Ok(kernel)
    }

    /// Whether the maps are those of an agent before, and in force.
    pub const fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Whether programs of an agent before, of another layout, are attached.
    pub(super) fn has_obsolete(&self) -> bool {
        self.pins.as_ref().is_some_and(|pins| {
            let pins = pins.lock().unwrap_or_else(PoisonError::into_inner);
            pins.has_obsolete()
        })
    }

    /// Removes pinned programs of another layout, once ours are in force: until
    /// then both are attached. Returns how many sets there were.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_obsolete(&self) -> Result<usize, CaptureError> {
        let Some(pins) = &self.pins else { return Ok(0) };
        let mut pins = pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.remove_obsolete().map_err(|error| CaptureError::Pins {
            path: pins.path("..").clone(),
            error,
        })
    }

    /// Takes back the pins of an agent that did not get ready, so that nothing of
    /// it stays in force. What an agent before had pinned is left as it is.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn withdraw(&self) -> Result<(), CaptureError> {
        let Some(pins) = self.pins.as_ref().filter(|_| !self.adopted) else {
            return Ok(());
        };
        let pins = pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.withdraw()
            .map(drop)
            .map_err(|error| CaptureError::Pins {
                path: pins.path(""),
                error,
            })
    }

    /// The lock of the directory of pins, to hand over; `None` without pins.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pins_lock(&self) -> std::io::Result<Option<OwnedFd>> {
        let Some(pins) = &self.pins else {
            return Ok(None);
        };
        let pins = pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.lock().try_clone_to_owned().map(Some)
    }

    /// The cgroup that the programs are attached to.
    pub fn cgroup(&self) -> &std::path::Path {
        &self.cgroup
    }

    /// Marks the agent's own sockets.
    pub fn bypass(&self) -> Bypass {
        self.maps.bypass.clone()
    }

    /// A handle that looks up the records of redirected connections.
    pub fn origins(&self) -> Origins {
        self.maps.origins.clone()
    }

    /// See [`Origins::take`].
    ///
    /// # Errors
    /// When the kernel map cannot be read.
    pub fn take_origin(
        &self,
        netns: u64,
        peer: SocketAddr,
        listener: u16,
    ) -> Result<Option<Captured>, CaptureError> {
        self.maps
            .origins
            .take(netns, peer, listener)
            .map_err(|error| CaptureError::map("ORIGINS", error))
    }

    /// See [`Origins::sweep`].
    ///
    /// # Errors
    /// When the kernel map cannot be read.
    pub fn sweep_origins(&self, older_than: Duration) -> Result<usize, CaptureError> {
        self.maps
            .origins
            .sweep(older_than)
            .map_err(|error| CaptureError::map("ORIGINS", error))
    }

    /// The reader of the programs' log lines, which hands them to the `log`
    /// crate; the caller waits on its descriptor and calls `flush`. `None` when
    /// it was taken before.
    pub fn take_logger(&self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.ebpf()).ok()
    }

    pub(super) fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
