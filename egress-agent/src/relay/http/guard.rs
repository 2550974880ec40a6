//! A strict reading of what a client sends as HTTP/1, in front of hyper.
//!
//! hyper is lenient where RFC 9112 lets a recipient be (bare LF, a
//! Content-Length beside Transfer-Encoding, repeated equal lengths). A proxy
//! that forwards such a message may be understood differently by the server
//! behind it, which is how requests are smuggled. So the guard follows the
//! framing of the client's bytes by itself and lets only those heads through
//! that can be read in one way; everything else is a [`Refusal`].

use http::StatusCode;
use memchr::{memchr, memmem};

/// Largest request head in bytes: Envoy's `max_request_headers_kb`.
pub(super) const HEAD_LIMIT: usize = 60 * 1024;
/// Longest request target in bytes; longer ones get 414.
pub(super) const TARGET_LIMIT: usize = 32 * 1024;
/// Most header lines of a request: Envoy's `max_headers_count`.
pub(super) const LINES_LIMIT: usize = 100;
/// Longest chunk header or trailer section in bytes.
const CHUNK_LINE_LIMIT: usize = 8 * 1024;
/// Most empty lines before a request line (RFC 9112 section 2.2 asks for at
/// least one).
const EMPTY_LINES_LIMIT: usize = 4;

/// Why a request is refused, and with which status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: &'static str,
}

const fn bad(reason: &'static str) -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        reason,
    }
}

/// How far a client's bytes may be passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// All of them.
    All,
    /// What follows is the beginning of a head, to be offered again with more.
    Partial,
    /// What follows must not be passed on.
    Refuse(Refusal),
}

/// What the next byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Head,
    /// Bytes of the body still to come.
    Length(u64),
    /// A chunk's size line: digits seen, size so far.
    ChunkSize {
        digits: u8,
        size: u64,
    },
    /// A chunk extension, up to the line's end.
    ChunkExtension,
    /// The LF of a size line.
    ChunkSizeEnd,
    /// Bytes of the chunk still to come.
    ChunkData(u64),
    /// CR and LF after a chunk's data.
    ChunkDataCr,
    ChunkDataLf,
    /// At the start of a trailer line, or of the final empty line.
    TrailerStart,
    /// Inside a trailer line.
    Trailer,
    /// The LF of a trailer line.
    TrailerLf,
    /// The LF of the final empty line.
    LastLf,
    /// An upgrade was asked for: what follows belongs to whichever protocol
    /// the service chooses.
    Awaiting,
}

/// The framing of one client connection.
#[derive(Debug)]
pub(super) struct Guard {
    state: State,
    /// Size of the chunk whose header is being read.
    chunk: u64,
    /// Bytes of chunk headers or trailers read since the last limit check.
    line: usize,
    /// Bytes of a partial head that were searched for its end already.
    searched: usize,
    /// Heads that were let through.
    heads: u32,
}

impl Guard {
    /// For a connection on which `heads` were let through already, at the start
    /// of a request.
    pub(super) const fn after(heads: u32) -> Self {
        Self {
            state: State::Head,
            chunk: 0,
            line: 0,
            searched: 0,
            heads,
        }
    }

    /// Number of heads that were let through.
    pub(super) const fn heads(&self) -> u32 {
        self.heads
    }

    /// Whether the next byte starts a request.
    pub(super) fn between_requests(&self) -> bool {
        matches!(self.state, State::Head | State::Awaiting)
    }

    /// Whether an upgrade was asked for and not answered.
    pub(super) fn awaiting(&self) -> bool {
        self.state == State::Awaiting
    }

    /// The upgrade was refused: HTTP goes on.
    pub(super) fn resume(&mut self) {
        self.state = State::Head;
    }

    /// Follows `input`, which starts where the last call stopped (a partial
    /// head is offered again, from its first byte, with more bytes behind).
    /// Returns how many bytes may be passed on, and what follows them.
    pub(super) fn follow(&mut self, input: &[u8]) -> (usize, Next) {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match self.state {
                State::Awaiting => return (at, Next::Partial),
                State::Head => match self.head(rest) {
                    Ok(Some(length)) => at += length,
                    Ok(None) => return (at, Next::Partial),
                    Err(refusal) => return (at, Next::Refuse(refusal)),
                },
                State::Length(left) => {
                    let taken = left.min(rest.len() as u64);
                    self.state = match left - taken {
                        0 => State::Head,
                        more => State::Length(more),
                    };
                    at += usize::try_from(taken).unwrap_or(rest.len());
                }
                State::ChunkData(left) => {
                    let taken = left.min(rest.len() as u64);
                    self.state = match left - taken {
                        0 => State::ChunkDataCr,
                        more => State::ChunkData(more),
                    };
                    at += usize::try_from(taken).unwrap_or(rest.len());
                }
                _ => match self.chunked(rest[0]) {
                    Ok(()) => at += 1,
                    Err(refusal) => return (at, Next::Refuse(refusal)),
                },
            }
        }
        (at, Next::All)
    }

    /// One byte of chunked framing (RFC 9112 section 7.1). Sizes are at most
    /// sixteen hexadecimal digits; lines end in CR LF and nothing else.
    fn chunked(&mut self, byte: u8) -> Result<(), Refusal> {
        self.line += 1;
        if self.line > CHUNK_LINE_LIMIT {
            return Err(bad("chunk header or trailers too long"));
        }
        self.state = match (self.state, byte) {
            (State::ChunkSize { digits, size }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 16 {
                    return Err(bad("chunk size too long"));
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                State::ChunkSize {
                    digits: digits + 1,
                    size: size << 4 | u64::from(digit),
                }
            }
            (State::ChunkSize { digits: 1.., size }, b'\r') => {
                self.chunk = size;
                State::ChunkSizeEnd
            }
            (State::ChunkSize { digits: 1.., size }, b';') => {
                self.chunk = size;
                State::ChunkExtension
            }
            (State::ChunkExtension, b'\r') => State::ChunkSizeEnd,
            (State::ChunkExtension | State::Trailer, b'\t' | b' '..=b'~' | 0x80..) => self.state,
            (State::ChunkSizeEnd, b'\n') => {
                if self.chunk == 0 {
                    State::TrailerStart
                } else {
                    self.line = 0;
                    State::ChunkData(self.chunk)
                }
            }
            (State::ChunkDataCr, b'\r') => State::ChunkDataLf,
            (State::ChunkDataLf, b'\n') => State::ChunkSize { digits: 0, size: 0 },
            (State::TrailerStart, b'\r') => State::LastLf,
            (State::TrailerStart, byte) if is_token(byte) => State::Trailer,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::LastLf, b'\n') => State::Head,
            _ => return Err(bad("malformed chunked body")),
        };
        Ok(())
    }

    /// Looks at a head. `Ok(None)`: not complete yet.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let Some(skipped) = empty_lines(bytes)? else {
            return Ok(None);
        };
        let bytes_from = &bytes[skipped..];
        let Some(&first) = bytes_from.first() else {
            // Empty lines alone belong to the request that may follow.
            return Ok(None);
        };
        if !is_token(first) {
            return Err(bad(not_http(bytes_from)));
        }
        if self.searched > 0 {
            // More of a head that was not complete; the end may straddle what
            // was searched before and what is new.
            let from = self.searched.saturating_sub(3).min(bytes_from.len());
            if memmem::find(&bytes_from[from..], b"\r\n\r\n").is_none() {
                if has_bare_lf(bytes_from, from) {
                    return Err(bad("line ends without CR"));
                }
                return self.partial(bytes_from);
            }
        }
        let Some((framing, end)) = Framing::of(bytes_from)? else {
            return self.partial(bytes_from);
        };
        if end > HEAD_LIMIT {
            return Err(too_large(bytes_from));
        }
        self.searched = 0;
        self.heads = self.heads.wrapping_add(1);
        self.line = 0;
        self.state = match framing.body {
            Body::None if framing.upgrade => State::Awaiting,
            Body::None => State::Head,
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::ChunkSize { digits: 0, size: 0 },
        };
        Ok(Some(skipped + end))
    }

    /// The head goes on beyond `bytes`.
    fn partial<T>(&mut self, bytes: &[u8]) -> Result<Option<T>, Refusal> {
        if bytes.len() > HEAD_LIMIT {
            return Err(too_large(bytes));
        }
        self.searched = bytes.len();
        Ok(None)
    }
}

/// What of a head is too large.
fn too_large(bytes: &[u8]) -> Refusal {
    let line = memchr(b'\n', bytes).unwrap_or(bytes.len());
    if line > TARGET_LIMIT {
        URI_TOO_LONG
    } else {
        HEAD_TOO_LARGE
    }
}

const URI_TOO_LONG: Refusal = Refusal {
    status: StatusCode::URI_TOO_LONG,
    reason: "request target too long",
};

const HEAD_TOO_LARGE: Refusal = Refusal {
    status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    reason: "request headers too large",
};

/// Length of the empty lines before a request line; `None` when the last byte
/// is a CR whose LF is still to come.
fn empty_lines(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    let mut at = 0;
    loop {
        match &bytes[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [b'\r'] => return Ok(None),
            [b'\r' | b'\n', ..] => return Err(bad("line ends without CR LF")),
            _ => return Ok(Some(at)),
        }
        if at > 2 * EMPTY_LINES_LIMIT {
            return Err(bad("empty lines before the request"));
        }
    }
}

/// What a first byte that starts no method is likely to be.
fn not_http(bytes: &[u8]) -> &'static str {
    match bytes[0] {
        0x16 => "TLS spoken on a port that is registered as HTTP",
        _ => "something else than HTTP spoken on a port that is registered as HTTP",
    }
}

fn has_bare_lf(bytes: &[u8], from: usize) -> bool {
    memchr::memchr_iter(b'\n', &bytes[from..]).any(|at| {
        let at = from + at;
        at == 0 || bytes[at - 1] != b'\r'
    })
}

enum Body {
    None,
    Length(u64),
    Chunked,
}

/// How a message is framed, as its head says.
struct Framing {
    body: Body,
    upgrade: bool,
}

impl Framing {
    /// Reads a head, from the method to the final empty line, and gives its
    /// length; `None` when it is not complete.
    fn of(bytes: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        let mut lines = Lines(bytes);
        let Some(line) = lines.next() else {
            return Ok(None);
        };
        let http_11 = request_line(line?)?;
        let mut length = None;
        let mut chunked = false;
        let mut host = false;
        let mut upgrade = false;
        let mut count = 0;
        loop {
            let Some(line) = lines.next() else {
                return Ok(None);
            };
            let line = line?;
            if line.is_empty() {
                break;
            }
            count += 1;
            if count > LINES_LIMIT {
                return Err(HEAD_TOO_LARGE);
            }
            let Some(colon) = memchr(b':', line) else {
                return Err(bad("header line without colon"));
            };
            let (name, value) = (&line[..colon], &line[colon + 1..]);
            match name {
                [] => return Err(bad("header without name")),
                [b' ' | b'\t', ..] => return Err(bad("folded header line")),
                [.., b' ' | b'\t'] => return Err(bad("whitespace before a header's colon")),
                _ => (),
            }
            if name.eq_ignore_ascii_case(b"host") {
                if std::mem::replace(&mut host, true) {
                    return Err(bad("more than one Host"));
                }
                if !is_authority(trim(value)) {
                    return Err(bad("malformed Host"));
                }
            } else if name.eq_ignore_ascii_case(b"content-length") {
                let value = decimal(trim(value)).ok_or(bad("malformed Content-Length"))?;
                if length.replace(value).is_some() {
                    return Err(bad("more than one Content-Length"));
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if !trim(value).eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal {
                        status: StatusCode::NOT_IMPLEMENTED,
                        reason: "transfer coding other than chunked",
                    });
                }
                if std::mem::replace(&mut chunked, true) {
                    return Err(bad("more than one Transfer-Encoding"));
                }
            } else if name.eq_ignore_ascii_case(b"upgrade") {
                upgrade = true;
            }
        }
        if http_11 && !host {
            return Err(bad("no Host"));
        }
        let body = match (length, chunked) {
            (Some(_), true) => return Err(bad("both Content-Length and Transfer-Encoding")),
            (None, true) if !http_11 => return Err(bad("Transfer-Encoding in HTTP/1.0")),
            (None, true) => Body::Chunked,
            (None | Some(0), false) => Body::None,
            (Some(length), false) => Body::Length(length),
        };
        Ok(Some((Self { body, upgrade }, bytes.len() - lines.0.len())))
    }
}

/// Lines of a head without their CR LF.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = memchr(b'\n', self.0)?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(match line.split_last() {
            Some((b'\r', line)) if memchr(b'\r', line).is_none() => Ok(line),
            _ => Err(bad("line ends without CR")),
        })
    }
}

/// `method SP target SP HTTP/1.x`; gives whether it is 1.1.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let malformed = || bad("malformed request line");
    let method = memchr(b' ', line).ok_or_else(malformed)?;
    let rest = &line[method + 1..];
    let target = memchr(b' ', rest).ok_or_else(malformed)?;
    let (target, version) = (&rest[..target], &rest[target + 1..]);
    if method == 0 || target.is_empty() || memchr(b'#', target).is_some() {
        return Err(malformed());
    }
    if target.len() > TARGET_LIMIT {
        return Err(URI_TOO_LONG);
    }
    if target[0] != b'/' && has_other_scheme(target) {
        return Err(bad("the request target is of another scheme than http"));
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ if version.starts_with(b"HTTP/") => Err(Refusal {
            status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            reason: "unknown HTTP version",
        }),
        _ => Err(malformed()),
    }
}

/// Whether a target in absolute form (RFC 9112 section 3.2.2) is no HTTP
/// resource: in origin form it would become one.
fn has_other_scheme(target: &[u8]) -> bool {
    memmem::find(target, b"://").is_some_and(|end| {
        let scheme = &target[..end];
        !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https")
    })
}

/// Optional whitespace around a value (RFC 9110 section 5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Digits and nothing else, small enough for any length.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'9' => Some(sum * 10 + u64::from(digit - b'0')),
        _ => None,
    })
}

/// Whether a Host can be a name or address with an optional port; commas,
/// user information and paths are read differently by different servers.
pub(super) fn is_authority(value: &[u8]) -> bool {
    !value.is_empty()
        && value.iter().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
        })
}

/// `tchar` of RFC 9110 section 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}
