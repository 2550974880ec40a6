#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::UdpSocket as StdUdpSocket;
use std::time::Duration;

use egress_common::{DNS6_PORTS, resolver_address};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use super::super::forward::framed;
use super::super::names::tests::{service, snapshot};
use super::super::registry::tests::Kernel;
use super::super::virtual_address::VirtualAddresses;
use super::*;
use crate::capture::sockets::{NetNs, Sockets};

const SLOT: u32 = 300;

/// One resolver, in slot 300 and in the sixth of IPv6.
struct Table(SocketAddr);

impl ResolverTable for Table {
    fn v4(&self, slot: u32) -> Option<Asked> {
        (slot == SLOT).then(|| self.asked())
    }
    fn v6(&self, slot: u32) -> Option<Asked> {
        (slot == 6).then(|| self.asked())
    }
}

impl Table {
    fn asked(&self) -> Asked {
        Asked {
            resolver: self.0,
            namespace: "default".into(),
        }
    }
}

struct Room {
    server: Arc<Server>,
    counters: Arc<Counters>,
    kernel: Kernel,
}

impl Room {
    async fn new(resolver: SocketAddr) -> Self {
        Self::with(resolver, |server| server).await
    }

    async fn with(resolver: SocketAddr, change: impl FnOnce(Server) -> Server) -> Self {
        let kernel = Kernel::default();
        let addresses = Arc::new(VirtualAddresses::in_memory());
        let registry = Arc::new(Registry::new(addresses, kernel.clone()));
        let policy = snapshot(vec![
            service("db.example", 5432),
            service("*.w.example", 443),
        ]);
        let assignment = registry.prepare(&policy);
        registry.install(policy, &assignment).await;
        let counters = Arc::new(Counters::default());
        let forwarder = Forwarder::new(Sockets::unmarked(), NetNs::current().unwrap())
            .with_limit(Duration::from_millis(300));
        let server = Server::new(
            registry,
            forwarder,
            Arc::new(Table(resolver)),
            Arc::clone(&counters),
            true,
        );
        Self {
            server: Arc::new(change(server)),
            counters,
            kernel,
        }
    }

    fn count(&self, name: &str) -> u64 {
        let all = self.counters.read();
        all.iter().find(|(key, _)| *key == name).unwrap().1
    }

    /// Runs the IPv4 loop and returns a client that "dialled" the resolver.
    async fn udp(&self) -> UdpSocket {
        let socket = StdUdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(serve_udp4(Arc::clone(&self.server), socket));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let resolver = Ipv4Addr::from(resolver_address(SLOT));
        client.connect((resolver, port)).await.unwrap();
        client
    }

    /// Hands the server a connection to the resolver.
    async fn tcp(&self, resolver: SocketAddr) -> (TcpStream, JoinHandle<Result<(), DnsError>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let serve = serve_tcp(Arc::clone(&self.server), stream, resolver, "default".into());
        (client, tokio::spawn(serve))
    }
}

fn query(name: &str) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

/// What the fake resolver says: `known…` names have 10.0.0.9, `silent…` ones
/// get no answer, others do not exist.
fn resolve(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let name = query.queries[0].name.clone();
    let mut reply = query.into_response();
    let text = name.to_ascii();
    if text.starts_with("silent") {
        return None;
    }
    if text.starts_with("known") {
        reply.add_answer(Record::from_rdata(name, 77, RData::A(A::new(10, 0, 0, 9))));
    } else {
        reply.metadata.response_code = ResponseCode::NXDomain;
    }
    Some(reply.to_vec().unwrap())
}

async fn udp_resolver() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(reply) = resolve(&buffer[..length]) {
                socket.send_to(&reply, from).await.unwrap();
            }
        }
    });
    address
}

async fn exchange(client: &UdpSocket, query: &Message) -> Message {
    client.send(&query.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 2000];
    let length = client.recv(&mut buffer).await.unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.id, query.id);
    reply
}

fn address(reply: &Message) -> Ipv4Addr {
    match &reply.answers[0].data {
        RData::A(A(ip)) => *ip,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn answers_ours_and_forwards_the_rest() {
    let room = Room::new(udp_resolver().await).await;
    let client = room.udp().await;
    let reply = exchange(&client, &query("db.example.")).await;
    assert_eq!(address(&reply).octets()[..2], [240, 240]);
    // The client's socket is connected: this came from the resolver's stand-in.
    let reply = exchange(&client, &query("known.other.example.")).await;
    assert_eq!(address(&reply), Ipv4Addr::new(10, 0, 0, 9));
    assert_eq!(reply.answers[0].ttl, 77);
    let reply = exchange(&client, &query("other.example.")).await;
    assert_eq!(reply.response_code, ResponseCode::NXDomain);
    assert!(!reply.authoritative);
    assert_eq!((room.count("answered"), room.count("forwarded")), (1, 2));
}

#[tokio::test]
async fn captures_a_name_under_a_wildcard_only_when_it_exists() {
    let room = Room::new(udp_resolver().await).await;
    let client = room.udp().await;
    let reply = exchange(&client, &query("api.w.example.")).await;
    assert_eq!(reply.response_code, ResponseCode::NXDomain);
    let first = exchange(&client, &query("known.w.example.")).await;
    assert_eq!(address(&first).octets()[..2], [240, 240]);
    let again = exchange(&client, &query("known.w.example.")).await;
    assert_eq!(address(&first), address(&again));
    assert_eq!(room.kernel.published(), ["known.w.example"]);
}

#[tokio::test]
async fn a_closed_port_is_told_and_silence_is_not() {
    // An address of its own: a port that was given back may be taken again.
    let room = Room::new("127.9.9.9:1".parse().unwrap()).await;
    let client = room.udp().await;
    let reply = exchange(&client, &query("other.example.")).await;
    assert_eq!(reply.response_code, ResponseCode::ServFail);
    assert_eq!(room.count("failed"), 1);

    let room = Room::new(udp_resolver().await).await;
    let client = room.udp().await;
    client
        .send(&query("silent.example.").to_vec().unwrap())
        .await
        .unwrap();
    let reply = exchange(&client, &query("db.example.")).await;
    assert_eq!(reply.response_code, ResponseCode::NoError);
    let mut buffer = [0; 100];
    let nothing = tokio::time::timeout(Duration::from_millis(600), client.recv(&mut buffer));
    assert!(nothing.await.is_err());
    assert_eq!(room.count("unanswered"), 1);
}

#[tokio::test]
async fn too_many_waiting_queries_fail_at_once() {
    let room = Room::with(udp_resolver().await, |server| server.with_limits(1, 1)).await;
    let client = room.udp().await;
    client
        .send(&query("silent.example.").to_vec().unwrap())
        .await
        .unwrap();
    let reply = exchange(&client, &query("known.example.")).await;
    assert_eq!(reply.response_code, ResponseCode::ServFail);
    // What needs no waiting is not concerned.
    let reply = exchange(&client, &query("db.example.")).await;
    assert_eq!(reply.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn drops_what_did_not_come_through_the_hook() {
    let room = Room::new(udp_resolver().await).await;
    let port = room.udp().await.peer_addr().unwrap().port();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let bytes = query("db.example.").to_vec().unwrap();
    // Loopback itself, the network address, a slot without a resolver, one
    // past the last slot.
    let beyond = Ipv4Addr::from(resolver_address(RESOLVER_SLOTS));
    let empty = Ipv4Addr::from(resolver_address(SLOT + 1));
    for to in [
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(127, 83, 0, 0),
        beyond,
        empty,
    ] {
        client.send_to(&bytes, (to, port)).await.unwrap();
    }
    // The loop takes datagrams in order, so this one is the fifth.
    client
        .connect((Ipv4Addr::from(resolver_address(SLOT)), port))
        .await
        .unwrap();
    exchange(&client, &query("db.example.")).await;
    assert_eq!((room.count("dropped"), room.count("answered")), (4, 1));
}

#[tokio::test]
async fn serves_ipv6_resolvers_by_port() {
    let room = Room::new(udp_resolver().await).await;
    let sockets: Vec<StdUdpSocket> = (0..DNS6_PORTS)
        .map(|_| {
            let socket = StdUdpSocket::bind("[::1]:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect();
    let addresses: Vec<SocketAddr> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
    tokio::spawn(serve_udp6(
        Arc::clone(&room.server),
        sockets.try_into().unwrap(),
    ));
    let client = UdpSocket::bind("[::1]:0").await.unwrap();
    client.connect(addresses[6]).await.unwrap();
    let reply = exchange(&client, &query("known.example.")).await;
    assert_eq!(address(&reply), Ipv4Addr::new(10, 0, 0, 9));
    let reply = exchange(&client, &query("db.example.")).await;
    assert_eq!(address(&reply).octets()[..2], [240, 240]);
}

async fn send(stream: &mut TcpStream, message: &Message) {
    let frame = framed(&message.to_vec().unwrap()).unwrap();
    stream.write_all(&frame).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Message {
    let mut buffer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

/// Answers over TCP, closing each connection after `limit` answers.
async fn tcp_resolver(limit: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                for _ in 0..limit {
                    let Ok(length) = stream.read_u16().await else {
                        return;
                    };
                    let mut buffer = vec![0; length.into()];
                    stream.read_exact(&mut buffer).await.unwrap();
                    if let Some(reply) = resolve(&buffer) {
                        stream.write_all(&framed(&reply).unwrap()).await.unwrap();
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn pipelines_over_tcp() {
    let resolver = tcp_resolver(usize::MAX).await;
    let room = Room::new(resolver).await;
    let (mut client, served) = room.tcp(resolver).await;
    let names = [
        "known.example.",
        "db.example.",
        "known.w.example.",
        "none.example.",
    ];
    let queries: Vec<Message> = names.iter().map(|name| query(name)).collect();
    for query in &queries {
        send(&mut client, query).await;
    }
    // Half-closed: what was asked is still answered.
    client.shutdown().await.unwrap();
    let mut answers = std::collections::HashMap::new();
    for _ in 0..4 {
        let reply = receive(&mut client).await;
        answers.insert(reply.id, reply);
    }
    let of = |n: usize| &answers[&queries[n].id];
    assert_eq!(address(of(0)), Ipv4Addr::new(10, 0, 0, 9));
    assert_eq!(address(of(1)).octets()[..2], [240, 240]);
    assert_eq!(address(of(2)).octets()[..2], [240, 240]);
    assert_eq!(of(3).response_code, ResponseCode::NXDomain);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn dials_the_resolver_again_when_it_closed_between_queries() {
    let resolver = tcp_resolver(1).await;
    let room = Room::new(resolver).await;
    let (mut client, _) = room.tcp(resolver).await;
    for _ in 0..50 {
        send(&mut client, &query("known.example.")).await;
        // Whether or not the resolver's close has arrived by the next round.
        assert_eq!(receive(&mut client).await.answers.len(), 1);
    }
}

#[tokio::test]
async fn a_resolver_that_closes_with_a_query_open_ends_the_connection() {
    let resolver = tcp_resolver(1).await;
    let room = Room::new(resolver).await;
    let (mut client, served) = room.tcp(resolver).await;
    send(&mut client, &query("silent.example.")).await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    let error = served.await.unwrap().unwrap_err();
    assert!(matches!(error, DnsError::Resolver { .. }), "{error}");
}

#[tokio::test]
async fn a_resolver_without_tcp_is_a_servfail() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let resolver = listener.local_addr().unwrap();
    drop(listener);
    let room = Room::new(resolver).await;
    let (mut client, _) = room.tcp(resolver).await;
    send(&mut client, &query("other.example.")).await;
    assert_eq!(
        receive(&mut client).await.response_code,
        ResponseCode::ServFail
    );
    send(&mut client, &query("db.example.")).await;
    assert_eq!(
        receive(&mut client).await.response_code,
        ResponseCode::NoError
    );
}

#[tokio::test]
async fn a_client_that_breaks_off_is_an_error_and_an_empty_message_is_none() {
    let resolver = udp_resolver().await;
    let room = Room::new(resolver).await;
    let (mut client, served) = room.tcp(resolver).await;
    client.write_all(&[0, 0, 0, 20, 1, 2]).await.unwrap();
    drop(client);
    let error = served.await.unwrap().unwrap_err();
    assert!(matches!(error, DnsError::Client(_)), "{error}");
    assert_eq!(room.count("dropped"), 1);
}

#[tokio::test(start_paused = true)]
async fn closes_idle_connections_and_slow_messages() {
    let resolver = udp_resolver().await;
    let room = Room::new(resolver).await;
    let start = tokio::time::Instant::now();
    let (mut client, served) = room.tcp(resolver).await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    served.await.unwrap().unwrap();
    assert_eq!(start.elapsed().as_secs(), tcp::IDLE_LIMIT.as_secs());

    let (mut client, served) = room.tcp(resolver).await;
    client.write_all(&[0, 20, 1]).await.unwrap();
    let error = served.await.unwrap().unwrap_err();
    assert!(matches!(error, DnsError::Client(_)), "{error}");
    assert!(start.elapsed() < tcp::IDLE_LIMIT * 2);
}

#[tokio::test]
async fn bounds_connections() {
    let resolver = udp_resolver().await;
    let room = Room::with(resolver, |server| server.with_limits(1, 1)).await;
    let (_first, _) = room.tcp(resolver).await;
    tokio::task::yield_now().await;
    let (_second, served) = room.tcp(resolver).await;
    let error = served.await.unwrap().unwrap_err();
    assert!(matches!(error, DnsError::Overflow { .. }), "{error}");
}
