//! From a query message to an answer, or to what must happen before there can
//! be one. Pure: bytes and a [`View`] in, a [`Verdict`] out.
//!
//! Only the header and the question of a message are read to decide; the rest
//! is read once the name is ours, so that a message which is not ours is
//! forwarded whatever it holds.

mod quick;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::names::Claim;
use super::virtual_address::{TTL, VirtualAddress, is_virtual};

pub use quick::quick;

/// The payload size that our answers advertise, and the most that one over UDP
/// takes: what the smallest IPv6 packet carries, so that none is fragmented,
/// not even between a virtual machine and its host.
pub const PAYLOAD: u16 = 1232;

/// What a query is answered from.
pub trait View {
    /// How `host` (lower case, no trailing dot) is answered.
    fn claim(&self, host: &str) -> Claim;
    /// The address of a claimed name, if the kernel has entries for it.
    fn address(&self, host: &str) -> Option<VirtualAddress>;
    /// The name behind a virtual address, if the client may see it.
    fn name(&self, address: IpAddr) -> Option<Arc<str>>;
}

/// How the query came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// In a datagram: the client's payload size holds.
    Udp,
    /// In a stream.
    Tcp,
}

/// What else an answer depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// How the query came.
    pub transport: Transport,
    /// The client's network namespace can use IPv6, at least on loopback.
    /// Without it a virtual IPv6 address would be one that nobody can dial.
    pub ipv6: bool,
}

/// What to do with a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Send this.
    Answer(Vec<u8>),
    /// Send the query, as it is, to the resolver that the application asked.
    Forward,
    /// Give this name an address, then ask again.
    Allocate {
        /// The name.
        name: Arc<str>,
        /// First forward the query; only an answer with an address of the
        /// name confirms it, and every other answer is the client's answer.
        confirm: bool,
    },
    /// Not a query: send nothing (RFC 1035 section 7.3; a response that is
    /// answered may start an endless exchange).
    Drop,
}

/// Decides on one message.
pub fn answer(message: &[u8], view: &dyn View, context: Context) -> Verdict {
    let mut decoder = BinDecoder::new(message);
    let Ok(header) = Header::read(&mut decoder) else {
        return Verdict::Drop;
    };
    if header.message_type == MessageType::Response {
        return Verdict::Drop;
    }
    // Updates, notifications and what may come: the resolver's business.
    if header.op_code != OpCode::Query || header.counts.queries == 0 {
        return Verdict::Forward;
    }
    // RFC 9619: more than one question is a format error.
    if header.counts.queries > 1 {
        return Verdict::Answer(bare(&header.metadata, ResponseCode::FormErr));
    }
    let Ok(question) = Query::read(&mut decoder) else {
        return Verdict::Answer(bare(&header.metadata, ResponseCode::FormErr));
    };
    if !matches!(question.query_class, DNSClass::IN | DNSClass::ANY) {
        return Verdict::Forward;
    }
    let Some(body) = decide(&question, view, context) else {
        return Verdict::Forward;
    };
    match body {
        Body::Allocate { name, confirm } => Verdict::Allocate { name, confirm },
        Body::Records(code, records) => {
            let answer = match Message::from_vec(message) {
                Ok(query) => reply(&query, question, code, records, context.transport),
                Err(_) => None,
            };
            let malformed = || bare(&header.metadata, ResponseCode::FormErr);
            Verdict::Answer(answer.unwrap_or_else(malformed))
        }
    }
}

enum Body {
    Records(ResponseCode, Vec<RData>),
    Allocate { name: Arc<str>, confirm: bool },
}

const EMPTY: Body = Body::Records(ResponseCode::NoError, Vec::new());

/// `None`: forward.
fn decide(question: &Query, view: &dyn View, context: Context) -> Option<Body> {
    match question.query_type {
        RecordType::A | RecordType::AAAA | RecordType::ANY => {
            if question.query_type == RecordType::ANY
                && let Some(body) = reverse(&question.name, view)
            {
                return Some(body);
            }
            addresses(question, view, context)
        }
        RecordType::HTTPS | RecordType::SVCB => {
            let host = host(&question.name)?;
            let claimed = |host: &str| view.claim(host) != Claim::Forward;
            (claimed(&host) || attributed(&host).is_some_and(claimed)).then_some(EMPTY)
        }
        RecordType::PTR => reverse(&question.name, view),
        _ => None,
    }
}

fn addresses(question: &Query, view: &dyn View, context: Context) -> Option<Body> {
    let host = host(&question.name)?;
    let (v4, v6): (Vec<Ipv4Addr>, Vec<Ipv6Addr>) = match view.claim(&host) {
        Claim::Forward => return None,
        Claim::Listed(addresses) => {
            let v4 = addresses.iter().filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            });
            let v6 = addresses.iter().filter_map(|ip| match ip {
                IpAddr::V6(ip) => Some(*ip),
                IpAddr::V4(_) => None,
            });
            (v4.collect(), v6.collect())
        }
        claim @ (Claim::Virtual | Claim::Derived { .. }) => match view.address(&host) {
            Some(address) => {
                let v6 = context.ipv6.then(|| address.v6());
                (vec![address.v4()], v6.into_iter().collect())
            }
            None => {
                return Some(Body::Allocate {
                    name: host.into(),
                    confirm: claim == Claim::Derived { confirm: true },
                });
            }
        },
    };
    let v4 = v4.into_iter().map(|ip| RData::A(A(ip)));
    let v6 = v6.into_iter().map(|ip| RData::AAAA(AAAA(ip)));
    let records: Vec<RData> = match question.query_type {
        RecordType::A => v4.collect(),
        RecordType::AAAA => v6.collect(),
        // ANY: one set of records is enough (RFC 8482 section 4.1).
        _ if v4.len() > 0 => v4.collect(),
        _ => v6.collect(),
    };
    Some(Body::Records(ResponseCode::NoError, records))
}

/// PTR of an address in our networks; such a query must not leave the node.
fn reverse(name: &Name, view: &dyn View) -> Option<Body> {
    let net = name.parse_arpa_name().ok()?;
    let ip = net.addr();
    if net.prefix_len() != net.max_prefix_len() || !is_virtual(ip) {
        return None;
    }
    let target = view.name(ip).and_then(|name| Name::from_ascii(&*name).ok());
    Some(match target {
        Some(mut target) => {
            target.set_fqdn(true);
            Body::Records(ResponseCode::NoError, vec![RData::PTR(PTR(target))])
        }
        None => Body::Records(ResponseCode::NXDomain, Vec::new()),
    })
}

/// As policies write it: lower case, no trailing dot.
fn host(name: &Name) -> Option<String> {
    let mut host = name.to_ascii();
    host.make_ascii_lowercase();
    if host.ends_with('.') {
        host.pop();
    }
    (!host.is_empty()).then_some(host)
}

/// The host of an attribute-leaf name `_port._scheme.host` or `_scheme.host`.
fn attributed(host: &str) -> Option<&str> {
    let rest = host.strip_prefix('_')?.split_once('.')?.1;
    match rest.strip_prefix('_') {
        Some(second) => Some(second.split_once('.')?.1),
        None => Some(rest),
    }
}

fn reply(
    query: &Message,
    question: Query,
    code: ResponseCode,
    records: Vec<RData>,
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut answer = response(&query.metadata, code);
    // With the case that the client wrote (draft-vixie-dnsext-dns0x20).
    let name = question.name.clone();
    answer.add_query(question);
    let mut limit = 512;
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        answer.set_edns(edns);
        if asked.version() > 0 {
            answer.metadata.response_code = ResponseCode::BADVERS;
            return answer.to_vec().ok();
        }
        limit = usize::from(asked.max_payload().clamp(512, PAYLOAD));
    }
    if records.is_empty() {
        answer.add_authority(authority(name));
    } else {
        let records = records.into_iter();
        answer.add_answers(records.map(|data| Record::from_rdata(name.clone(), TTL, data)));
    }
    let bytes = answer.to_vec().ok()?;
    if transport == Transport::Tcp || bytes.len() <= limit {
        return Some(bytes);
    }
    answer.answers.clear();
    answer.authorities.clear();
    answer.metadata.truncation = true;
    answer.to_vec().ok()
}

/// The header of an answer. We answer with authority, and as a resolver that
/// recurses: without that bit some stub resolvers take an empty answer for a
/// lame delegation.
fn response(query: &Metadata, code: ResponseCode) -> Message {
    let mut answer = Message::response(query.id, query.op_code);
    answer.metadata = Metadata::response_from_request(query);
    answer.metadata.authoritative = true;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer
}

/// An answer without a question, to a message whose question makes no sense.
fn bare(query: &Metadata, code: ResponseCode) -> Vec<u8> {
    // A header alone always encodes.
    response(query, code).to_vec().unwrap_or_default()
}

/// The SOA record that makes an empty answer cacheable (RFC 2308 section 3),
/// for as long as a full one.
fn authority(zone: Name) -> Record {
    let invalid = |label: &str| Name::from_ascii(label).unwrap_or_default();
    let ttl = TTL.cast_signed();
    let soa = SOA::new(
        invalid("egress-agent.invalid."),
        invalid("nobody.invalid."),
        1,
        ttl,
        ttl,
        ttl,
        TTL,
    );
    Record::from_rdata(zone, TTL, RData::SOA(soa))
}

/// Extended DNS Error codes (RFC 8914 section 4) of failures here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extended {
    /// 0, with a text.
    Other = 0,
    /// 22: the resolver did not answer.
    NoReachableAuthority = 22,
    /// 23: the resolver could not be reached.
    NetworkError = 23,
}

/// SERVFAIL for a query, with the reason in EDNS where the client speaks it.
/// `None` when `message` is no query.
pub fn failure(message: &[u8], code: Extended, text: &str) -> Option<Vec<u8>> {
    let mut decoder = BinDecoder::new(message);
    let header = Header::read(&mut decoder).ok()?;
    if header.message_type == MessageType::Response {
        return None;
    }
    let mut answer = response(&header.metadata, ResponseCode::ServFail);
    answer.metadata.authoritative = false;
    if header.counts.queries == 1
        && let Ok(question) = Query::read(&mut decoder)
    {
        answer.add_query(question);
        let edns = Message::from_vec(message).ok().and_then(|query| query.edns);
        if let Some(asked) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            let mut option = (code as u16).to_be_bytes().to_vec();
            option.extend_from_slice(text.as_bytes());
            edns.options_mut().insert(EdnsOption::Unknown(15, option));
            answer.set_edns(edns);
        }
    }
    answer.to_vec().ok()
}

/// Whether a resolver's answer to an A, AAAA or ANY query names an address.
pub fn has_address(response: &[u8]) -> bool {
    Message::from_vec(response).is_ok_and(|message| {
        message.response_code == ResponseCode::NoError
            && message
                .answers
                .iter()
                .any(|record| matches!(record.data, RData::A(_) | RData::AAAA(_)))
    })
}

#[cfg(test)]
mod tests;
