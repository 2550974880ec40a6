//! Reports of the kernel programs through a ring buffer.
#![allow(unsafe_code, reason = "reports of the ring buffer, as bytes")]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use aya::Pod;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::kernel::Kernel;

/// Reads reports of one kind. Wait for its descriptor to be readable, then
/// call [`Self::next`] until it answers `None`.
pub struct Reports<T> {
    ring: RingBuf<MapData>,
    kind: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Reports<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").finish_non_exhaustive()
    }
}

impl<T> AsFd for Reports<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl<T> AsRawFd for Reports<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// Registers a descriptor with the runtime of the calling task, to wait until
/// it can be read.
///
/// # Errors
/// When it cannot be registered.
pub fn watch_descriptor(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same descriptor, and owns it until
    // it is dropped together with the result.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

impl<T: Pod> Reports<T> {
    /// Reads the map of this name, whose entries must be values of `T`; `None`
    /// when it was taken before.
    pub(super) fn take(kernel: &Kernel, map: &'static str) -> Option<Self> {
        let map = kernel.ebpf().take_map(map)?;
        let ring = RingBuf::try_from(map).ok()?;
        Some(Self {
            ring,
            kind: PhantomData,
        })
    }

    /// Registers it with the runtime of the calling task, to wait for reports.
    ///
    /// # Errors
    /// When the descriptor cannot be registered.
    pub fn watched(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor belongs to `self.ring`, which is neither
        // closed nor replaced before it is dropped, together with the result.
        let watched = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        watched.map_err(io::Error::from)
    }

    /// The oldest report that was not read yet.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator ends, this only runs dry for the moment"
    )]
    pub fn next(&mut self) -> Option<T> {
        loop {
            let item = self.ring.next()?;
            if item.len() >= size_of::<T>() {
                // SAFETY: long enough, and any bytes are a valid `Pod`.
                return Some(unsafe { item.as_ptr().cast::<T>().read_unaligned() });
            }
        }
    }
}
