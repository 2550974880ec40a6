//! `tunnel`: the endpoint is a proxy, which is asked by CONNECT (RFC 9110
//! section 9.3.6) for a connection to the target.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::policy::model::Tunnel;

/// Longest head of the proxy's answer.
const HEAD_LIMIT: usize = 8 * 1024;

/// Why a proxy did not open the tunnel.
#[derive(Debug)]
pub enum TunnelFailure {
    /// It answered with another status than 2xx.
    Refused {
        /// `targetHost:targetPort`.
        target: String,
        /// Status and reason.
        status: String,
    },
    /// What it answered is no HTTP/1 response head.
    NotHttp,
    /// The connection broke meanwhile.
    Broken(io::Error),
    /// `protocol: POST`.
    Post,
}

impl fmt::Display for TunnelFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { target, status } => {
                write!(f, "the proxy refused CONNECT to {target}: {status}")
            }
            Self::NotHttp => f.write_str("the proxy's answer to CONNECT is not HTTP/1"),
            Self::Broken(error) => write!(f, "the proxy broke the connection: {error}"),
            Self::Post => f.write_str("tunnel.protocol POST is not supported; use CONNECT"),
        }
    }
}

/// Asks for the tunnel and reads the answer, and not a byte beyond it: the
/// target may speak first.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    tunnel: &Tunnel,
) -> Result<(), TunnelFailure> {
    if tunnel.post {
        return Err(TunnelFailure::Post);
    }
    let host = &tunnel.target_host;
    let target = if host.contains(':') {
        format!("[{host}]:{}", tunnel.target_port)
    } else {
        format!("{host}:{}", tunnel.target_port)
    };
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    let write = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await
    };
    write.await.map_err(TunnelFailure::Broken)?;
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.map_err(TunnelFailure::Broken)?;
        head.push(byte);
        // An answer that does not even begin like one is not waited for.
        let begun = head.len().min(7);
        if head[..begun] != b"HTTP/1."[..begun] || head.len() > HEAD_LIMIT {
            return Err(TunnelFailure::NotHttp);
        }
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let (_, status) = line.split_once(' ').ok_or(TunnelFailure::NotHttp)?;
    let is_status = |text: &&str| text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    match status.split(' ').next().filter(is_status) {
        Some(code) if code.starts_with('2') => Ok(()),
        Some(_) => Err(TunnelFailure::Refused {
            target,
            status: status.escape_debug().take(200).collect(),
        }),
        None => Err(TunnelFailure::NotHttp),
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests"
    )]
    use tokio::io::duplex;

    use super::*;

    async fn ask(answer: &'static [u8], tunnel: Tunnel) -> (Result<(), TunnelFailure>, String) {
        let (mut near, mut far) = duplex(64 * 1024);
        far.write_all(answer).await.unwrap();
        let opened = open(&mut near, &tunnel).await;
        // What comes after the head is the target's.
        let mut rest = vec![0; 5];
        if opened.is_ok() {
            near.read_exact(&mut rest).await.unwrap();
            assert_eq!(rest, b"220 x");
        }
        drop(near);
        let mut asked = String::new();
        far.read_to_string(&mut asked).await.unwrap();
        (opened, asked)
    }

    fn tunnel(host: &str) -> Tunnel {
        Tunnel {
            post: false,
            target_host: host.into(),
            target_port: 25,
        }
    }

    #[tokio::test]
    async fn a_tunnel_opens_and_leaves_the_first_bytes_of_the_target() {
        let answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n220 x";
        let (opened, asked) = ask(answer, tunnel("mail.example")).await;
        opened.unwrap();
        assert_eq!(
            asked,
            "CONNECT mail.example:25 HTTP/1.1\r\nHost: mail.example:25\r\n\r\n"
        );
        let (opened, asked) = ask(answer, tunnel("2001:db8::1")).await;
        opened.unwrap();
        assert!(asked.starts_with("CONNECT [2001:db8::1]:25 "), "{asked}");
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_told_apart() {
        let (opened, _) = ask(b"HTTP/1.1 403 Forbidden\r\n\r\n", tunnel("a")).await;
        let text = opened.unwrap_err().to_string();
        assert_eq!(text, "the proxy refused CONNECT to a:25: 403 Forbidden");
        for answer in [&b"SSH-2.0-x\r\n"[..], b"HTTP/1.1 oops\r\n\r\n"] {
            let (opened, _) = ask(answer, tunnel("a")).await;
            assert!(matches!(opened, Err(TunnelFailure::NotHttp)));
        }
        let post = Tunnel {
            post: true,
            ..tunnel("a")
        };
        let (opened, asked) = ask(b"", post).await;
        assert!(matches!(opened, Err(TunnelFailure::Post)));
        assert!(asked.is_empty());
    }
}
