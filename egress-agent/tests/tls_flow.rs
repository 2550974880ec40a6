//! TLS origination end to end over loopback: what the application says in the
//! clear, what the service sees, and what the record says when it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

mod support;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use egress_agent::endpoint::resolved::{Destination, ResolvedEndpoint};
use egress_agent::flow::{Context, serve};
use egress_agent::policy::model::{Labels, Locality, Protocol};
use rustls::ProtocolVersion;
use serde_json::Value;
use support::{
    Agent, Authority, accept_tls, black_hole, policy, run, server_config, simple, snapshot,
};
use tempfile::tempdir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HOST: &str = "api.example.com";

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Reads until the connection is reset; anything else fails the test.
async fn expect_reset(client: &mut TcpStream) {
    let mut bytes = Vec::new();
    let error = client.read_to_end(&mut bytes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(bytes.is_empty(), "{bytes:?}");
}

fn text<'a>(record: &'a Value, name: &str) -> &'a str {
    record[name].as_str().unwrap_or_default()
}

#[test]
fn http_in_verified_tls_out() {
    run(async {
        let authority = Authority::new("test root");
        let directory = tempdir().unwrap();
        let tls = simple(&authority.write(directory.path()));
        let (listener, address) = listener().await;
        let agent = Agent::start(
            directory,
            snapshot(HOST, Protocol::Http, policy(Some(tls)), &[address]),
        );
        let config = server_config(&authority.issue(HOST), None);
        let server = async {
            let mut stream = accept_tls(&listener, &config).await.unwrap();
            let session = stream.get_ref().1;
            assert_eq!(session.server_name(), Some(HOST));
            assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            assert!(request.starts_with(b"GET /x HTTP/1.1\r\n"));
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .unwrap();
            stream
        };
        let client = async {
            let mut client = agent.dial().await;
            client
                .write_all(b"GET /x HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut response = String::new();
            client.read_to_string(&mut response).await.unwrap();
            assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
            assert!(response.ends_with("\r\n\r\nok"), "{response}");
        };
        let (_stream, ()) = tokio::join!(server, client);
        let record = agent.record().await;
        assert_eq!(text(&record, "response_flags"), "-", "{record}");
        assert_eq!(record["response_code"], 200);
        assert_eq!(text(&record, "path"), "/x");
        assert_eq!(text(&record, "connection_security_policy"), "tls");
        assert_eq!(record["pid"], 13);
    });
}

#[test]
fn plaintext_in_verified_tls_out() {
    run(async {
        let authority = Authority::new("test root");
        let directory = tempdir().unwrap();
        let tls = simple(&authority.write(directory.path()));
        let (listener, address) = listener().await;
        let agent = Agent::start(
            directory,
            snapshot(HOST, Protocol::Tcp, policy(Some(tls)), &[address]),
        );
        let config = server_config(&authority.issue(HOST), None);
        let server = async {
            let mut stream = accept_tls(&listener, &config).await.unwrap();
            let session = stream.get_ref().1;
            assert_eq!(session.server_name(), Some(HOST));
            assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
            let mut request = Vec::new();
            // The application's half-close arrives as the end of TLS.
            stream.read_to_end(&mut request).await.unwrap();
            assert_eq!(request, b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let client = async {
            let mut client = agent.dial().await;
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
                .await
                .unwrap();
            client.shutdown().await.unwrap();
            let mut response = String::new();
            client.read_to_string(&mut response).await.unwrap();
            assert_eq!(response, "HTTP/1.1 200 OK\r\n\r\n");
        };
        tokio::join!(server, client);
        let record = agent.record().await;
        assert_eq!(text(&record, "response_flags"), "-", "{record}");
        assert_eq!(text(&record, "service"), "api.example.com:80");
        assert_eq!(text(&record, "endpoint"), address.to_string());
        assert_eq!(text(&record, "sni"), HOST);
        assert_eq!(text(&record, "tls_version"), "TLSv1.3");
        assert_eq!(text(&record, "comm"), "curl");
        assert_eq!(record["pid"], 13);
        assert_eq!(record["bytes_received"], 41);
        assert_eq!(record["bytes_sent"], 19);
    });
}

/// How an application learns that its service is not to be had: opaque bytes
/// by a reset, HTTP by a 503. Returns the record.
async fn refused(
    agent: &Agent,
    protocol: Protocol,
    mut serve: impl AsyncFnMut() -> io::Result<()>,
) -> Value {
    let server = async {
        loop {
            let served = serve().await;
            assert!(served.is_err(), "plaintext or a handshake went through");
        }
    };
    let client = async {
        let mut client = agent.dial().await;
        let _ = client
            .write_all(b"GET / HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n")
            .await;
        if protocol.is_http() {
            let mut response = String::new();
            client.read_to_string(&mut response).await.unwrap();
            assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        } else {
            expect_reset(&mut client).await;
        }
        agent.record().await
    };
    let record = tokio::select! {
        () = server => unreachable!(),
        record = client => record,
    };
    let flags = text(&record, "response_flags");
    assert!(flags.contains("UF"), "{record}");
    record
}

/// The causes told for a certificate that must not be accepted.
async fn refused_certificate(
    trusted: &Authority,
    change: impl Fn(&mut rcgen::CertificateParams),
    issuer: &Authority,
    name: &str,
) -> Vec<String> {
    let mut causes = Vec::new();
    for protocol in [Protocol::Http, Protocol::Tcp] {
        let directory = tempdir().unwrap();
        let tls = simple(&trusted.write(directory.path()));
        let (listener, address) = listener().await;
        let agent = Agent::start(
            directory,
            snapshot(HOST, protocol, policy(Some(tls)), &[address]),
        );
        let config = server_config(&issuer.issue_with(name, &change), None);
        let record = refused(&agent, protocol, async || {
            accept_tls(&listener, &config).await.map(drop)
        })
        .await;
        causes.push(text(&record, "cause").to_owned());
    }
    causes
}

#[test]
fn an_unknown_authority_is_refused_and_named() {
    run(async {
        let (trusted, other) = (Authority::new("trusted"), Authority::new("other root"));
        for cause in refused_certificate(&trusted, |_| {}, &other, HOST).await {
            assert!(cause.contains("no trusted authority"), "{cause}");
            assert!(cause.contains("CN=other root"), "{cause}");
        }
    });
}

#[test]
fn a_wrong_name_is_refused_and_both_names_told() {
    run(async {
        let authority = Authority::new("root");
        for cause in refused_certificate(&authority, |_| {}, &authority, "www.other.org").await {
            assert!(cause.contains("not for api.example.com"), "{cause}");
            assert!(cause.contains("www.other.org"), "{cause}");
        }
    });
}

#[test]
fn an_expired_certificate_is_refused_with_its_date() {
    run(async {
        let authority = Authority::new("root");
        let expire = |params: &mut rcgen::CertificateParams| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 2, 3);
        };
        for cause in refused_certificate(&authority, expire, &authority, HOST).await {
            assert!(cause.contains("expired at 2021-02-03"), "{cause}");
        }
    });
}

#[test]
fn a_refused_connection_is_a_prompt_reset() {
    run(async {
        let authority = Authority::new("root");
        let directory = tempdir().unwrap();
        let tls = simple(&authority.write(directory.path()));
        let address = listener().await.1;
        let agent = Agent::start(
            directory,
            snapshot(HOST, Protocol::Tcp, policy(Some(tls)), &[address]),
        );
        expect_reset(&mut agent.dial().await).await;
        let record = agent.record().await;
        assert_eq!(text(&record, "response_flags"), "UF");
        assert_eq!(
            text(&record, "cause"),
            format!("{address}: connection refused")
        );
    });
}

#[test]
fn a_silent_server_ends_in_a_timeout_that_says_where() {
    run(async {
        let authority = Authority::new("root");
        let directory = tempdir().unwrap();
        let mut policy = policy(Some(simple(&authority.write(directory.path()))));
        policy.connection_pool.connect_timeout = Duration::from_millis(100);
        // Never accepts: the kernel completes TCP, and nobody speaks TLS.
        let (_listener, address) = listener().await;
        let agent = Agent::start(directory, snapshot(HOST, Protocol::Tcp, policy, &[address]));
        expect_reset(&mut agent.dial().await).await;
        let record = agent.record().await;
        assert_eq!(text(&record, "response_flags"), "UF");
        let cause = text(&record, "cause");
        assert!(cause.contains("TLS handshake was not finished"), "{cause}");
        assert!(cause.contains("100ms"), "{cause}");
    });
}

#[test]
fn a_server_without_tls_never_gets_plaintext() {
    run(async {
        for protocol in [Protocol::Http, Protocol::Tcp] {
            let authority = Authority::new("root");
            let directory = tempdir().unwrap();
            let tls = simple(&authority.write(directory.path()));
            let (listener, address) = listener().await;
            let agent = Agent::start(
                directory,
                snapshot(HOST, protocol, policy(Some(tls)), &[address]),
            );
            let record = refused(&agent, protocol, async || {
                let (mut stream, _) = listener.accept().await?;
                let mut bytes = vec![0; 4096];
                let count = stream.read(&mut bytes).await?;
                // A TLS handshake record, not the request.
                assert_eq!(bytes[0], 22);
                assert!(bytes[..count].windows(3).all(|part| part != b"GET"));
                stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    .await?;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                assert!(rest.windows(3).all(|part| part != b"GET"));
                Err(ErrorKind::Other.into())
            })
            .await;
            let cause = text(&record, "cause");
            assert!(cause.contains("does not speak TLS"), "{cause}");
        }
    });
}

/// An application that brings its own TLS, on a port with origination.
async fn own_tls(protocol: Protocol) {
    let authority = Authority::new("root");
    // Trusted by the application, not by the policy: only the application's
    // own handshake can have succeeded.
    let own = Authority::new("known to the application");
    let directory = tempdir().unwrap();
    let tls = simple(&authority.write(directory.path()));
    let (listener, address) = listener().await;
    let agent = Agent::start(
        directory,
        snapshot(HOST, protocol, policy(Some(tls)), &[address]),
    );
    let config = server_config(&own.issue("own.example.net"), None);
    let server = async {
        // A connection that the agent began to wrap is dropped again.
        let mut stream = loop {
            if let Ok(stream) = accept_tls(&listener, &config).await {
                break stream;
            }
        };
        assert_eq!(stream.get_ref().1.server_name(), Some("own.example.net"));
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let client = async {
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(
            rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(
                rustls::crypto::aws_lc_rs::default_provider(),
            ))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(own.roots())
            .with_no_client_auth(),
        ));
        let stream = agent.dial().await;
        let mut stream = connector
            .connect("own.example.net".try_into().unwrap(), stream)
            .await
            .unwrap();
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).await.unwrap();
        assert_eq!(greeting, "hello");
    };
    tokio::join!(server, client);
    let record = agent.record().await;
    assert_eq!(text(&record, "spoken"), "tls", "{record}");
    assert_eq!(text(&record, "sni"), "own.example.net");
    assert!(text(&record, "note").contains("untouched"), "{record}");
    assert_eq!(text(&record, "response_flags"), "-");
}

#[test]
fn tls_of_the_application_passes_untouched_on_http_ports() {
    run(own_tls(Protocol::Http));
}

#[test]
fn tls_of_the_application_passes_untouched_on_tcp_ports() {
    run(own_tls(Protocol::Tcp));
}

#[test]
fn a_server_that_speaks_first_is_heard_through_tls() {
    run(async {
        let authority = Authority::new("root");
        let directory = tempdir().unwrap();
        let tls = simple(&authority.write(directory.path()));
        let (listener, address) = listener().await;
        let agent = Agent::start(
            directory,
            snapshot(HOST, Protocol::Tcp, policy(Some(tls)), &[address]),
        );
        let config = server_config(&authority.issue(HOST), None);
        let server = async {
            let mut stream = accept_tls(&listener, &config).await.unwrap();
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let mut line = [0; 6];
            stream.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"QUIT\r\n");
            stream.shutdown().await.unwrap();
        };
        let client = async {
            let mut client = agent.dial().await;
            let mut greeting = [0; 11];
            client.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"220 ready\r\n");
            client.write_all(b"QUIT\r\n").await.unwrap();
            assert_eq!(client.read(&mut greeting).await.unwrap(), 0);
        };
        tokio::join!(server, client);
        let record = agent.record().await;
        assert_eq!(text(&record, "response_flags"), "-", "{record}");
        assert_eq!(text(&record, "spoken"), "opaque");
    });
}

#[test]
fn the_next_endpoint_is_tried_when_one_refuses() {
    run(async {
        let dead = listener().await.1;
        let (listener, address) = listener().await;
        let agent = Agent::start(
            tempdir().unwrap(),
            snapshot(HOST, Protocol::Tcp, policy(None), &[dead, address]),
        );
        for _ in 0..8 {
            let mut client = agent.dial().await;
            let (mut server, _) = listener.accept().await.unwrap();
            server.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
        }
    });
}

/// An address that the registered host shares with others.
async fn shared_address(request: &'static [u8], untouched: bool) -> Value {
    let authority = Authority::new("root");
    let directory = tempdir().unwrap();
    let tls = simple(&authority.write(directory.path()));
    // The registered endpoint; what passes on goes elsewhere.
    let (registered, endpoint) = listener().await;
    let (dialled, original) = listener().await;
    let agent = Agent::start(
        directory,
        snapshot(HOST, Protocol::Https, policy(Some(tls)), &[endpoint]),
    );
    let mut client = agent
        .dial_as(|captured| {
            captured.name_decides = true;
            captured.original = original;
        })
        .await;
    client.write_all(request).await.unwrap();
    let mut bytes = vec![0; request.len()];
    if untouched {
        let (mut stream, _) = dialled.accept().await.unwrap();
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, request);
        stream.write_all(b"hi").await.unwrap();
        drop(stream);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"hi");
    } else {
        let (mut stream, _) = registered.accept().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 22, "TLS");
        drop(stream);
    }
    drop(client);
    agent.record().await
}

#[test]
fn a_shared_address_is_told_apart_by_name() {
    run(async {
        let record = shared_address(
            b"GET / HTTP/1.1\r\nA: b\r\nHost: other.example.org\r\n\r\n",
            true,
        )
        .await;
        assert!(text(&record, "note").contains("passed on"), "{record}");
        assert_eq!(record["service"], Value::Null);
        assert_eq!(text(&record, "response_flags"), "-");
        // What nothing tells passes on as well.
        shared_address(b"GET / HTTP/1.0\r\n\r\n", true).await;
        shared_address(b"\x00\x01binary", true).await;
        shared_address(b"GET / HTTP/1.1\r\nHost: API.example.com:80\r\n\r\n", false).await;
    });
}

#[test]
fn a_dead_address_family_costs_a_moment() {
    run(async {
        let (dead, _held) = black_hole().await;
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let alive = listener.local_addr().unwrap();
        let agent = Agent::start(
            tempdir().unwrap(),
            snapshot(HOST, Protocol::Tcp, policy(None), &[]),
        );
        let resolved = [dead, alive].map(|address| ResolvedEndpoint {
            destination: Destination::Tcp(address),
            name: Some(HOST.into()),
            weight: 1,
            locality: Locality::default(),
            labels: Labels::new(),
        });
        agent.live.load().sets[0].update(resolved.to_vec());
        let started = Instant::now();
        for _ in 0..6 {
            let mut client = agent.dial().await;
            let (mut server, _) = listener.accept().await.unwrap();
            server.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
        }
        // The default connectTimeout is 10 s.
        assert!(started.elapsed() < Duration::from_secs(5));
        for record in agent.records(6).await {
            assert_eq!(text(&record, "endpoint"), alive.to_string());
            assert_eq!(text(&record, "response_flags"), "-");
        }
    });
}

/// Every open connection holds one of these; it must not grow unseen.
#[test]
fn the_task_of_a_connection_stays_small() {
    run(async {
        let agent = Agent::start(
            tempdir().unwrap(),
            snapshot(HOST, Protocol::Tcp, policy(None), &[]),
        );
        let task = serve(
            Rc::new(Context::new(agent.shared.clone())),
            agent.accepted().await,
        );
        let size = size_of_val(&task);
        assert!(size <= 2048, "{size}");
    });
}
