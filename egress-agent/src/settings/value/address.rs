//! Addresses and sockets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::{Fault, Scalar};

/// Path of the admin socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminSocket(pub PathBuf);

/// `sockaddr_un.sun_path` holds 108 bytes with the closing zero. The socket is
/// made under a name that is longer by up to this much, then renamed.
pub const ADMIN_PATH_LIMIT: usize = 107 - 12;

impl Scalar for AdminSocket {
    fn parse(text: &str) -> Result<Self, Fault> {
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"))
            .filter(|path| path.starts_with('/') && !path.ends_with('/'))
            .ok_or_else(|| {
                Fault::new(format!(
                    "`{text}` is not a Unix socket; write `unix:` and an absolute path, as in `unix:/run/egress/admin.sock`"
                ))
            })?;
        if path.len() > ADMIN_PATH_LIMIT {
            return Err(Fault::new(format!(
                "the path has {} bytes; the kernel allows a socket path of {ADMIN_PATH_LIMIT} here",
                path.len()
            )));
        }
        Ok(Self(PathBuf::from(path)))
    }
}

impl fmt::Display for AdminSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

/// Where metrics are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricsListener {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl Scalar for MetricsListener {
    fn parse(text: &str) -> Result<Self, Fault> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| {
            Fault::new(format!(
                "`{text}` is neither `off` nor an address and port, as in `127.0.0.1:15090` or `[::1]:15090`"
            ))
        })
    }
}

/// A name server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameServer(pub SocketAddr);

impl Scalar for NameServer {
    fn parse(text: &str) -> Result<Self, Fault> {
        text.parse::<SocketAddr>()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
            .map(Self)
            .map_err(|_| {
                Fault::new(format!(
                    "`{text}` is not the address of a name server, as in `9.9.9.9`, `10.0.0.2:5353` or `[2620:fe::fe]:53`"
                ))
            })
    }
}
