//! Over real sockets: TLS and ALPN towards the service, large bodies.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Response;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::rig::{HOST, Kept};
use crate::capture::sockets::{NetNs, Sockets};
use crate::connect::Stream;
use crate::connect::pool::{Dialler, Pool};
use crate::endpoint::{Options, Registry};
use crate::policy::model::{
    ClientTls, Identity, Protocol, TlsExtra, TrafficPolicy, Trust, UpstreamHttp,
};
use crate::policy::snapshot::{Client, Snapshot};
use crate::relay::Buffers;
use crate::relay::http::{Caller, RequestBody, Settings, Worker, serve};
use crate::route::testing;
use crate::secret::{SecretSettings, Secrets};

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap()
        .block_on(async {
            tokio::time::timeout(std::time::Duration::from_mins(1), test)
                .await
                .expect("the test ends in time");
        });
}

/// The relay on a loopback port.
struct Relay {
    address: SocketAddr,
    log: Kept,
    _drain: watch::Sender<bool>,
}

async fn relay(policy: TrafficPolicy, protocol: Protocol, service: SocketAddr) -> Relay {
    let cluster = testing::cluster(0, HOST, protocol, policy, &[service]);
    let made = testing::service(testing::view(Arc::clone(&cluster), None));
    let mut snapshot = Snapshot {
        generation: 1,
        services: vec![Arc::clone(&made)],
        clusters: vec![cluster],
        ..Snapshot::default()
    };
    snapshot.by_id.insert(made.id, Arc::clone(&made));
    let live = Registry::new(Options::default()).apply(Arc::new(snapshot));
    let dialler = Dialler {
        sockets: Sockets::unmarked(),
        secrets: Secrets::new(SecretSettings::default()),
    };
    let pool: Rc<Pool<RequestBody, Stream>> = Pool::new(dialler);
    let (drain, draining) = watch::channel(false);
    let live = Arc::new(ArcSwap::new(live));
    let settings = Settings::default();
    let worker = Worker::new(
        pool,
        live,
        settings,
        Buffers::default(),
        draining,
        Secrets::new(SecretSettings::default()),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let log = Kept::default();
    let kept = log.clone();
    spawn_local(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let caller = Caller {
                peer,
                original: address,
                name_decides: false,
                netns: NetNs::current().unwrap(),
                host: HOST.into(),
                client: Client {
                    namespace: "shop".into(),
                    labels: Arc::default(),
                },
            };
            let (worker, made, log) = (Rc::clone(&worker), Arc::clone(&made), kept.clone());
            spawn_local(serve(worker, caller, made, stream, log));
        }
    });
    Relay {
        address,
        log,
        _drain: drain,
    }
}

/// A TLS server for [`HOST`] that offers `alpn`; gives its address and a file
/// with the certificate to trust.
async fn tls_server<F>(
    alpn: &[&str],
    serve: impl Fn(TlsStream<TcpStream>) -> F + 'static,
) -> (SocketAddr, tempfile::NamedTempFile)
where
    F: Future<Output = ()> + 'static,
{
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), made.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Rc::new(serve);
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, serve) = (acceptor.clone(), Rc::clone(&serve));
            spawn_local(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream).await;
                }
            });
        }
    });
    (address, file)
}

fn originate(ca: &std::path::Path) -> TrafficPolicy {
    TrafficPolicy {
        tls: Some(ClientTls {
            identity: Identity::None,
            trust: Trust::File {
                ca: ca.to_owned(),
                crl: None,
            },
            sni: None,
            subject_alt_names: Vec::new(),
            insecure_skip_verify: false,
            secret_namespaces: Vec::new(),
            extra: TlsExtra::default(),
        }),
        ..testing::traffic_policy()
    }
}

/// Sends bytes and reads everything until the relay closes.
async fn raw(relay: &Relay, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn last(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").into_bytes()
}

async fn http1_server(mut stream: TlsStream<TcpStream>, names: Rc<RefCell<Vec<String>>>) {
    let name = stream.get_ref().1.server_name().unwrap_or("-").to_owned();
    names.borrow_mut().push(name);
    let mut head = Vec::new();
    while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none";
            stream.write_all(answer).await.unwrap();
        }
    }
}

async fn http2_server(stream: TlsStream<TcpStream>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().scheme_str(), Some("https"));
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(Bytes::from_static(b"two"), true).unwrap();
    }
}

#[test]
fn cleartext_leaves_as_tls_and_the_server_is_verified() {
    run(async {
        let names = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&names);
        let serve = move |stream| http1_server(stream, Rc::clone(&seen));
        let (service, ca) = tls_server(&[], serve).await;
        let relay_ = relay(originate(ca.path()), Protocol::Http, service).await;
        for _ in 0..2 {
            let answer = raw(&relay_, &last("/")).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.ends_with("one"), "{answer}");
        }
        assert_eq!(*names.borrow(), [HOST], "one connection, with the name");

        // Trust in another certificate: refused, with the reason, and nothing
        // is sent in the clear.
        let (_, other) = tls_server(&[], |_| async {}).await;
        let distrust = relay(originate(other.path()), Protocol::Http, service).await;
        let answer = raw(&distrust, &last("/")).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("certificate"), "{answer}");
        assert_eq!(distrust.log.0.borrow()[0].flags, ["UF", "URX"]);

        // The port says HTTPS: TLS with the system's roots, which do not know
        // this server.
        let mut policy = testing::traffic_policy();
        policy.retry_budget = None;
        let plain = relay(policy, Protocol::Http, service).await;
        let answer = raw(&plain, &last("/")).await;
        assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
    });
}

#[test]
fn http2_is_chosen_by_alpn_and_http1_is_the_way_back() {
    run(async {
        let upgrade = |ca: &std::path::Path| {
            let mut policy = originate(ca);
            policy.connection_pool.http_version = UpstreamHttp::Upgrade;
            policy
        };
        let (service, ca) = tls_server(&["h2", "http/1.1"], http2_server).await;
        let two = relay(upgrade(ca.path()), Protocol::Http, service).await;
        assert!(raw(&two, &last("/")).await.contains("two"));

        let names = Rc::new(RefCell::new(Vec::new()));
        let serve = move |stream| http1_server(stream, Rc::clone(&names));
        let (service, ca) = tls_server(&["http/1.1"], serve).await;
        let one = relay(upgrade(ca.path()), Protocol::Http, service).await;
        for _ in 0..3 {
            assert!(raw(&one, &last("/")).await.ends_with("one"));
        }
    });
}

#[test]
fn large_bodies_stream_both_ways() {
    const SIZE: usize = 64 * 1024 * 1024;
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = listener.local_addr().unwrap();
        spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                spawn_local(async move {
                    let mut buffer = vec![0; 256 * 1024];
                    let mut taken = Vec::new();
                    while memchr::memmem::find(&taken, b"\r\n\r\n").is_none() {
                        stream.read_buf(&mut taken).await.unwrap();
                    }
                    let head = memchr::memmem::find(&taken, b"\r\n\r\n").unwrap() + 4;
                    if taken.starts_with(b"PUT") {
                        let mut count = taken.len() - head;
                        while count < SIZE {
                            count += stream.read(&mut buffer).await.unwrap();
                        }
                        let body = count.to_string();
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    } else {
                        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                        stream.write_all(head).await.unwrap();
                        for _ in 0..SIZE / buffer.len() {
                            let line = format!("{:x}\r\n", buffer.len());
                            stream.write_all(line.as_bytes()).await.unwrap();
                            stream.write_all(&buffer).await.unwrap();
                            stream.write_all(b"\r\n").await.unwrap();
                        }
                        stream.write_all(b"0\r\n\r\n").await.unwrap();
                    }
                });
            }
        });
        let relay_ = relay(testing::traffic_policy(), Protocol::Http, service).await;
        let mut put = format!(
            "PUT / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n"
        )
        .into_bytes();
        put.resize(put.len() + SIZE, 0);
        let answer = raw(&relay_, &put).await;
        assert!(answer.ends_with(&SIZE.to_string()), "{answer}");
        drop(put);
        let mut stream = TcpStream::connect(relay_.address).await.unwrap();
        stream.write_all(&last("/down")).await.unwrap();
        let mut buffer = vec![0; 256 * 1024];
        let mut count = 0;
        loop {
            let read = stream.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            count += read;
        }
        assert!(count > SIZE, "{count}");
        let records = relay_.log.0.borrow().clone();
        assert_eq!(records[0].received, SIZE as u64);
        assert_eq!(records[1].sent, SIZE as u64);
    });
}
