#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::*;
use crate::accept::socket::reset;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let outer = TcpStream::connect(listener.local_addr().unwrap());
    let (outer, inner) = tokio::join!(outer, listener.accept());
    (outer.unwrap(), inner.unwrap().0)
}

struct Rig {
    client: TcpStream,
    server: TcpStream,
    near: TcpStream,
    far: TcpStream,
    buffers: Buffers,
    traffic: Traffic,
}

impl Rig {
    async fn new() -> Self {
        let (client, near) = pair().await;
        let (server, far) = pair().await;
        Self {
            client,
            server,
            near,
            far,
            buffers: Buffers::default(),
            traffic: Traffic::default(),
        }
    }
}

/// Relays between the middle sockets while `test` uses the outer ones. The
/// middle ones are dropped when the relay ends, as their owner does.
async fn relayed(
    rig: Rig,
    test: impl AsyncFnOnce(TcpStream, TcpStream),
) -> (End, Traffic, Buffers) {
    let Rig {
        client,
        server,
        mut near,
        mut far,
        buffers,
        traffic,
    } = rig;
    let relay = async {
        let end = bytes(&mut near, &mut far, Limits::default(), &buffers, &traffic).await;
        drop((near, far));
        end
    };
    let (end, ()) = tokio::join!(relay, test(client, server));
    (end, traffic, buffers)
}

#[tokio::test]
async fn a_half_close_passes_and_the_answer_still_comes() {
    let (end, traffic, _) = relayed(Rig::new().await, async |mut client, mut server| {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"a long answer").await.unwrap();
        drop(server);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "a long answer");
    })
    .await;
    assert!(matches!(end, End::Closed), "{end}");
    assert_eq!((traffic.received.get(), traffic.sent.get()), (8, 13));
}

#[tokio::test]
async fn the_service_may_half_close_first() {
    let (end, ..) = relayed(Rig::new().await, async |mut client, mut server| {
        server.write_all(b"banner").await.unwrap();
        server.shutdown().await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "banner");
        client.write_all(b"still here").await.unwrap();
        drop(client);
        text.clear();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "still here");
    })
    .await;
    assert!(matches!(end, End::Closed), "{end}");
}

#[tokio::test]
async fn a_reset_of_the_service_is_a_reset_to_the_application() {
    let (end, ..) = relayed(Rig::new().await, async |mut client, server| {
        reset(server);
        let error = client.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    })
    .await;
    assert!(matches!(end, End::Upstream(_)), "{end}");
    assert_eq!(end.flag().map(super::super::flag::Flag::code), Some("UC"));
}

#[tokio::test]
async fn a_reset_of_the_application_is_a_reset_to_the_service() {
    let (end, ..) = relayed(Rig::new().await, async |client, mut server| {
        reset(client);
        let error = server.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    })
    .await;
    assert!(matches!(end, End::Client(_)), "{end}");
    assert_eq!(end.flag().map(super::super::flag::Flag::code), Some("DC"));
}

#[tokio::test]
async fn a_service_that_stops_reading_resets_the_writer() {
    let (end, ..) = relayed(Rig::new().await, async |mut client, server| {
        // Closed for good: what the application sends next is refused.
        drop(server);
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        let error = loop {
            if let Err(error) = client.write_all(&[0; 1024]).await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert!(
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ),
            "{error}"
        );
    })
    .await;
    assert!(matches!(end, End::Upstream(_)), "{end}");
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte_and_slows_the_writer() {
    const TOTAL: usize = 24 * 1024 * 1024;
    let sent = Rc::new(Cell::new(0));
    let (end, traffic, buffers) = relayed(Rig::new().await, async |mut client, mut server| {
        let counter = sent.clone();
        let write = async move {
            let mut next = 0_u8;
            while counter.get() < TOTAL {
                let chunk: Vec<u8> = (0..65_536)
                    .map(|_| {
                        next = next.wrapping_mul(31).wrapping_add(7);
                        next
                    })
                    .collect();
                server.write_all(&chunk).await.unwrap();
                counter.set(counter.get() + chunk.len());
            }
        };
        let read = async {
            // As long as nobody reads, the writer stops once sockets and one
            // buffer are full.
            let mut last = usize::MAX;
            while sent.get() != last {
                last = sent.get();
                sleep(Duration::from_millis(100)).await;
            }
            assert!(last < TOTAL, "nothing held the writer back");
            let mut expected = 0_u8;
            let mut buffer = vec![0; 100_000];
            let mut total = 0;
            loop {
                let count = client.read(&mut buffer).await.unwrap();
                if count == 0 {
                    break;
                }
                for byte in &buffer[..count] {
                    expected = expected.wrapping_mul(31).wrapping_add(7);
                    assert_eq!(*byte, expected);
                }
                total += count;
            }
            assert_eq!(total, TOTAL);
        };
        tokio::join!(write, read);
    })
    .await;
    assert!(matches!(end, End::Closed), "{end}");
    assert_eq!(traffic.sent.get(), TOTAL as u64);
    assert!(buffers.spare_count() <= 4, "{}", buffers.spare_count());
}

#[tokio::test(start_paused = true)]
async fn idle_means_no_byte_either_way() {
    let (mut client, mut near) = duplex(64);
    let (_server, mut far) = duplex(64);
    let buffers = Buffers::default();
    let traffic = Traffic::default();
    let limits = Limits {
        idle: Some(Duration::from_mins(1)),
        deadline: None,
    };
    let start = Instant::now();
    let talk = async {
        for _ in 0..5 {
            sleep(Duration::from_secs(50)).await;
            client.write_all(b"x").await.unwrap();
        }
    };
    let relay = bytes(&mut near, &mut far, limits, &buffers, &traffic);
    let (end, ()) = tokio::join!(relay, talk);
    assert!(matches!(end, End::Idle(_)), "{end}");
    assert_eq!(start.elapsed(), Duration::from_secs(5 * 50 + 60));
    assert_eq!(end.flag().map(super::super::flag::Flag::code), Some("SI"));
    // An idle connection holds no buffer.
    assert_eq!(buffers.spare_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_longest_duration_ends_a_busy_connection() {
    let (mut client, mut near) = duplex(64);
    let (mut server, mut far) = duplex(64);
    let buffers = Buffers::default();
    let traffic = Traffic::default();
    let start = Instant::now();
    let limits = Limits {
        idle: Some(Duration::from_hours(1)),
        deadline: Some(start + Duration::from_secs(90)),
    };
    let talk = async {
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
    };
    let relay = bytes(&mut near, &mut far, limits, &buffers, &traffic);
    let (end, ()) = tokio::join!(relay, talk);
    assert!(matches!(end, End::TooLong), "{end}");
    assert_eq!(start.elapsed(), Duration::from_secs(90));
}

#[tokio::test]
async fn a_dropped_relay_gives_its_buffers_back() {
    let (mut client, mut near) = duplex(1 << 20);
    let (_server, mut far) = duplex(8);
    let buffers = Buffers::default();
    let traffic = Traffic::default();
    client.write_all(&[7; 4096]).await.unwrap();
    let relay = bytes(&mut near, &mut far, Limits::default(), &buffers, &traffic);
    let short = tokio::time::timeout(Duration::from_millis(10), relay);
    assert!(short.await.is_err());
    assert_eq!(buffers.spare_count(), 2);
    assert_eq!(traffic.received.get(), 8);
}

/// A client that is reset while its service takes nothing from it.
#[tokio::test(start_paused = true)]
async fn a_reset_behind_full_buffers_is_found() {
    let (end, ..) = relayed(Rig::new().await, async |client, server| {
        // Until nothing moves any more.
        let mut stuck = 0;
        while stuck < 3 {
            match client.try_write(&[0; 65_536]) {
                Ok(_) => stuck = 0,
                Err(_) => stuck += 1,
            }
            sleep(Duration::from_millis(20)).await;
        }
        reset(client);
        sleep(Duration::from_secs(6)).await;
        drop(server);
    })
    .await;
    assert!(matches!(end, End::Client(_)), "{end}");
}

/// A client that half-closed, then vanished, while its service says nothing.
#[tokio::test(start_paused = true)]
async fn a_reset_after_a_half_close_is_found() {
    let (end, ..) = relayed(Rig::new().await, async |mut client, server| {
        client.shutdown().await.unwrap();
        let mut server = server;
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        reset(client);
        sleep(Duration::from_secs(6)).await;
        drop(server);
    })
    .await;
    assert!(matches!(end, End::Client(_)), "{end}");
}

/// A stream whose end is unsigned: TCP ends without `close_notify`, which
/// rustls reports in this way.
struct Unsigned(TcpStream);

impl AsyncRead for Unsigned {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(context, buffer))?;
        if buffer.filled().len() == before {
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Unsigned {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Transport for Unsigned {
    fn abort(&self) {
        self.0.abort();
    }
}

async fn relayed_unsigned(test: impl AsyncFnOnce(TcpStream, TcpStream)) -> End {
    let (client, mut near) = pair().await;
    let (server, far) = pair().await;
    let relay = async move {
        let mut far = Unsigned(far);
        let traffic = Traffic::default();
        let limits = Limits::default();
        bytes(&mut near, &mut far, limits, &Buffers::default(), &traffic).await
    };
    let (end, ()) = tokio::join!(relay, test(client, server));
    end
}

#[tokio::test]
async fn an_unsigned_end_is_a_reset_to_an_application_that_listens() {
    let end = relayed_unsigned(async |mut client, mut server| {
        server.write_all(b"half an ans").await.unwrap();
        drop(server);
        let mut got = Vec::new();
        let error = client.read_to_end(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(got, b"half an ans");
    })
    .await;
    assert!(matches!(end, End::Truncated), "{end}");
    assert_eq!(end.flag().map(super::super::flag::Flag::code), Some("UC"));
}

#[tokio::test]
async fn an_unsigned_end_in_the_middle_of_an_answer_after_a_half_close_is_one_too() {
    let end = relayed_unsigned(async |mut client, mut server| {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        server.write_all(b"half an ans").await.unwrap();
        drop(server);
        let mut got = Vec::new();
        let error = client.read_to_end(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    })
    .await;
    assert!(matches!(end, End::Truncated), "{end}");
}

#[tokio::test]
async fn an_unsigned_end_after_an_application_that_has_finished_is_no_failure() {
    let end = relayed_unsigned(async |mut client, mut server| {
        server.write_all(b"an answer").await.unwrap();
        let mut got = [0; 9];
        client.read_exact(&mut got).await.unwrap();
        drop(client);
        assert_eq!(server.read(&mut got).await.unwrap(), 0);
        drop(server);
    })
    .await;
    assert!(matches!(end, End::Unsigned), "{end}");
    assert_eq!(end.flag(), None);
}

#[tokio::test]
async fn an_unsigned_end_instead_of_an_answer_is_a_reset_to_a_half_closed_application() {
    let end = relayed_unsigned(async |mut client, mut server| {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        drop(server);
        let error = client.read_to_string(&mut text).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    })
    .await;
    assert!(matches!(end, End::Unsigned), "{end}");
}

/// What was read into a buffer before the change to splice must be written
/// before what came through the pipe: each number tells its own place.
#[tokio::test]
async fn bulk_keeps_its_order_when_it_changes_to_splice() {
    const NUMBERS: u64 = 1 << 20;
    let (end, traffic, _) = relayed(Rig::new().await, async |mut client, mut server| {
        let write = async move {
            for first in (0..NUMBERS).step_by(32_768) {
                let chunk: Vec<u8> = (first..first + 32_768).flat_map(u64::to_be_bytes).collect();
                server.write_all(&chunk).await.unwrap();
            }
        };
        let read = async move {
            let mut number = [0; 8];
            let mut client = tokio::io::BufReader::with_capacity(256 * 1024, &mut client);
            for expected in 0..NUMBERS {
                client.read_exact(&mut number).await.unwrap();
                assert_eq!(u64::from_be_bytes(number), expected);
            }
            assert_eq!(client.read(&mut number).await.unwrap(), 0);
        };
        tokio::join!(write, read);
    })
    .await;
    assert!(matches!(end, End::Closed), "{end}");
    assert_eq!(traffic.sent.get(), NUMBERS * 8);
}

/// Gives pieces one by one, as TLS gives records, and then breaks.
struct Pieces(Vec<usize>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(size) = self.0.pop() else {
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        };
        buffer.put_slice(&vec![7; size]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Transport for Pieces {
    fn abort(&self) {}

    fn has_more(&self) -> bool {
        // Reading on after the last one shows the error.
        true
    }
}

/// Counts writes.
struct Writes(Rc<Cell<usize>>, Rc<Cell<usize>>);

impl AsyncRead for Writes {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Writes {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.set(self.0.get() + 1);
        self.1.set(self.1.get() + bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Transport for Writes {
    fn abort(&self) {}
}

#[tokio::test]
async fn records_at_hand_are_written_together_and_an_error_comes_after_them() {
    const RECORD: usize = 16 * 1024;
    let (writes, written) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let mut near = Writes(writes.clone(), written.clone());
    let mut far = Pieces(vec![RECORD; 35]);
    let traffic = Traffic::default();
    let buffers = Buffers::default();
    let end = bytes(&mut near, &mut far, Limits::default(), &buffers, &traffic).await;
    assert!(matches!(end, End::Truncated), "{end}");
    assert_eq!(written.get(), 35 * RECORD);
    assert_eq!(traffic.sent.get(), 35 * RECORD as u64);
    // The first, which nobody knew to be one of many; four of eight; the rest.
    assert_eq!(writes.get(), 6);
}
