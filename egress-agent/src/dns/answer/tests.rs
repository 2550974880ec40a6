#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::virtual_address::{Holding, VirtualAddresses};
use super::*;

/// Names of a made-up policy: `db.example` and `late.example` (no address yet)
/// are virtual, `listed.example` has its own addresses, `many.example` many,
/// names under `w.example` are derived.
struct Policy(VirtualAddresses);

impl Policy {
    fn new() -> Self {
        let addresses = VirtualAddresses::in_memory();
        let names: Vec<Arc<str>> = vec!["db.example".into()];
        addresses.assign(&names, |_| false);
        addresses.allocate(&"known.w.example".into()).unwrap();
        Self(addresses)
    }

    fn holding(&self) -> Arc<Holding> {
        self.0.get("db.example").unwrap()
    }
}

impl View for Policy {
    fn claim(&self, host: &str) -> Claim {
        match host {
            "db.example" | "late.example" => Claim::Virtual,
            "listed.example" => Claim::Listed(vec!["10.2.0.1".parse().unwrap()]),
            "many.example" => Claim::Listed(
                (0..200)
                    .map(|n| Ipv4Addr::new(10, 0, 0, n).into())
                    .collect(),
            ),
            _ if host.ends_with(".w.example") => Claim::Derived { confirm: true },
            _ => Claim::Forward,
        }
    }

    fn address(&self, host: &str) -> Option<VirtualAddress> {
        self.0.get(host).map(|holding| holding.address)
    }

    fn name(&self, address: IpAddr) -> Option<Arc<str>> {
        self.0
            .reverse(address)
            .map(|holding| Arc::clone(&holding.name))
    }
}

static POLICY: LazyLock<Policy> = LazyLock::new(Policy::new);

const UDP: Context = Context {
    transport: Transport::Udp,
    ipv6: true,
};

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask_as(message: &Message, context: Context) -> Verdict {
    answer(&message.to_vec().unwrap(), &Policy::new(), context)
}

fn ask(name: &str, kind: RecordType) -> Verdict {
    ask_as(&query(name, kind), UDP)
}

fn parsed(verdict: Verdict) -> Message {
    match verdict {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("no answer: {other:?}"),
    }
}

fn data(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

#[test]
fn answers_with_the_virtual_address_in_the_clients_own_case() {
    let message = query("Db.eXample.", RecordType::A);
    let reply = parsed(ask_as(&message, UDP));
    assert_eq!(reply.id, message.id);
    assert_eq!(reply.message_type, MessageType::Response);
    assert_eq!(reply.response_code, ResponseCode::NoError);
    assert!(reply.authoritative && reply.recursion_available && reply.recursion_desired);
    assert!(!reply.authentic_data && !reply.truncation);
    assert_eq!(reply.queries[0].name.to_ascii(), "Db.eXample.");
    assert_eq!(reply.answers[0].name.to_ascii(), "Db.eXample.");
    assert_eq!(reply.answers[0].ttl, TTL);
    assert!(reply.edns.is_none(), "no OPT where the client sent none");
    let address = Policy::new().holding().address;
    assert_eq!(data(&reply), [address.v4().to_string()]);
    let reply = parsed(ask("db.example.", RecordType::AAAA));
    assert_eq!(data(&reply), [address.v6().to_string()]);
}

#[test]
fn without_ipv6_aaaa_is_empty_and_cacheable() {
    let context = Context { ipv6: false, ..UDP };
    let reply = parsed(ask_as(&query("db.example.", RecordType::AAAA), context));
    assert_eq!(reply.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
    assert_eq!(reply.authorities.len(), 1);
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    assert_eq!(reply.authorities[0].ttl, TTL);
    let reply = parsed(ask("listed.example.", RecordType::AAAA));
    assert!(reply.answers.is_empty() && reply.authorities.len() == 1);
}

#[test]
fn answers_listed_addresses_as_they_are() {
    assert_eq!(
        data(&parsed(ask("listed.example.", RecordType::A))),
        ["10.2.0.1"]
    );
}

#[test]
fn hides_address_hints_and_only_those() {
    for name in [
        "db.example.",
        "_8443._https.db.example.",
        "_dns.db.example.",
        "x.w.example.",
    ] {
        for kind in [RecordType::HTTPS, RecordType::SVCB] {
            let reply = parsed(ask(name, kind));
            assert_eq!(reply.response_code, ResponseCode::NoError, "{name}");
            assert!(reply.answers.is_empty() && reply.authorities.len() == 1);
        }
    }
    for kind in [
        RecordType::MX,
        RecordType::TXT,
        RecordType::CNAME,
        RecordType::SRV,
    ] {
        assert_eq!(ask("db.example.", kind), Verdict::Forward);
    }
    for kind in [RecordType::A, RecordType::HTTPS, RecordType::ANY] {
        assert_eq!(ask("other.example.", kind), Verdict::Forward);
        assert_eq!(ask("db.example.cluster.local.", kind), Verdict::Forward);
        assert_eq!(ask(".", kind), Verdict::Forward);
    }
}

#[test]
fn answers_any_with_one_set_of_records() {
    let reply = parsed(ask("db.example.", RecordType::ANY));
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].record_type(), RecordType::A);
}

#[test]
fn asks_for_an_address_where_there_is_none() {
    let allocate = |name: &str, confirm| Verdict::Allocate {
        name: name.into(),
        confirm,
    };
    assert_eq!(
        ask("Late.example.", RecordType::A),
        allocate("late.example", false)
    );
    assert_eq!(
        ask("x.w.example.", RecordType::AAAA),
        allocate("x.w.example", true)
    );
    assert_eq!(
        parsed(ask("known.w.example.", RecordType::A)).answers.len(),
        1
    );
}

#[test]
fn names_its_addresses_and_keeps_the_rest_of_its_networks_on_the_node() {
    let address = Policy::new().holding().address;
    for ip in [IpAddr::from(address.v4()), address.v6().into()] {
        let reply = parsed(ask(&Name::from(ip).to_ascii(), RecordType::PTR));
        assert_eq!(data(&reply), ["db.example."]);
    }
    for name in ["1.255.240.240.in-addr.arpa.", "2.255.240.240.in-addr.arpa."] {
        let reply = parsed(ask(name, RecordType::PTR));
        assert_eq!(reply.response_code, ResponseCode::NXDomain);
        assert_eq!(reply.authorities.len(), 1);
    }
    for name in [
        "1.0.0.127.in-addr.arpa.",
        "240.240.in-addr.arpa.",
        "db.example.",
    ] {
        assert_eq!(ask(name, RecordType::PTR), Verdict::Forward, "{name}");
    }
}

#[test]
fn speaks_edns() {
    let mut message = query("db.example.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    message.set_edns(edns.clone());
    let reply = parsed(ask_as(&message, UDP));
    let echoed = reply.edns.as_ref().unwrap();
    assert_eq!((echoed.version(), echoed.max_payload()), (0, PAYLOAD));
    assert!(echoed.flags().dnssec_ok);
    assert_eq!(reply.answers.len(), 1);

    edns.set_version(1);
    message.set_edns(edns);
    let reply = parsed(ask_as(&message, UDP));
    // 16 is BADVERS here and BADSIG in TSIG.
    assert_eq!(u16::from(reply.response_code), 16);
    assert_eq!(reply.edns.unwrap().version(), 0);
    assert!(reply.answers.is_empty());
}

#[test]
fn truncates_to_what_the_client_takes() {
    let mut message = query("many.example.", RecordType::A);
    for payload in [None, Some(100), Some(1000), Some(65_535)] {
        message.edns = payload.map(|payload| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            edns
        });
        let Verdict::Answer(bytes) = ask_as(&message, UDP) else {
            panic!("no answer");
        };
        assert!(bytes.len() <= 512);
        let reply = Message::from_vec(&bytes).unwrap();
        assert!(reply.truncation && reply.answers.is_empty());
        assert_eq!(reply.edns.is_some(), payload.is_some());
        assert_eq!(reply.queries, message.queries);
    }
    let tcp = Context {
        transport: Transport::Tcp,
        ..UDP
    };
    let reply = parsed(ask_as(&message, tcp));
    assert_eq!(reply.answers.len(), 200);
    assert!(!reply.truncation);
}

#[test]
fn leaves_alone_what_is_no_plain_question() {
    let mut response = query("db.example.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert_eq!(ask_as(&response, UDP), Verdict::Drop);
    assert_eq!(answer(&[0; 11], &Policy::new(), UDP), Verdict::Drop);

    let mut update = query("db.example.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(ask_as(&update, UDP), Verdict::Forward);

    let mut chaos = query("db.example.", RecordType::A);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(ask_as(&chaos, UDP), Verdict::Forward);

    let mut none = query("db.example.", RecordType::A);
    none.queries.clear();
    assert_eq!(ask_as(&none, UDP), Verdict::Forward);

    let mut two = query("db.example.", RecordType::A);
    two.add_query(Query::query(
        Name::from_ascii("other.example.").unwrap(),
        RecordType::A,
    ));
    let reply = parsed(ask_as(&two, UDP));
    assert_eq!(reply.response_code, ResponseCode::FormErr);
    assert_eq!(reply.id, two.id);

    // Broken after the question: ours is refused, another's goes on.
    for (name, ours) in [("db.example.", true), ("other.example.", false)] {
        let mut bytes = query(name, RecordType::A).to_vec().unwrap();
        bytes[11] = 1;
        match answer(&bytes, &Policy::new(), UDP) {
            Verdict::Answer(bytes) if ours => {
                let reply = Message::from_vec(&bytes).unwrap();
                assert_eq!(reply.response_code, ResponseCode::FormErr);
            }
            Verdict::Forward if !ours => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_label_with_a_dot_in_it_is_another_name() {
    let mut bytes = query("db.example.", RecordType::A).to_vec().unwrap();
    // One label of ten bytes, "db.example".
    bytes[12] = 10;
    bytes[15] = b'.';
    assert_eq!(answer(&bytes, &Policy::new(), UDP), Verdict::Forward);
}

#[test]
fn a_failure_says_why() {
    let mut message = query("other.example.", RecordType::A);
    message.set_edns(Edns::new());
    let bytes = message.to_vec().unwrap();
    let reply = failure(
        &bytes,
        Extended::NetworkError,
        "resolver 10.0.0.1:53 refused",
    )
    .unwrap();
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(
        (reply.id, reply.response_code),
        (message.id, ResponseCode::ServFail)
    );
    assert_eq!(reply.queries, message.queries);
    let edns = reply.edns.unwrap();
    let option = edns.option(15.into()).unwrap();
    assert_eq!(
        *option,
        EdnsOption::Unknown(15, b"\0\x17resolver 10.0.0.1:53 refused".to_vec())
    );
    let mut response = message;
    response.metadata.message_type = MessageType::Response;
    assert!(failure(&response.to_vec().unwrap(), Extended::Other, "").is_none());
}

#[test]
fn tells_whether_a_resolver_knows_an_address() {
    let mut reply = query("x.w.example.", RecordType::A).into_response();
    assert!(!has_address(&reply.to_vec().unwrap()));
    let name = Name::from_ascii("x.w.example.").unwrap();
    reply.add_answer(Record::from_rdata(name, 1, RData::A(A::new(10, 0, 0, 1))));
    assert!(has_address(&reply.to_vec().unwrap()));
    reply.metadata.response_code = ResponseCode::NXDomain;
    assert!(!has_address(&reply.to_vec().unwrap()));
    assert!(!has_address(b"nonsense"));
}

/// Whatever comes in: no panic; what goes out is a message with the same id.
fn holds(message: &[u8], context: Context) -> Result<(), TestCaseError> {
    let reply = match answer(message, &*POLICY, context) {
        Verdict::Answer(bytes) => Some(bytes),
        Verdict::Drop => {
            prop_assert!(message.len() < 12 || message[2] & 0x80 != 0);
            None
        }
        Verdict::Forward | Verdict::Allocate { .. } => failure(message, Extended::Other, "test"),
    };
    if let Some(bytes) = reply {
        prop_assert_eq!(&bytes[..2], &message[..2]);
        let reply = Message::from_vec(&bytes).unwrap();
        prop_assert_eq!(reply.message_type, MessageType::Response);
        if context.transport == Transport::Udp {
            prop_assert!(bytes.len() <= usize::from(PAYLOAD));
        }
    }
    has_address(message);
    Ok(())
}

fn contexts() -> impl Strategy<Value = Context> {
    (any::<bool>(), any::<bool>()).prop_map(|(tcp, ipv6)| Context {
        transport: if tcp { Transport::Tcp } else { Transport::Udp },
        ipv6,
    })
}

fn well_formed() -> impl Strategy<Value = Vec<u8>> {
    let names = prop_oneof![
        Just("db.example."),
        Just("many.example."),
        Just("listed.example."),
        Just("x.w.example."),
        Just("_1._https.db.example."),
        Just("1.2.240.240.in-addr.arpa."),
        Just("other.example."),
    ];
    let edns = proptest::option::of((any::<u16>(), 0_u8..2, any::<bool>()));
    (names, any::<u16>(), edns).prop_map(|(name, kind, edns)| {
        let kind = if kind % 2 == 0 {
            [1, 28, 64, 65, 12, 255, 41, 250][usize::from(kind / 2 % 8)]
        } else {
            kind
        };
        let mut message = query(name, RecordType::from(kind));
        message.edns = edns.map(|(payload, version, dnssec)| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload)
                .set_version(version)
                .set_dnssec_ok(dnssec);
            edns
        });
        message.to_vec().unwrap()
    })
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        context in contexts(),
    ) {
        holds(&bytes, context)?;
    }

    #[test]
    fn changed_queries_never_panic(
        mut bytes in well_formed(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        context in contexts(),
    ) {
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        holds(&bytes, context)?;
    }
}

/// The quick way, on the same bytes.
fn quickly(bytes: &[u8], context: Context) -> Option<Vec<u8>> {
    let mut out = b"before".to_vec();
    let answered = quick(bytes, &*POLICY, context, &mut out);
    assert!(out.starts_with(b"before"));
    (answered || out.len() > 6).then(|| out.split_off(6))
}

#[test]
fn the_quick_way_is_taken_by_what_clients_send() {
    for kind in [
        RecordType::A,
        RecordType::AAAA,
        RecordType::HTTPS,
        RecordType::SVCB,
    ] {
        for ipv6 in [true, false] {
            let context = Context { ipv6, ..UDP };
            let mut message = query("Db.eXample.", kind);
            assert!(quickly(&message.to_vec().unwrap(), context).is_some());
            let mut edns = Edns::new();
            edns.set_max_payload(1232).set_dnssec_ok(true);
            let cookie = EdnsOption::Unknown(10, vec![1; 8]);
            edns.options_mut().insert(cookie);
            message.set_edns(edns);
            assert!(quickly(&message.to_vec().unwrap(), context).is_some());
        }
    }
    // The long way knows what to do with these.
    for name in [
        "late.example.",
        "listed.example.",
        "a.w.example.",
        "other.",
        ".",
    ] {
        let bytes = query(name, RecordType::A).to_vec().unwrap();
        assert_eq!(quickly(&bytes, UDP), None, "{name}");
    }
    let bytes = query("db.example.", RecordType::MX).to_vec().unwrap();
    assert_eq!(quickly(&bytes, UDP), None);
}

prop_compose! {
    fn queries()(
        id in any::<u16>(),
        flags in any::<[u8; 2]>(),
        counts in prop_oneof![
            8 => Just([0, 1, 0, 0, 0, 0, 0, 0]),
            8 => Just([0, 1, 0, 0, 0, 0, 0, 1]),
            1 => any::<[u8; 8]>(),
        ],
        plain in any::<bool>(),
        name in prop_oneof![
            8 => Just(b"\x02dB\x07exAmple\0".to_vec()),
            1 => Just(b"\x06listed\x07example\0".to_vec()),
            1 => Just(b"\x02db\x07example\x01x\0".to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..20),
        ],
        kind in prop_oneof![
            6 => proptest::sample::select(vec![1_u16, 28, 64, 65]),
            1 => any::<u16>(),
        ],
        class in prop_oneof![9 => Just(1_u16), 1 => any::<u16>()],
        edns in prop_oneof![
            Just(Vec::new()),
            (any::<[u8; 2]>(), any::<[u8; 2]>(), any::<u8>()).prop_map(|(size, version, flags)| {
                let mut opt = vec![0, 0, 41, size[0], size[1], 0, version[1] & version[0] & 1];
                opt.extend([flags, 0, 0, 0]);
                opt
            }),
            proptest::collection::vec(any::<u8>(), 0..16).prop_map(|option| {
                let mut opt = vec![0, 0, 41, 4, 208, 0, 0, 0, 0, 0];
                opt.push(4 + u8::try_from(option.len()).unwrap());
                opt.extend([0, 10, 0, u8::try_from(option.len()).unwrap()]);
                opt.extend(option);
                opt
            }),
        ],
    ) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        let flags = if plain { [flags[0] & 1, flags[1] & 0x30] } else { flags };
        bytes.extend(flags);
        bytes.extend(counts);
        bytes.extend(name);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(class.to_be_bytes());
        bytes.extend(edns);
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_quick_way_says_what_the_long_one_says(bytes in queries(), ipv6 in any::<bool>()) {
        let context = Context { ipv6, ..UDP };
        if let Some(quick) = quickly(&bytes, context) {
            let Verdict::Answer(long) = answer(&bytes, &*POLICY, context) else {
                panic!("the long way has no answer to {bytes:?}");
            };
            let (quick, long) = (Message::from_vec(&quick).unwrap(), Message::from_vec(&long).unwrap());
            prop_assert_eq!(quick, long);
        }
    }

    #[test]
    fn the_quick_way_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        quickly(&bytes, UDP);
    }
}
