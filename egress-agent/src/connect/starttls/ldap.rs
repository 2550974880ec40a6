//! LDAP (RFC 4511 section 4.14): the StartTLS extended operation. Message ids
//! are the sender's own, and ours is answered before the application's first.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::StartTlsFailure;
use super::quoted;
use crate::policy::model::StartTls;

const PROTOCOL: StartTls = StartTls::Ldap;

/// ExtendedRequest 1.3.6.1.4.1.1466.20037 with message id 1, in BER.
pub(super) const REQUEST: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
/// Longest answer.
const LIMIT: usize = 8 * 1024;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
/// `[APPLICATION 24]`, constructed.
const EXTENDED_RESPONSE: u8 = 0x78;

pub(super) async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
) -> Result<(), StartTlsFailure> {
    let written = stream.write_all(REQUEST).await;
    written.map_err(StartTlsFailure::broken)?;
    let message = read_message(stream).await?;
    let answer = parse(&message).ok_or(StartTlsFailure::NotSpoken(PROTOCOL))?;
    match answer {
        // An unsolicited notice (message id 0) is the server's goodbye.
        Answer { id: 1, code: 0, .. } => Ok(()),
        Answer { code, text, .. } => {
            let words = format!("result code {code}: {}", quoted(text));
            Err(StartTlsFailure::Refused(PROTOCOL, words))
        }
    }
}

/// One message, and not a byte beyond it.
async fn read_message<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, StartTlsFailure> {
    let mut head = [0; 2];
    let read = stream.read_exact(&mut head).await;
    read.map_err(StartTlsFailure::broken)?;
    let [SEQUENCE, first] = head else {
        return Err(StartTlsFailure::NotSpoken(PROTOCOL));
    };
    let mut length = usize::from(first);
    if first >= 0x80 {
        length = 0;
        if !(0x81..=0x84).contains(&first) {
            return Err(StartTlsFailure::NotSpoken(PROTOCOL));
        }
        for _ in 0x80..first {
            let byte = stream.read_u8().await.map_err(StartTlsFailure::broken)?;
            length = length << 8 | usize::from(byte);
        }
    }
    if length > LIMIT {
        return Err(StartTlsFailure::NotSpoken(PROTOCOL));
    }
    let mut message = vec![0; length];
    let read = stream.read_exact(&mut message).await;
    read.map_err(StartTlsFailure::broken)?;
    Ok(message)
}

#[derive(PartialEq, Eq, Debug)]
pub(super) struct Answer<'a> {
    pub(super) id: u64,
    pub(super) code: u64,
    pub(super) text: &'a [u8],
}

/// The content of an LDAPMessage that is an ExtendedResponse.
pub(super) fn parse(message: &[u8]) -> Option<Answer<'_>> {
    let (id, rest) = element(message, INTEGER)?;
    let (response, _) = element(rest, EXTENDED_RESPONSE)?;
    let (code, rest) = element(response, ENUMERATED)?;
    let (_matched, rest) = element(rest, OCTETS)?;
    let (text, _) = element(rest, OCTETS)?;
    Some(Answer {
        id: number(id)?,
        code: number(code)?,
        text,
    })
}

/// The first element, which must have this tag: its content, and what follows.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let (long, after) = rest.split_at_checked(count)?;
        length = long
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    let (content, after) = rest.split_at_checked(length)?;
    (found == tag).then_some((content, after))
}

fn number(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 4 {
        return None;
    }
    Some(
        bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
    )
}
