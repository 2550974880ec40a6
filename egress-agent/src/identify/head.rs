//! Tells HTTP in the clear by the first bytes of a connection.

use std::sync::Arc;

use super::sniff::Name;

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest request line looked at; hyper refuses longer ones anyway.
const LINE_LIMIT: usize = 8 * 1024;
/// Longest method name; IANA's longest has 17 letters.
const METHOD_LIMIT: usize = 32;

/// What the bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Head {
    /// Not HTTP.
    No,
    /// It may become HTTP: more bytes decide.
    Partial,
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface.
    Http2,
}

/// Looks at the first bytes of a connection.
pub(super) fn http_head(bytes: &[u8]) -> Head {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() {
            Head::Http2
        } else {
            Head::Partial
        };
    }
    // RFC 9112 section 2.2: an empty line before the request line is ignored.
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let method = bytes.iter().take_while(|b| is_token(**b)).count();
    if method == 0 || method > METHOD_LIMIT {
        return if bytes.is_empty() || bytes == b"\r" {
            Head::Partial
        } else {
            Head::No
        };
    }
    match bytes.get(method) {
        None => return Head::Partial,
        Some(b' ') => {}
        Some(_) => return Head::No,
    }
    let line = &bytes[method + 1..];
    let Some(end) = memchr::memchr(b'\n', line) else {
        let binary = line.iter().any(|b| *b < b' ' && *b != b'\r');
        return if binary || line.len() > LINE_LIMIT {
            Head::No
        } else {
            Head::Partial
        };
    };
    let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
    // Target, a space, `HTTP/1.` and a digit (RFC 9112 section 3).
    match line.split_last_chunk::<9>() {
        Some((target, [b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', digit]))
            if digit.is_ascii_digit() && !target.is_empty() =>
        {
            Head::Http1
        }
        _ => Head::No,
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The host of an HTTP/1 request: of an absolute target, else of the Host
/// field; lower case, without port. `None` while the head is not complete.
pub(super) fn http1_host(bytes: &[u8]) -> Option<Name> {
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let mut lines = bytes[..end]
        .split(|b| *b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let target = lines.next()?.split(|b| *b == b' ').nth(1)?;
    if let Some(rest) = target
        .strip_prefix(b"http://")
        .or_else(|| target.strip_prefix(b"https://"))
    {
        let authority = rest.split(|b| matches!(b, b'/' | b'?')).next()?;
        return Some(name(authority));
    }
    for line in lines {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        if line[..colon].eq_ignore_ascii_case(b"host") {
            return Some(name(line[colon + 1..].trim_ascii()));
        }
    }
    Some(Name::Missing)
}

fn name(authority: &[u8]) -> Name {
    host_of(authority).map_or(Name::Missing, Name::Told)
}

fn host_of(authority: &[u8]) -> Option<Arc<str>> {
    let text = std::str::from_utf8(authority).ok()?;
    let text = text.rsplit_once('@').map_or(text, |(_, host)| host);
    let host = match text.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?.0,
        None => text.split_once(':').map_or(text, |(host, _)| host),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    (!host.is_empty()).then(|| host.to_ascii_lowercase().into())
}
