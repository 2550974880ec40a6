//! The Unix socket of the admin API.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::api::AdminApi;
use super::error::ListenError;
use super::{connection, routes};

/// The listener; its socket goes when it is dropped.
#[derive(Debug)]
pub struct AdminListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket, to leave alone one that took its place.
    identity: (u64, u64),
}

impl AdminListener {
    /// Opens the socket with mode 0600. One that nobody listens on any more is
    /// replaced.
    ///
    /// # Errors
    /// When another agent listens there, or the socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        Self::open(path, false)
    }

    /// The same in the place of an agent that still listens there, and hands
    /// over.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn take_over(path: &Path) -> Result<Self, ListenError> {
        Self::open(path, true)
    }

    fn open(path: &Path, take_over: bool) -> Result<Self, ListenError> {
        let failed = |error| ListenError::Socket {
            path: path.to_owned(),
            error,
        };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ListenError::NotASocket {
                    path: path.to_owned(),
                });
            }
            Ok(_) if !take_over && answers(path).map_err(failed)? => {
                return Err(ListenError::InUse {
                    path: path.to_owned(),
                });
            }
            _ => {}
        }
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(failed)?;
        }
        // Made under another name, so that nobody can reach it before its mode
        // is set, and there is no moment without a socket.
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{}", std::process::id()));
        let aside = PathBuf::from(aside);
        let _ = fs::remove_file(&aside);
        let make = || {
            let listener = UnixListener::bind(&aside)?;
            fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
            let made = fs::symlink_metadata(&aside)?;
            fs::rename(&aside, path)?;
            Ok((listener, (made.dev(), made.ino())))
        };
        match make() {
            Ok((listener, identity)) => Ok(Self {
                listener,
                path: path.to_owned(),
                identity,
            }),
            Err(error) => {
                let _ = fs::remove_file(&aside);
                Err(failed(error))
            }
        }
    }

    /// Serves the API. Never returns; must run in a `LocalSet`.
    pub async fn serve(self, api: Rc<dyn AdminApi>) {
        let permits = Rc::new(Semaphore::new(connection::CONNECTION_LIMIT));
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) if allowed(&stream) => {
                    let api = Rc::clone(&api);
                    tokio::task::spawn_local(connection::serve(
                        stream,
                        Rc::clone(&permits),
                        move |asked| {
                            let api = Rc::clone(&api);
                            async move { routes::answer(&*api, asked).await }
                        },
                    ));
                }
                Ok(_) => tracing::warn!("admin socket: a process of another user was refused"),
                Err(error) => {
                    tracing::warn!("admin socket: cannot accept: {error}");
                    tokio::time::sleep(connection::ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

impl Drop for AdminListener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Root and our own user, whatever the mode of the socket became.
fn allowed(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

/// Whether somebody listens on the socket. Does not wait.
fn answers(path: &Path) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        // The queue is full, so somebody owns it.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
