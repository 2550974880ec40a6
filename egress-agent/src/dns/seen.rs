//! The names behind addresses, as far as forwarded answers told: what an
//! operator calls a destination that nothing registers.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use hickory_proto::serialize::binary::BinDecodable;

/// Addresses that are remembered; past this, the one that was told first is
/// forgotten.
const ADDRESSES: usize = 16_384;
/// Names that are remembered for one address (a CDN has many), the latest.
const NAMES: usize = 4;

/// Names behind addresses; shared by all threads.
#[derive(Debug, Default)]
pub struct SeenNames(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// The latest name last.
    names: HashMap<IpAddr, VecDeque<Arc<str>>>,
    order: VecDeque<IpAddr>,
}

/// What an answer said of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// The name that was asked for, lower case, no trailing dot.
    pub name: Arc<str>,
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// The shortest TTL in the answer.
    pub ttl: Duration,
}

impl SeenNames {
    /// Remembers what a reply says: every address in it belongs to the name
    /// that was asked for, whatever aliases lie between. Returns it, if it
    /// says any.
    pub fn learn(&self, reply: &[u8]) -> Option<Told> {
        let message = Message::from_bytes(reply).ok()?;
        if message.metadata.response_code != ResponseCode::NoError {
            return None;
        }
        let question = message.queries.first()?;
        let addresses: Vec<IpAddr> = message
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                _ => None,
            })
            .collect();
        if addresses.is_empty() {
            return None;
        }
        let name = question.name().to_ascii().to_ascii_lowercase();
        let name: Arc<str> = name.trim_end_matches('.').into();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in &addresses {
            seen.add(*address, &name);
        }
        drop(seen);
        let ttl = message.answers.iter().map(|record| record.ttl).min();
        Some(Told {
            name,
            addresses,
            ttl: Duration::from_secs(ttl.unwrap_or_default().into()),
        })
    }

    /// Names of an address, the one that was told last first.
    pub fn names(&self, address: IpAddr) -> Vec<Arc<str>> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.names
            .get(&address.to_canonical())
            .map(|names| names.iter().rev().cloned().collect())
            .unwrap_or_default()
    }
}

impl Seen {
    fn add(&mut self, address: IpAddr, name: &Arc<str>) {
        if let Some(names) = self.names.get_mut(&address) {
            names.retain(|known| known != name);
            if names.len() >= NAMES {
                names.pop_front();
            }
            names.push_back(Arc::clone(name));
            return;
        }
        if self.order.len() >= ADDRESSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
        self.order.push_back(address);
        self.names
            .insert(address, VecDeque::from([Arc::clone(name)]));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use hickory_proto::op::Query;
    use hickory_proto::rr::rdata::{A, CNAME};
    use hickory_proto::rr::{Name, Record, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn reply(name: &str, addresses: &[[u8; 4]]) -> Vec<u8> {
        let asked = Name::from_ascii(name).unwrap();
        let alias = Name::from_ascii("alias.cdn.example.").unwrap();
        let mut message = Message::query();
        message.add_query(Query::query(asked.clone(), RecordType::A));
        message.add_answer(Record::from_rdata(
            asked,
            60,
            RData::CNAME(CNAME(alias.clone())),
        ));
        for address in addresses {
            let data = RData::A(A((*address).into()));
            message.add_answer(Record::from_rdata(alias.clone(), 60, data));
        }
        message.to_vec().unwrap()
    }

    fn names(seen: &SeenNames, address: [u8; 4]) -> Vec<String> {
        let names = seen.names(address.into());
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_belong_to_the_name_that_was_asked_for() {
        let seen = SeenNames::default();
        let told = seen.learn(&reply("A.example.", &[[192, 0, 2, 1], [192, 0, 2, 2]]));
        let told = told.unwrap();
        assert_eq!((&*told.name, told.addresses.len()), ("a.example", 2));
        assert_eq!(told.ttl, Duration::from_mins(1));
        assert_eq!(seen.learn(&reply("none.example.", &[])), None);
        seen.learn(&reply("b.example.", &[[192, 0, 2, 2]]));
        assert_eq!(names(&seen, [192, 0, 2, 1]), ["a.example"]);
        assert_eq!(names(&seen, [192, 0, 2, 2]), ["b.example", "a.example"]);
        assert!(names(&seen, [192, 0, 2, 3]).is_empty());
        seen.learn(&reply("A.example.", &[[192, 0, 2, 2]]));
        assert_eq!(names(&seen, [192, 0, 2, 2]), ["a.example", "b.example"]);
    }

    #[test]
    fn names_and_addresses_are_bounded() {
        let seen = SeenNames::default();
        for number in 0..10 {
            seen.learn(&reply(&format!("n{number}.example."), &[[192, 0, 2, 1]]));
        }
        assert_eq!(names(&seen, [192, 0, 2, 1]).len(), NAMES);
        assert_eq!(names(&seen, [192, 0, 2, 1])[0], "n9.example");
        for number in 0..u32::try_from(ADDRESSES).unwrap() {
            let mut inner = seen.0.lock().unwrap();
            inner.add(std::net::Ipv4Addr::from(number).into(), &"x".into());
        }
        let inner = seen.0.lock().unwrap();
        assert_eq!(
            (inner.names.len(), inner.order.len()),
            (ADDRESSES, ADDRESSES)
        );
        assert!(!inner.names.contains_key(&IpAddr::from([192, 0, 2, 1])));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            SeenNames::default().learn(&bytes);
        }
    }
}
