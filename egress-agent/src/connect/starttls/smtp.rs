//! SMTP (RFC 3207): greeting, EHLO, STARTTLS. The application then gets the
//! greeting, and its own EHLO goes through TLS, where a server must not offer
//! STARTTLS any more (section 4.2).

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::error::StartTlsFailure;
use super::lines::{LINES, Lines};
use super::quoted;
use crate::policy::model::StartTls;

const PROTOCOL: StartTls = StartTls::Smtp;

/// Returns the server's greeting.
pub(super) async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    local: Option<SocketAddr>,
) -> Result<Vec<u8>, StartTlsFailure> {
    let mut lines = Lines::new(stream, PROTOCOL);
    let greeting = expect(&mut lines, *b"220").await?;
    say(&mut lines, &format!("EHLO {}\r\n", literal(local))).await?;
    let offers = expect(&mut lines, *b"250").await?;
    if !offers_starttls(&offers) {
        let words = "it does not offer STARTTLS".to_owned();
        return Err(StartTlsFailure::Refused(PROTOCOL, words));
    }
    say(&mut lines, "STARTTLS\r\n").await?;
    expect(&mut lines, *b"220").await?;
    lines.finish()?;
    Ok(greeting)
}

/// Our address as a domain (RFC 5321 section 4.1.3): it needs no name.
fn literal(local: Option<SocketAddr>) -> String {
    match local.map(|address| address.ip().to_canonical()) {
        Some(IpAddr::V4(ip)) => format!("[{ip}]"),
        Some(IpAddr::V6(ip)) => format!("[IPv6:{ip}]"),
        None => "localhost".to_owned(),
    }
}

fn offers_starttls(reply: &[u8]) -> bool {
    reply
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.get(4..))
        .any(|offer| offer.trim_ascii().eq_ignore_ascii_case(b"STARTTLS"))
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(
    lines: &mut Lines<'_, S>,
    words: &str,
) -> Result<(), StartTlsFailure> {
    let written = lines.stream().write_all(words.as_bytes()).await;
    written.map_err(StartTlsFailure::broken)
}

/// One reply of as many lines as it has (RFC 5321 section 4.2.1).
async fn expect<S: AsyncRead + AsyncWrite + Unpin>(
    lines: &mut Lines<'_, S>,
    wanted: [u8; 3],
) -> Result<Vec<u8>, StartTlsFailure> {
    let mut reply = Vec::new();
    for _ in 0..LINES {
        let line = lines.next().await?;
        let (Some(code), after) = (line.get(..3), line.get(3)) else {
            return Err(StartTlsFailure::NotSpoken(PROTOCOL));
        };
        if !code.iter().all(u8::is_ascii_digit) {
            return Err(StartTlsFailure::NotSpoken(PROTOCOL));
        }
        if code != wanted {
            return Err(StartTlsFailure::Refused(PROTOCOL, quoted(&line)));
        }
        reply.extend(&line);
        if after != Some(&b'-') {
            return Ok(reply);
        }
    }
    Err(StartTlsFailure::NotSpoken(PROTOCOL))
}
