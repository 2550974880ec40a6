#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;
use tokio::net::TcpListener;

use super::*;

fn query() -> Vec<u8> {
    let mut message = Message::query();
    let name = Name::from_ascii("other.eXample.").unwrap();
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().unwrap()
}

fn forwarder() -> Forwarder {
    Forwarder::new(Sockets::unmarked(), NetNs::current().unwrap())
}

fn response(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer
}

#[tokio::test]
async fn passes_bytes_both_ways_and_ignores_forgeries() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = server.local_addr().unwrap();
    let query = query();
    let serve = async {
        let mut buffer = [0; 1500];
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        // All but the id.
        assert_eq!(buffer[2..length], query[2..]);
        let sent = buffer[..length].to_vec();
        let good = [response(&sent), vec![7; 3000]].concat();
        let mut other_id = good.clone();
        other_id[0] ^= 1;
        let mut other_name = good.clone();
        other_name[14] ^= 2;
        let mut other_type = good.clone();
        other_type[length - 3] = 28;
        for forged in [&b"short"[..], &sent, &other_id, &other_name, &other_type] {
            server.send_to(forged, from).await.unwrap();
        }
        // From another address: the kernel drops it.
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        assert!(stranger.send_to(&response(&sent), from).await.is_ok());
        server.send_to(&good, from).await.unwrap();
        good
    };
    let (answer, good) = tokio::join!(async { forwarder().udp(&query, resolver).await }, serve);
    let answer = answer.unwrap();
    assert_eq!(answer[..2], query[..2], "the client's own id");
    assert_eq!(answer[2..], good[2..]);
}

/// Port and id of a query.
type Seen = (u16, [u8; 2]);

/// A resolver that answers every query, and tells of each the port it came
/// from and its id.
struct Resolver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Resolver {
    async fn start(twice: bool) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let told = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                told.lock()
                    .unwrap()
                    .push((from.port(), [buffer[0], buffer[1]]));
                let answer = response(&buffer[..length]);
                for _ in 0..=u8::from(twice) {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        Self { address, seen }
    }

    fn ports(&self) -> Vec<u16> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(port, _)| *port).collect()
    }
}

#[tokio::test]
async fn a_socket_carries_so_many_queries_and_no_more() {
    let resolver = Resolver::start(false).await;
    let forwarder = forwarder();
    for _ in 0..sockets::USES * 2 {
        forwarder.udp(&query(), resolver.address).await.unwrap();
    }
    let ports = resolver.ports();
    let (first, second) = ports.split_at(sockets::USES);
    assert!(first.iter().all(|port| *port == first[0]), "{ports:?}");
    assert!(second.iter().all(|port| *port == second[0]), "{ports:?}");
    assert_ne!(first[0], second[0]);
    assert_eq!(forwarder.idle.len(), 0);
}

#[tokio::test]
async fn ids_are_random_whatever_the_client_chose() {
    let resolver = Resolver::start(false).await;
    let forwarder = forwarder();
    let query = query();
    for _ in 0..64 {
        let answer = forwarder.udp(&query, resolver.address).await.unwrap();
        assert_eq!(answer[..2], query[..2]);
    }
    let seen = resolver.seen.lock().unwrap();
    let ids: std::collections::HashSet<_> = seen.iter().map(|(_, id)| *id).collect();
    assert!(ids.len() > 55, "{ids:?}");
}

#[tokio::test]
async fn a_late_answer_is_none_to_the_next_query() {
    // The second of each pair of answers waits on the socket when the next
    // query, with the same id of its client, takes it.
    let resolver = Resolver::start(true).await;
    let forwarder = forwarder();
    let mut message = query();
    for number in 0..sockets::USES {
        message[14] = b'a' + u8::try_from(number).unwrap();
        let answer = forwarder.udp(&message, resolver.address).await.unwrap();
        assert_eq!(answer, response(&message));
    }
    let ports = resolver.ports();
    assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
}

#[tokio::test]
async fn queries_that_wait_share_no_socket_and_few_are_kept() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = server.local_addr().unwrap();
    let forwarder = forwarder();
    let count = sockets::IDLE * 2;
    let serve = async {
        let mut asked = Vec::new();
        let mut buffer = [0; 1500];
        while asked.len() < count {
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            asked.push((buffer[..length].to_vec(), from));
        }
        for (query, from) in &asked {
            server.send_to(&response(query), *from).await.unwrap();
        }
        asked
            .iter()
            .map(|(_, from)| from.port())
            .collect::<std::collections::HashSet<_>>()
    };
    let query = query();
    let all = (0..count).map(|_| forwarder.udp(&query, resolver));
    let (answers, ports) = tokio::join!(futures_util::future::join_all(all), serve);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(ports.len(), count);
    assert_eq!(forwarder.idle.len(), sockets::IDLE);
}

#[tokio::test]
async fn idle_sockets_are_closed_in_time_and_with_their_forwarder() {
    let resolver = Resolver::start(false).await;
    let forwarder = forwarder();
    forwarder.udp(&query(), resolver.address).await.unwrap();
    let port = resolver.ports()[0];
    assert_eq!(forwarder.idle.len(), 1);
    tokio::time::pause();
    tokio::time::sleep(sockets::LIFETIME + Duration::from_millis(10)).await;
    assert_eq!(forwarder.idle.len(), 0);
    tokio::time::resume();
    // Its port is free again.
    UdpSocket::bind(("0.0.0.0", port)).await.unwrap();
    // And one that is kept goes with the forwarder.
    forwarder.udp(&query(), resolver.address).await.unwrap();
    let port = resolver.ports()[1];
    assert!(UdpSocket::bind(("0.0.0.0", port)).await.is_err());
    drop(forwarder);
    UdpSocket::bind(("0.0.0.0", port)).await.unwrap();
}

#[tokio::test]
async fn a_resolver_that_went_away_and_came_back_is_found_on_a_new_socket() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = server.local_addr().unwrap();
    let forwarder = forwarder();
    let mut buffer = [0; 1500];
    let query = query();
    let mut ports = Vec::new();
    let serve = async |buffer: &mut [u8], ports: &mut Vec<u16>| {
        let (length, from) = server.recv_from(buffer).await.unwrap();
        ports.push(from.port());
        server
            .send_to(&response(&buffer[..length]), from)
            .await
            .unwrap();
    };
    let (answer, ()) = tokio::join!(
        forwarder.udp(&query, resolver),
        serve(&mut buffer, &mut ports)
    );
    answer.unwrap();
    // What an ICMP error leaves on the socket that is kept: its next call
    // fails, whoever answers by then.
    let kept = forwarder.idle.take(resolver).unwrap();
    rustix::net::shutdown(&kept.socket, rustix::net::Shutdown::Write).unwrap();
    forwarder.idle.keep(kept);
    let (answer, ()) = tokio::join!(
        forwarder.udp(&query, resolver),
        serve(&mut buffer, &mut ports)
    );
    answer.unwrap();
    assert_ne!(ports[0], ports[1]);
}

#[tokio::test]
async fn says_at_once_that_a_port_is_closed() {
    // An address of its own: a port that was given back may be taken again.
    let resolver = "127.9.9.9:1".parse::<SocketAddr>().unwrap();
    let error = forwarder().udp(&query(), resolver).await.unwrap_err();
    assert!(matches!(error, DnsError::Resolver { .. }), "{error}");
    assert!(error.to_string().contains(&resolver.to_string()));
    let error = forwarder().tcp(&query(), resolver).await.unwrap_err();
    assert!(matches!(error, DnsError::Resolver { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn gives_up_on_a_silent_resolver() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = socket.local_addr().unwrap();
    let start = tokio::time::Instant::now();
    let error = forwarder().udp(&query(), resolver).await.unwrap_err();
    assert!(matches!(error, DnsError::ResolverTimeout { .. }), "{error}");
    assert_eq!(start.elapsed().as_secs(), FORWARD_LIMIT.as_secs());
}

#[tokio::test]
async fn exchanges_over_tcp() {
    let server = TcpListener::bind("[::1]:0").await.unwrap();
    let resolver = server.local_addr().unwrap();
    let query = query();
    let serve = async {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut buffer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(buffer, query);
        let frame = framed(&response(&query)).unwrap();
        // In pieces, as streams do.
        for byte in frame {
            stream.write_all(&[byte]).await.unwrap();
        }
    };
    let (answer, ()) = tokio::join!(async { forwarder().tcp(&query, resolver).await }, serve);
    assert_eq!(answer.unwrap(), response(&query));
}

#[test]
fn takes_errors_without_a_question() {
    let query = query();
    let mut error = response(&query)[..HEADER].to_vec();
    error[4..6].fill(0);
    let id = [query[0], query[1]];
    assert!(!answers(id, &query, &error));
    error[3] |= 1;
    assert!(answers(id, &query, &error));
    assert!(!answers([!id[0], id[1]], &query, &error));
}

#[test]
fn frames_no_message_that_is_too_long() {
    assert!(framed(&vec![0; 65_535]).is_ok());
    assert!(framed(&vec![0; 65_536]).is_err());
}

proptest! {
    #[test]
    fn comparing_never_panics(
        query in proptest::collection::vec(any::<u8>(), 0..80),
        answer in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        answers([0; 2], &query, &answer);
        answers([0; 2], &query, &response(&[&[0; 12], &query[..]].concat()));
    }
}
