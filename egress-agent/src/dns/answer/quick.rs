//! The answer to the query that nearly every client sends, with no copy of the
//! message in between: one question for A, AAAA, HTTPS or SVCB of a name with
//! a virtual address, and at most EDNS without surprises beside it.
//!
//! Says what [`answer`](super::answer) says, or nothing: whatever is unusual
//! takes the long way.

use super::super::names::Claim;
use super::super::virtual_address::TTL;
use super::{Context, PAYLOAD, View};

const HEADER: usize = 12;
/// Longest name as text, without the last dot (RFC 1035 section 2.3.4).
const NAME: usize = 253;

const A: u16 = 1;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const IN: u16 = 1;

/// Bits of the third and fourth byte of a header (RFC 1035 section 4.1.1, RFC
/// 4035 section 3.1.6).
const RESPONSE: u8 = 0x80;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const CHECKING_DISABLED: u8 = 0x10;

/// The name of the question, by pointer.
const QUESTION: [u8; 2] = [0xc0, 0x0c];

/// Names of the SOA record of empty answers, in wire form: `mname`, `rname`.
const ZONE: &[u8] = b"\x0cegress-agent\x07invalid\0\x06nobody\x07invalid\0";

/// Options of EDNS that mean nothing to us, whatever they hold: NSID, cookie,
/// keepalive, padding, extended error (RFC 5001, 7873, 7828, 7830, 8914).
const IGNORED_OPTIONS: [u16; 5] = [3, 10, 11, 12, 15];

/// Appends the answer to `message` to `out`; false, and nothing appended, when
/// it takes the long way.
pub fn quick(message: &[u8], view: &dyn View, context: Context, out: &mut Vec<u8>) -> bool {
    let mut text = [0; NAME];
    let Some(query) = Query::read(message, &mut text) else {
        return false;
    };
    if view.claim(query.host) != Claim::Virtual {
        return false;
    }
    // Before the empty answers too: a name without an address gets one.
    let address = match query.kind {
        A | AAAA => match view.address(query.host) {
            Some(address) => Some(address),
            None => return false,
        },
        _ => None,
    };
    let (v4, v6);
    let data: Option<&[u8]> = match (query.kind, address) {
        (A, Some(address)) => {
            v4 = address.v4().octets();
            Some(&v4)
        }
        (AAAA, Some(address)) if context.ipv6 => {
            v6 = address.v6().octets();
            Some(&v6)
        }
        _ => None,
    };
    out.extend_from_slice(&[
        message[0],
        message[1],
        RESPONSE | AUTHORITATIVE | (message[2] & RECURSION_DESIRED),
        RECURSION_AVAILABLE | (message[3] & CHECKING_DISABLED),
    ]);
    let full = u8::from(data.is_some());
    let edns = u8::from(query.edns.is_some());
    out.extend_from_slice(&[0, 1, 0, full, 0, 1 - full, 0, edns]);
    // With the case that the client wrote (draft-vixie-dnsext-dns0x20).
    out.extend_from_slice(query.question);
    match data {
        Some(data) => record(out, query.kind, data.len(), |out| {
            out.extend_from_slice(data);
        }),
        None => record(out, SOA, ZONE.len() + 20, |out| {
            out.extend_from_slice(ZONE);
            // Serial, refresh, retry, expire, minimum.
            for number in [1, TTL, TTL, TTL, TTL] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        }),
    }
    if let Some(Edns { dnssec_ok }) = query.edns {
        out.push(0);
        out.extend_from_slice(&OPT.to_be_bytes());
        out.extend_from_slice(&PAYLOAD.to_be_bytes());
        out.extend_from_slice(&[0, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
    }
    true
}

fn record(out: &mut Vec<u8>, kind: u16, length: usize, data: impl FnOnce(&mut Vec<u8>)) {
    // Constants and addresses: far below 64 KiB.
    let length = u16::try_from(length).unwrap_or_default();
    out.extend_from_slice(&QUESTION);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&IN.to_be_bytes());
    out.extend_from_slice(&TTL.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    data(out);
}

struct Query<'a> {
    /// Lower case, no trailing dot.
    host: &'a str,
    kind: u16,
    /// Name, type and class, as they came.
    question: &'a [u8],
    edns: Option<Edns>,
}

struct Edns {
    dnssec_ok: bool,
}

impl<'a> Query<'a> {
    fn read(message: &'a [u8], text: &'a mut [u8; NAME]) -> Option<Self> {
        let header = message.get(..HEADER)?;
        // A query, not an answer, of opcode QUERY.
        if header[2] & !(RECURSION_DESIRED | AUTHORITATIVE | TRUNCATED) != 0 {
            return None;
        }
        let [0, 1, 0, 0, 0, 0, 0, additional @ (0 | 1)] = header[4..] else {
            return None;
        };
        let body = &message[HEADER..];
        let (mut at, mut length) = (0, 0);
        loop {
            let label = usize::from(*body.get(at)?);
            at += 1;
            if label == 0 {
                break;
            }
            // A pointer has nothing to point at, and other labels are unknown.
            if label > 63 || length + label + usize::from(length > 0) > NAME {
                return None;
            }
            if length > 0 {
                text[length] = b'.';
                length += 1;
            }
            for &byte in body.get(at..at + label)? {
                if !byte.is_ascii_alphanumeric() && byte != b'-' && byte != b'_' {
                    return None;
                }
                text[length] = byte.to_ascii_lowercase();
                length += 1;
            }
            at += label;
        }
        let tail = body.get(at..at + 4)?;
        let kind = u16::from_be_bytes([tail[0], tail[1]]);
        let class = u16::from_be_bytes([tail[2], tail[3]]);
        if length == 0 || class != IN || !matches!(kind, A | AAAA | HTTPS | SVCB) {
            return None;
        }
        let (question, rest) = body.split_at(at + 4);
        let edns = match (additional, rest) {
            (0, []) => None,
            (1, rest) => Some(Edns::read(rest)?),
            _ => return None,
        };
        Some(Self {
            host: std::str::from_utf8(&text[..length]).ok()?,
            kind,
            question,
            edns,
        })
    }
}

impl Edns {
    /// An OPT record that ends with the message.
    fn read(record: &[u8]) -> Option<Self> {
        let (fixed, mut options) = record.split_at_checked(11)?;
        // Root, OPT, any payload size, extended code and version 0.
        let [0, high, low, _, _, 0, 0, flags, _, length @ ..] = fixed else {
            return None;
        };
        if u16::from_be_bytes([*high, *low]) != OPT
            || usize::from(u16::from_be_bytes(length.try_into().ok()?)) != options.len()
        {
            return None;
        }
        while !options.is_empty() {
            let (head, rest) = options.split_first_chunk::<4>()?;
            let code = u16::from_be_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            if !IGNORED_OPTIONS.contains(&code) {
                return None;
            }
            options = rest.get(length..)?;
        }
        Some(Self {
            dnssec_ok: flags & 0x80 != 0,
        })
    }
}
