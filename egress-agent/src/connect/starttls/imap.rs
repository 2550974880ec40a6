//! IMAP (RFC 3501 section 6.2.1): greeting, STARTTLS. The application then
//! gets the greeting without the capabilities that it may name, which have
//! changed with TLS (`LOGINDISABLED` is gone), and asks for them itself.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::error::StartTlsFailure;
use super::lines::{LINES, Lines};
use super::quoted;
use crate::policy::model::StartTls;

const PROTOCOL: StartTls = StartTls::Imap;
const TAG: &[u8] = b"egress1";

/// Returns the greeting for the application.
pub(super) async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
) -> Result<Vec<u8>, StartTlsFailure> {
    let mut lines = Lines::new(stream, PROTOCOL);
    let greeting = lines.next().await?;
    let Some(text) = greeting.strip_prefix(b"* ") else {
        return Err(StartTlsFailure::NotSpoken(PROTOCOL));
    };
    // PREAUTH would mean that a session has begun already, which TLS could no
    // longer protect; BYE is a refusal.
    if !starts_with_word(text, b"OK") {
        return Err(StartTlsFailure::Refused(PROTOCOL, quoted(&greeting)));
    }
    let command = [TAG, b" STARTTLS\r\n"].concat();
    let written = lines.stream().write_all(&command).await;
    written.map_err(StartTlsFailure::broken)?;
    for _ in 0..LINES {
        let line = lines.next().await?;
        let Some(answer) = line.strip_prefix(TAG) else {
            if line.starts_with(b"* ") {
                continue;
            }
            return Err(StartTlsFailure::NotSpoken(PROTOCOL));
        };
        if !starts_with_word(answer.trim_ascii_start(), b"OK") {
            return Err(StartTlsFailure::Refused(PROTOCOL, quoted(&line)));
        }
        lines.finish()?;
        return Ok(without_capabilities(&greeting));
    }
    Err(StartTlsFailure::NotSpoken(PROTOCOL))
}

fn starts_with_word(text: &[u8], word: &[u8]) -> bool {
    let (Some(start), after) = (text.get(..word.len()), text.get(word.len())) else {
        return false;
    };
    start.eq_ignore_ascii_case(word) && after.is_none_or(u8::is_ascii_whitespace)
}

/// `* OK [CAPABILITY …] text` becomes `* OK text`.
pub(super) fn without_capabilities(greeting: &[u8]) -> Vec<u8> {
    const CODE: &[u8] = b"[CAPABILITY";
    let Some(start) = memchr::memchr(b'[', greeting) else {
        return greeting.to_vec();
    };
    let is_code = greeting
        .get(start..start + CODE.len())
        .is_some_and(|code| code.eq_ignore_ascii_case(CODE));
    let end = memchr::memchr(b']', &greeting[start..]);
    let (true, Some(end)) = (is_code, end) else {
        return greeting.to_vec();
    };
    let before = greeting[..start].trim_ascii_end();
    let after = greeting[start + end + 1..].trim_ascii();
    let text = if after.is_empty() { b"ready" } else { after };
    [before, b" ", text, b"\r\n"].concat()
}
