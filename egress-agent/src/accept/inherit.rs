//! Sockets that another process opened: the agent before this one, or systemd's
//! store of descriptors. Connections and queries wait in their queues while no
//! agent reads them, so nothing is refused in between.
#![allow(unsafe_code, reason = "descriptors that systemd passes by number")]

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Descriptors by name; each is taken once.
#[derive(Debug, Default)]
pub struct Inherited(HashMap<String, OwnedFd>);

impl Inherited {
    /// From names and descriptors.
    pub fn new(descriptors: impl IntoIterator<Item = (String, OwnedFd)>) -> Self {
        Self(descriptors.into_iter().collect())
    }

    /// What systemd kept (`FDSTORE=1`) or passed (`LISTEN_FDS`). To be called
    /// once, at start.
    pub fn from_systemd() -> Self {
        let Ok(found) = sd_notify::listen_fds_with_names() else {
            return Self::default();
        };
        Self::new(found.map(|(fd, name)| {
            // SAFETY: systemd passes these to us alone, and nobody else in this
            // process looks at them.
            (name, unsafe { OwnedFd::from_raw_fd(fd) })
        }))
    }

    /// Names of those that were not taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one with this name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Those named `PREFIX-0`, `PREFIX-1` and so on, if there are exactly
    /// `count`. With any other number they stay: a listener of a group that
    /// nobody accepts from would swallow connections.
    pub fn take_group<Socket: From<OwnedFd>>(
        &mut self,
        prefix: &str,
        count: usize,
    ) -> Option<Vec<Socket>> {
        let name = |index: usize| format!("{prefix}-{index}");
        let whole = (0..count).all(|index| self.0.contains_key(&name(index)));
        if count == 0 || !whole || self.0.contains_key(&name(count)) {
            return None;
        }
        (0..count)
            .map(|index| self.take(&name(index)).map(Socket::from))
            .collect()
    }
}

/// Second descriptors of sockets, by name, to be passed on.
#[derive(Debug, Default)]
pub struct Kept(Vec<(String, OwnedFd)>);

impl Kept {
    /// Adds a socket as `PREFIX-INDEX`.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn add(
        &mut self,
        prefix: &str,
        index: usize,
        socket: &impl std::os::fd::AsFd,
    ) -> io::Result<()> {
        let own = socket.as_fd().try_clone_to_owned()?;
        self.0.push((format!("{prefix}-{index}"), own));
        Ok(())
    }

    /// Names and descriptors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.0.iter().map(|(name, fd)| (name.as_str(), fd))
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_group_is_taken_whole_or_not_at_all() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut kept = Kept::default();
        for index in 0..2 {
            kept.add("tcp4", index, &socket).unwrap();
        }
        let mut inherited = Inherited::new(
            kept.iter()
                .map(|(name, fd)| (name.to_owned(), fd.try_clone().unwrap())),
        );
        for wrong in [0, 1, 3] {
            assert!(inherited.take_group::<UdpSocket>("tcp4", wrong).is_none());
        }
        let group: Vec<UdpSocket> = inherited.take_group("tcp4", 2).unwrap();
        assert_eq!(group[1].local_addr().unwrap(), socket.local_addr().unwrap());
        assert!(inherited.is_empty());
    }
}
