//! Asks the agent over its admin socket.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::admin::{encode, view};
use crate::settings::value::AdminSocket;

/// Time for the agent to take the connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Time for a whole answer; the agent gives itself less.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// Largest answer: some hundred bytes for each of a hundred thousand services.
const ANSWER_LIMIT: usize = 256 << 20;

/// Why the agent could not be asked.
#[derive(Debug)]
pub(super) enum ClientError {
    /// Nobody listens on the socket.
    NotRunning(AdminSocket),
    /// The socket is not ours to use.
    Denied(AdminSocket),
    /// The socket cannot be used.
    Socket(AdminSocket, io::Error),
    /// The agent does not answer.
    Silent(AdminSocket),
    /// The agent answered with a failure.
    Refused(StatusCode, String),
    /// What came back is no answer of an agent.
    Garbled(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning(socket) => {
                write!(
                    f,
                    "the agent is not running at {socket}: start it with `systemctl start egress-agent` or `egress-agent --policy DIR`, or name its socket with --admin"
                )?;
                if !pins_are_left() {
                    return Ok(());
                }
                write!(
                    f,
                    "\nThe kernel programs of the last agent are in force: services that only an agent can carry are refused, or open, as their policy says. `egress-agent --cleanup` removes them"
                )
            }
            Self::Denied(socket) => write!(
                f,
                "{socket} may be used by root and the agent's own user only; try `sudo egressctl …`"
            ),
            Self::Socket(socket, error) => write!(f, "cannot use {socket}: {error}"),
            Self::Silent(socket) => write!(f, "the agent at {socket} does not answer"),
            Self::Refused(status, text) if *status == StatusCode::NOT_IMPLEMENTED => {
                write!(f, "{text}; is it older than this egressctl?")
            }
            Self::Refused(_, text) => f.write_str(text),
            Self::Garbled(text) => write!(
                f,
                "cannot understand the agent ({text}); is it of another version than this egressctl?"
            ),
        }
    }
}

impl std::error::Error for ClientError {}

/// Whether an agent has left its programs where they are by default.
fn pins_are_left() -> bool {
    let entries = std::fs::read_dir("/sys/fs/bpf/egress");
    entries.is_ok_and(|entries| entries.flatten().any(|entry| entry.path().is_dir()))
}

/// One agent.
#[derive(Debug)]
pub(super) struct Client {
    socket: AdminSocket,
}

impl Client {
    /// The agent behind this socket; nothing is dialled yet.
    pub(super) fn new(socket: &AdminSocket) -> Self {
        Self {
            socket: socket.clone(),
        }
    }

    /// Which socket.
    pub(super) fn socket(&self) -> &AdminSocket {
        &self.socket
    }

    /// Asks, and reads JSON.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        parameters: &[(&str, Option<&str>)],
        body: impl Into<Bytes>,
    ) -> Result<T, ClientError> {
        let body = self.ask(method, path, parameters, body.into()).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Garbled(error.to_string()))
    }

    /// Asks with GET, and reads JSON.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        parameters: &[(&str, Option<&str>)],
    ) -> Result<T, ClientError> {
        self.json(Method::GET, path, parameters, Bytes::new()).await
    }

    /// Asks with GET, and reads text.
    pub(super) async fn text(&self, path: &str) -> Result<String, ClientError> {
        let body = self.ask(Method::GET, path, &[], Bytes::new()).await?;
        String::from_utf8(body.to_vec()).map_err(|error| ClientError::Garbled(error.to_string()))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        parameters: &[(&str, Option<&str>)],
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let silent = |_| ClientError::Silent(self.socket.clone());
        let stream = tokio::time::timeout(CONNECT_DEADLINE, UnixStream::connect(&self.socket.0))
            .await
            .map_err(silent)?
            .map_err(|error| self.unreachable(error))?;
        let exchange = self.exchange(stream, method, path, parameters, body);
        tokio::time::timeout(ANSWER_DEADLINE, exchange)
            .await
            .map_err(silent)?
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        parameters: &[(&str, Option<&str>)],
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let garbled = |error: &dyn fmt::Display| ClientError::Garbled(error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| garbled(&error))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(target(path, parameters))
            .header(HOST, "egress-agent")
            .body(Full::new(body))
            .map_err(|error| garbled(&error))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| garbled(&error))?
            .to_bytes();
        connection.abort();
        if status.is_success() {
            return Ok(body);
        }
        let text = serde_json::from_slice(&body).map_or_else(
            |_| format!("status {status}"),
            |failure: view::Failure| failure.error,
        );
        Err(ClientError::Refused(status, text))
    }

    fn unreachable(&self, error: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(socket)
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(socket),
            _ => ClientError::Socket(socket, error),
        }
    }

    /// The agent closes the connection of a user who may not ask.
    fn broken(&self, error: &hyper::Error) -> ClientError {
        if rustix::process::geteuid().is_root() {
            ClientError::Garbled(error.to_string())
        } else {
            ClientError::Denied(self.socket.clone())
        }
    }
}

fn target(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut target = path.to_owned();
    let given = parameters
        .iter()
        .filter_map(|(key, value)| Some((key, (*value)?)));
    for (n, (key, value)) in given.enumerate() {
        target.push(if n == 0 { '?' } else { '&' });
        target.push_str(key);
        target.push('=');
        target.push_str(&encode(value));
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_are_not_given_are_left_out() {
        let parameters = [("a", None), ("b", Some("x y")), ("c", Some("1"))];
        assert_eq!(target("/v1/x", &parameters), "/v1/x?b=x%20y&c=1");
        assert_eq!(target("/v1/x", &[]), "/v1/x");
    }
}
