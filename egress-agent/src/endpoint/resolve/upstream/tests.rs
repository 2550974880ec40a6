#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use std::net::{Ipv4Addr, SocketAddrV4};

use super::*;

/// An address where nobody listens, unlike a port that was just let go and may
/// be another test's by now.
const NOBODY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, 9, 9, 9), 1));

/// What the name server knows; `None`: silence.
fn resolve(query: Message, tcp: bool) -> Option<Message> {
    let question = query.queries[0].clone();
    let name = question.name.clone();
    let v4 = question.query_type == RecordType::A;
    let mut reply = query.into_response();
    reply.metadata.recursion_available = true;
    let mut add = |name: &Name, ttl, data| {
        reply.add_answer(Record::from_rdata(name.clone(), ttl, data));
    };
    let a = |n| RData::A(A::new(10, 0, 0, n));
    match name.to_ascii().as_str() {
        "both.example." if v4 => {
            add(&name, 300, a(1));
            add(&name, 300, a(2));
        }
        "both.example." => add(&name, 200, RData::AAAA(AAAA("::1".parse().unwrap()))),
        "alias.example." if v4 => {
            let target = Name::from_ascii("target.example.").unwrap();
            add(&name, 7, RData::CNAME(CNAME(target.clone())));
            add(&target, 300, a(3));
        }
        "v4.example." if v4 => add(&name, 60, a(4)),
        "label.corp.example." if v4 => add(&name, 60, a(5)),
        "long.example." if v4 && tcp => {
            for n in 0..200 {
                add(&name, 60, a(n));
            }
        }
        "long.example." if v4 => reply.metadata.truncation = true,
        "broken.example." => reply.metadata.response_code = ResponseCode::ServFail,
        "silent.example." => return None,
        "v4.example." | "alias.example." | "long.example." | "empty.example." => {}
        _ => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(reply)
}

async fn name_server() -> SocketAddr {
    // A port that is free in both protocols.
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            if let Some(reply) = resolve(query, false) {
                udp.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer).unwrap();
            if let Some(reply) = resolve(query, true) {
                let reply = reply.to_vec().unwrap();
                stream
                    .write_u16(reply.len().try_into().unwrap())
                    .await
                    .unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        }
    });
    address
}

fn upstream(options: UpstreamOptions) -> Upstream {
    Upstream::new(options, Sockets::unmarked(), NetNs::current().unwrap())
}

async fn ask(server: SocketAddr, name: &str) -> Families {
    let upstream = upstream(UpstreamOptions::new(vec![server]));
    upstream.query(name.into()).await
}

fn addresses(found: &Found) -> (Vec<String>, u64) {
    match found {
        Found::Records(records) => {
            let mut list: Vec<String> = records.addresses.iter().map(ToString::to_string).collect();
            list.sort();
            (list, records.ttl.as_secs())
        }
        other => panic!("{other:?}"),
    }
}

fn failure(found: &Found) -> String {
    match found {
        Found::Failed(error) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn finds_both_families_with_the_ttl_of_the_way_to_them() {
    let server = name_server().await;
    let both = ask(server, "both.example").await;
    assert_eq!(
        addresses(&both.v4),
        (vec!["10.0.0.1".into(), "10.0.0.2".into()], 300)
    );
    assert_eq!(addresses(&both.v6), (vec!["::1".into()], 200));
    let alias = ask(server, "alias.example").await;
    assert_eq!(addresses(&alias.v4), (vec!["10.0.0.3".into()], 7));
    let one = ask(server, "v4.example").await;
    assert_eq!(addresses(&one.v4).1, 60);
    assert_eq!(one.v6, Found::NoRecords);
}

#[tokio::test]
async fn asks_again_over_tcp_when_the_answer_does_not_fit() {
    let long = ask(name_server().await, "long.example").await;
    assert_eq!(addresses(&long.v4).0.len(), 200);
}

#[tokio::test]
async fn tells_no_name_from_no_address_from_no_answer() {
    let server = name_server().await;
    let none = ask(server, "none.example").await;
    assert_eq!((none.v4, none.v6), (Found::NoSuchName, Found::NoSuchName));
    let empty = ask(server, "empty.example").await;
    assert_eq!((empty.v4, empty.v6), (Found::NoRecords, Found::NoRecords));
    let broken = failure(&ask(server, "broken.example").await.v4);
    assert!(
        broken.contains("broken.example") && broken.contains("Server Failure"),
        "{broken}"
    );
    let bad = failure(&ask(server, "bad name..example").await.v4);
    assert!(bad.contains("not a host name"), "{bad}");
}

#[tokio::test]
async fn a_dead_name_server_is_told_at_once() {
    let server = NOBODY;
    let start = std::time::Instant::now();
    let text = failure(&ask(server, "v4.example").await.v4);
    assert!(start.elapsed() < TRY_LIMIT, "took {:?}", start.elapsed());
    assert!(text.contains("v4.example"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_name_server_is_a_timeout() {
    let server = name_server().await;
    let text = failure(&ask(server, "silent.example").await.v4);
    assert!(text.contains("no DNS answer for silent.example"), "{text}");
}

#[tokio::test]
async fn a_second_name_server_stands_in_for_a_dead_one() {
    let options = UpstreamOptions::new(vec![NOBODY, name_server().await]);
    let found = upstream(options).query("v4.example".into()).await;
    assert_eq!(addresses(&found.v4).0, ["10.0.0.4"]);
}

struct Files {
    directory: tempfile::TempDir,
    upstream: Upstream,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = UpstreamOptions {
            search: Vec::new(),
            netns: ServerNetns::default(),
            servers: Vec::new(),
            resolv_conf: directory.path().join("resolv.conf"),
            resolved_conf: directory.path().join("resolved.conf"),
            hosts: directory.path().join("hosts"),
        };
        Self {
            upstream: upstream(options),
            directory,
        }
    }

    fn write(&self, file: &str, content: &str) {
        fs::write(self.directory.path().join(file), content).unwrap();
    }

    fn servers(&self) -> Vec<String> {
        let (config, _) = self.upstream.system().unwrap();
        let servers = config.name_servers().iter();
        servers.map(|server| server.ip.to_string()).collect()
    }
}

#[test]
fn asks_behind_the_stub_of_systemd_resolved() {
    let files = Files::new();
    files.write(
        "resolv.conf",
        "nameserver 127.0.0.53\nsearch corp.example\n",
    );
    assert_eq!(files.servers(), ["127.0.0.53"]);
    files.write(
        "resolved.conf",
        "nameserver 10.1.1.1\nnameserver 10.1.1.2\n",
    );
    assert_eq!(files.servers(), ["10.1.1.1", "10.1.1.2"]);
    let (config, _) = files.upstream.system().unwrap();
    assert_eq!(config.search()[0].to_ascii(), "corp.example");
    files.write("resolv.conf", "nameserver 10.2.2.2\n");
    assert_eq!(files.servers(), ["10.2.2.2"]);
}

#[tokio::test(start_paused = true)]
async fn says_what_is_wrong_and_sees_it_corrected() {
    let files = Files::new();
    let text = failure(&files.upstream.query("v4.example".into()).await.v4);
    assert!(
        text.contains("resolv.conf") && text.contains("--dns-upstream"),
        "{text}"
    );
    files.write("resolv.conf", "nameserver 127.0.0.1\n");
    assert!(files.upstream.hickory().is_err(), "not looked at yet");
    tokio::time::advance(CHECK_INTERVAL).await;
    assert!(files.upstream.hickory().is_ok());
}

#[tokio::test]
async fn search_domains_are_for_single_labels_only() {
    let server = name_server().await;
    let upstream = upstream(UpstreamOptions::new(vec![server]));
    let servers = vec![super::server(server)];
    let search = vec![Name::from_ascii("corp.example.").unwrap()];
    let config = ResolverConfig::from_parts(None, search, servers);
    let mut builder = Hickory::builder_with_config(config, upstream.provider.clone());
    builder.options_mut().cache_size = 0;
    let hickory = builder.build().unwrap();
    *upstream.built.lock().unwrap() = Some(Built {
        hickory: Ok(hickory),
        stamp: Stamp::default(),
        checked: Instant::now(),
    });
    let found = upstream.query("label".into()).await;
    assert_eq!(addresses(&found.v4).0, ["10.0.0.5"]);
    let found = upstream.query("label.corp".into()).await;
    assert_eq!(found.v4, Found::NoSuchName);
}
