//! Responses as they come over an HTTP/1 connection (RFC 9112).

use std::fmt;
use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, response};

/// Largest response head in bytes (Envoy: 60 KiB).
pub(super) const HEAD_LIMIT: usize = 60 * 1024;
/// Most header lines of a response (Envoy: 100).
const LINES_LIMIT: usize = 100;
/// Longest chunk size line or trailer section in bytes.
const LINE_LIMIT: usize = 8 * 1024;

/// What came back is not HTTP/1, or can be read in more than one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Malformed {
    /// The status line or a header.
    Head(httparse::Error),
    /// The head is larger than [`HEAD_LIMIT`].
    TooLarge,
    /// A header that is no name and value.
    Header,
    /// Lengths that contradict each other, or are no numbers.
    Length,
    /// Chunked framing.
    Chunk,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(error) => write!(f, "malformed response head: {error}"),
            Self::TooLarge => write!(f, "response head over {HEAD_LIMIT} bytes"),
            Self::Header => f.write_str("malformed response header"),
            Self::Length => f.write_str("contradictory or malformed Content-Length"),
            Self::Chunk => f.write_str("malformed chunked body"),
        }
    }
}

impl std::error::Error for Malformed {}

/// How much body follows a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// Everything until the connection closes.
    UntilClose,
}

/// A response head and what follows it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) parts: response::Parts,
    pub(super) framing: Framing,
    /// The connection may serve another request after this response.
    pub(super) keep_alive: bool,
}

/// Takes a head off the front of `buffer`; `None` when it is not complete.
/// `method` is that of the request, since it decides whether a body follows.
/// `spare` may be an empty map with room.
pub(super) fn head(
    buffer: &mut BytesMut,
    method: &Method,
    spare: &mut HeaderMap,
) -> Result<Option<Head>, Malformed> {
    // Places in the buffer, since the slices cannot outlive the split below.
    let mut places = [(0u16, 0u16, 0u16, 0u16); LINES_LIMIT];
    let (length, count, status, version) = {
        let mut lines = [const { MaybeUninit::uninit() }; LINES_LIMIT];
        let mut response = httparse::Response::new(&mut []);
        let bytes: &[u8] = buffer;
        let parsed = httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut response, bytes, &mut lines)
            .map_err(Malformed::Head)?;
        let httparse::Status::Complete(length) = parsed else {
            return if buffer.len() > HEAD_LIMIT {
                Err(Malformed::TooLarge)
            } else {
                Ok(None)
            };
        };
        if length > HEAD_LIMIT {
            return Err(Malformed::TooLarge);
        }
        let start = bytes.as_ptr() as usize;
        let place = |part: &[u8]| {
            // Below HEAD_LIMIT, so it fits.
            let from = u16::try_from(part.as_ptr() as usize - start).unwrap_or(0);
            let size = u16::try_from(part.len()).unwrap_or(0);
            (from, from + size)
        };
        for (at, line) in places.iter_mut().zip(response.headers.iter()) {
            let (name, value) = (place(line.name.as_bytes()), place(line.value));
            *at = (name.0, name.1, value.0, value.1);
        }
        let version = match response.version {
            Some(0) => Version::HTTP_10,
            _ => Version::HTTP_11,
        };
        (length, response.headers.len(), response.code, version)
    };
    let bytes = buffer.split_to(length).freeze();
    let status = status
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(Malformed::Header)?;
    let mut headers = std::mem::take(spare);
    headers.reserve(count + 4);
    let mut told = Told::default();
    for &(name_from, name_to, from, to) in &places[..count] {
        let name = HeaderName::from_bytes(&bytes[name_from.into()..name_to.into()])
            .map_err(|_| Malformed::Header)?;
        let value = bytes.slice(usize::from(from)..usize::from(to));
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed::Header)?;
        match name {
            CONTENT_LENGTH => told.length = true,
            TRANSFER_ENCODING => told.coding = true,
            // What HTTP/1.1 does anyway, and nobody's business beyond.
            CONNECTION if value.as_bytes().eq_ignore_ascii_case(b"keep-alive") => {
                told.keep_alive = true;
                continue;
            }
            CONNECTION => told.connection = true,
            _ => {}
        }
        headers.append(name, value);
    }
    let (framing, certain) = framing(method, status, version, &mut headers, told)?;
    let keep_alive = certain && keeps_alive(version, &headers, told);
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = status;
    parts.version = version;
    parts.headers = headers;
    Ok(Some(Head {
        parts,
        framing,
        keep_alive,
    }))
}

/// Which of the headers that frame a message are there.
#[derive(Clone, Copy, Default)]
struct Told {
    length: bool,
    coding: bool,
    connection: bool,
    keep_alive: bool,
}

/// RFC 9112 section 6.3. The flag says whether nothing about the message's
/// length is doubtful.
fn framing(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &mut HeaderMap,
    told: Told,
) -> Result<(Framing, bool), Malformed> {
    let length = if told.length {
        content_length(headers)?
    } else {
        None
    };
    if *method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return Ok((Framing::Length(0), true));
    }
    if told.coding {
        // Transfer-Encoding wins, and a length beside it must not travel on.
        let both = headers.remove(CONTENT_LENGTH).is_some();
        let mut all = headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = all
            .next_back()
            .is_some_and(|last| last.as_bytes().eq_ignore_ascii_case(b"chunked"))
            && all.next().is_none();
        return if chunked && version == Version::HTTP_11 {
            Ok((Framing::Chunked(Chunk::START), !both))
        } else if chunked {
            // HTTP/1.0 has no chunks: what this is, only the sender knows.
            Err(Malformed::Length)
        } else {
            // A coding that we cannot undo must not be passed on as if it were
            // the content.
            Err(Malformed::Chunk)
        };
    }
    Ok(match length {
        Some(length) => (Framing::Length(length), true),
        None => (Framing::UntilClose, false),
    })
}

/// One length; repeated equal ones (also in one header) are taken as one.
fn content_length(headers: &mut HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = values.next() else {
        return Ok(None);
    };
    let more = values.next().is_some();
    let text = first.as_bytes();
    if let (false, Some(length)) = (more, decimal(text)) {
        return Ok(Some(length));
    }
    let mut lengths = headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(|one| decimal(one.trim_ascii()));
    let length = lengths.next().flatten().ok_or(Malformed::Length)?;
    if lengths.any(|other| other != Some(length)) {
        return Err(Malformed::Length);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(Some(length))
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    text.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'9' => Some(sum * 10 + u64::from(digit - b'0')),
        _ => None,
    })
}

fn keeps_alive(version: Version, headers: &HeaderMap, told: Told) -> bool {
    let named = |want: &[u8]| {
        headers.get_all(CONNECTION).iter().any(|value| {
            value
                .as_bytes()
                .split(|&byte| byte == b',')
                .any(|one| one.trim_ascii().eq_ignore_ascii_case(want))
        })
    };
    if version == Version::HTTP_11 {
        !told.connection || !named(b"close")
    } else {
        (told.keep_alive || (told.connection && named(b"keep-alive")))
            && !(told.connection && named(b"close"))
    }
}

/// Where in a chunked body the next byte is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Chunk {
    /// In a size line, of which so many bytes were looked at in vain.
    Size,
    /// In a chunk's data, with so many bytes to come.
    Data(u64),
    /// Before the line end behind a chunk's data.
    DataEnd,
    /// In the trailer section.
    Trailers,
    /// Behind it.
    End,
}

/// A piece of a body.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes.
    Data(Bytes),
    /// Trailers; nothing follows.
    Trailers(HeaderMap),
    /// Nothing follows.
    End,
    /// More must be read.
    More,
}

impl Chunk {
    pub(super) const START: Self = Self::Size;

    /// Takes the next piece off the front of `buffer`.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, Malformed> {
        loop {
            match *self {
                Self::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Piece::More);
                    }
                    let size = usize::try_from(left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    let left = left - size as u64;
                    *self = if left == 0 {
                        Self::DataEnd
                    } else {
                        Self::Data(left)
                    };
                    return Ok(Piece::Data(buffer.split_to(size).freeze()));
                }
                Self::DataEnd => match buffer.as_ref() {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => return Ok(Piece::More),
                    _ => return Err(Malformed::Chunk),
                },
                Self::Size => {
                    let Some(end) = memchr::memchr(b'\n', buffer) else {
                        return more(buffer);
                    };
                    let size = chunk_size(&buffer[..end])?;
                    buffer.advance(end + 1);
                    *self = match size {
                        0 => Self::Trailers,
                        size => Self::Data(size),
                    };
                }
                Self::Trailers => {
                    if buffer.starts_with(b"\r\n") {
                        buffer.advance(2);
                        *self = Self::End;
                        return Ok(Piece::End);
                    }
                    let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") else {
                        return more(buffer);
                    };
                    let section = buffer.split_to(end + 4);
                    *self = Self::End;
                    return trailers(&section).map(Piece::Trailers);
                }
                Self::End => return Ok(Piece::End),
            }
        }
    }
}

fn more(buffer: &BytesMut) -> Result<Piece, Malformed> {
    if buffer.len() > LINE_LIMIT {
        Err(Malformed::Chunk)
    } else {
        Ok(Piece::More)
    }
}

/// A size line without its LF: hexadecimal digits, then maybe blanks and an
/// extension, then CR.
fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let line = line.strip_suffix(b"\r").ok_or(Malformed::Chunk)?;
    let end = line
        .iter()
        .position(|byte| !byte.is_ascii_hexdigit())
        .unwrap_or(line.len());
    let (digits, rest) = line.split_at(end);
    if digits.is_empty() || digits.len() > 16 {
        return Err(Malformed::Chunk);
    }
    match rest.trim_ascii_start().first() {
        None | Some(b';') => {}
        Some(_) => return Err(Malformed::Chunk),
    }
    digits.iter().try_fold(0u64, |size, digit| {
        let digit = char::from(*digit).to_digit(16).ok_or(Malformed::Chunk)?;
        Ok(size << 4 | u64::from(digit))
    })
}

fn trailers(section: &[u8]) -> Result<HeaderMap, Malformed> {
    let mut lines = [httparse::EMPTY_HEADER; LINES_LIMIT];
    let parsed = httparse::parse_headers(section, &mut lines).map_err(|_| Malformed::Chunk)?;
    let httparse::Status::Complete((_, lines)) = parsed else {
        return Err(Malformed::Chunk);
    };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed::Chunk)?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| Malformed::Chunk)?;
        trailers.append(name, value);
    }
    Ok(super::trailers::allowed(trailers))
}
