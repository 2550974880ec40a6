//! Reads the server name of a TLS ClientHello from the first bytes of a
//! connection, without consuming or judging them: the peers do that.

use std::borrow::Cow;
use std::sync::Arc;

/// Longest ClientHello looked at; longer ones are TLS with no known name.
/// Today's largest, with post-quantum key shares, have about 2 kB.
pub(super) const LIMIT: usize = 16 * 1024;

/// RFC 8446 section 5.1.
const RECORD_HANDSHAKE: u8 = 22;
/// RFC 8446 section 5.2: a ciphertext record may be 256 bytes longer than a
/// plaintext one; a ClientHello is plaintext.
const RECORD_LIMIT: usize = 16 * 1024;
/// RFC 8446 section 4.
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
/// RFC 6066 section 3.
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_HOST: u8 = 0;

/// What the bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hello {
    /// Not a ClientHello.
    No,
    /// It may become one: more bytes decide.
    Partial,
    /// A ClientHello, with its server name, lower case, where it has one.
    Yes(Option<Arc<str>>),
}

/// Looks at the first bytes of a connection.
pub fn client_hello(bytes: &[u8]) -> Hello {
    let message = match handshake(bytes) {
        Ok(message) => message,
        Err(verdict) => return verdict,
    };
    // Type and 24-bit length (RFC 8446 section 4).
    let [kind, a, b, c, ref body @ ..] = *message else {
        // The type alone may already tell.
        return match message.first() {
            Some(&kind) if kind != HANDSHAKE_CLIENT_HELLO => Hello::No,
            _ => Hello::Partial,
        };
    };
    if kind != HANDSHAKE_CLIENT_HELLO {
        return Hello::No;
    }
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    match body.get(..length) {
        // Malformed inside: TLS all the same, for the server to refuse.
        Some(hello) => Hello::Yes(server_name(hello)),
        None if bytes.len() >= LIMIT => Hello::Yes(None),
        None => Hello::Partial,
    }
}

/// The handshake bytes that the records carry so far; a message may be cut
/// into several records.
fn handshake(mut bytes: &[u8]) -> Result<Cow<'_, [u8]>, Hello> {
    let mut message = Cow::Borrowed(&[][..]);
    loop {
        let fits = match *bytes {
            [] => return Ok(message),
            [kind] => kind == RECORD_HANDSHAKE,
            // Every version of SSL 3 and TLS has major version 3.
            [kind, major, ..] => kind == RECORD_HANDSHAKE && major == 3,
        };
        if !fits {
            // After a first good record this is no longer another protocol,
            // but a broken client; its server will tell it.
            return Err(if message.is_empty() {
                Hello::No
            } else {
                Hello::Yes(None)
            });
        }
        let [_, _, _, high, low, ref rest @ ..] = *bytes else {
            return Ok(message);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > RECORD_LIMIT {
            return Err(if message.is_empty() {
                Hello::No
            } else {
                Hello::Yes(None)
            });
        }
        let fragment = rest.get(..length).unwrap_or(rest);
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        match rest.get(length..) {
            Some(next) if complete(&message).is_none_or(|complete| !complete) => bytes = next,
            _ => return Ok(message),
        }
    }
}

/// Whether the message has all of its bytes; `None` before its length is known.
fn complete(message: &[u8]) -> Option<bool> {
    let [_, a, b, c, ref body @ ..] = *message else {
        return None;
    };
    Some(body.len() >= u32::from_be_bytes([0, a, b, c]) as usize)
}

/// The host name in a ClientHello's body, unless it has none or is malformed.
fn server_name(hello: &[u8]) -> Option<Arc<str>> {
    // legacy_version and random (RFC 8446 section 4.1.2).
    let mut hello = Reader(hello.get(34..)?);
    hello.vector8()?; // legacy_session_id
    hello.vector16()?; // cipher_suites
    hello.vector8()?; // legacy_compression_methods
    if hello.0.is_empty() {
        return None; // no extensions at all
    }
    let mut extensions = Reader(hello.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        if kind == EXTENSION_SERVER_NAME {
            let mut names = Reader(Reader(data).vector16()?);
            while !names.0.is_empty() {
                let kind = names.u8()?;
                let name = names.vector16()?;
                if kind == NAME_HOST {
                    return host_name(name);
                }
            }
        }
    }
    None
}

/// A name as policy writes hosts: lower case, without the trailing dot that
/// RFC 6066 forbids and some clients send.
fn host_name(bytes: &[u8]) -> Option<Arc<str>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_suffix('.').unwrap_or(text);
    let valid = !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    valid.then(|| text.to_ascii_lowercase().into())
}

/// Takes lengths and vectors off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}
