#![allow(clippy::unwrap_used, reason = "tests")]

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
        assert_eq!(buffer[..length], query);
        let good = [response(&query), vec![7; 3000]].concat();
        let mut other_id = good.clone();
        other_id[0] ^= 1;
        let mut other_name = good.clone();
        other_name[14] ^= 2;
        let mut other_type = good.clone();
        other_type[length - 3] = 28;
        for forged in [&b"short"[..], &query, &other_id, &other_name, &other_type] {
            server.send_to(forged, from).await.unwrap();
        }
        // From another address: the kernel drops it.
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        assert!(stranger.send_to(&response(&query), from).await.is_ok());
        server.send_to(&good, from).await.unwrap();
        good
    };
    let (answer, good) = tokio::join!(async { forwarder().udp(&query, resolver).await }, serve);
    assert_eq!(answer.unwrap(), good);
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
    assert!(!answers(&query, &error));
    error[3] |= 1;
    assert!(answers(&query, &error));
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
        answers(&query, &answer);
        answers(&query, &response(&[&[0; 12], &query[..]].concat()));
    }
}
