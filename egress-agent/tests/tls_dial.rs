//! What a handshake towards a service accepts, refuses, and says about it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

mod support;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use egress_agent::capture::sockets::{NetNs, Sockets};
use egress_agent::connect::{
    Alpn, ConnectError, Connected, DialContext, Phase, Stream, dial, explain_broken,
};
use egress_agent::endpoint::resolved::Destination;
use egress_agent::policy::model::{ClientTls, Identity, Keepalive, ProxyProtocol, Trust};
use egress_agent::secret::{SecretSettings, Secrets};
use rcgen::{BasicConstraints, CertificateParams, IsCa, SanType};
use rustls::ServerConfig;
use support::{Authority, Leaf, accept_tls, black_hole, policy, run, server_config, simple};
use tempfile::{TempDir, tempdir};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::server::TlsStream;

const HOST: &str = "api.example.com";

/// Dials a server on loopback under a policy.
struct Rig {
    directory: TempDir,
    authority: Authority,
    secrets: Arc<Secrets>,
    tls: ClientTls,
    alpn: Alpn,
    host: &'static str,
}

impl Rig {
    fn new() -> Self {
        let directory = tempdir().unwrap();
        let authority = Authority::new("test root");
        let tls = simple(&authority.write(directory.path()));
        Self {
            directory,
            authority,
            secrets: Secrets::new(SecretSettings::default()),
            tls,
            alpn: Alpn::None,
            host: HOST,
        }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn dial_with(
        &self,
        destination: &Destination,
        change: impl FnOnce(&mut egress_agent::policy::model::TrafficPolicy),
    ) -> Result<Connected, ConnectError> {
        let mut policy = policy(Some(self.tls.clone()));
        change(&mut policy);
        let context = DialContext {
            sockets: &Sockets::unmarked(),
            netns: &NetNs::current().unwrap(),
            secrets: &self.secrets,
            policy: &policy,
            tls: policy.tls.as_ref(),
            host: self.host,
            namespace: &"shop".into(),
            alpn: self.alpn,
            source: "192.0.2.7:4711".parse().unwrap(),
        };
        dial(&context, destination).await
    }

    /// One handshake with a server of these settings.
    async fn meet(
        &self,
        config: &Arc<ServerConfig>,
    ) -> (
        Result<Connected, ConnectError>,
        io::Result<TlsStream<TcpStream>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Destination::Tcp(listener.local_addr().unwrap());
        tokio::join!(self.dial_with(&to, |_| {}), accept_tls(&listener, config))
    }

    async fn meet_leaf(&self, leaf: &Leaf) -> Result<Connected, ConnectError> {
        self.meet(&server_config(leaf, None)).await.0
    }

    /// The words of a refusal.
    async fn refusal(&self, leaf: &Leaf) -> String {
        self.meet_leaf(leaf).await.unwrap_err().to_string()
    }
}

fn with_uri(uri: &'static str) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())]
}

#[test]
fn any_of_the_listed_names_will_do() {
    run(async {
        let mut rig = Rig::new();
        rig.tls.subject_alt_names = vec!["one.example".into(), "two.example".into()];
        rig.meet_leaf(&rig.authority.issue("two.example"))
            .await
            .unwrap();
        // The list replaces the name sent.
        let text = rig.refusal(&rig.authority.issue(HOST)).await;
        assert!(
            text.contains("not for one.example or two.example"),
            "{text}"
        );
        // A wildcard in the certificate covers one label.
        rig.tls.subject_alt_names = vec!["a.two.example".into()];
        rig.meet_leaf(&rig.authority.issue("*.two.example"))
            .await
            .unwrap();
        rig.tls.subject_alt_names = vec!["a.b.two.example".into()];
        rig.refusal(&rig.authority.issue("*.two.example")).await;
    });
}

#[test]
fn a_spiffe_name_is_compared_whole() {
    run(async {
        let mut rig = Rig::new();
        rig.tls.subject_alt_names = vec!["spiffe://cluster.local/ns/a/sa/b".into()];
        let leaf = rig
            .authority
            .issue_with("x", with_uri("spiffe://cluster.local/ns/a/sa/b"));
        rig.meet_leaf(&leaf).await.unwrap();
        let leaf = rig
            .authority
            .issue_with("x", with_uri("spiffe://cluster.local/ns/a/sa/bc"));
        let text = rig.refusal(&leaf).await;
        assert!(text.contains("sa/bc"), "{text}");
    });
}

#[test]
fn a_name_list_does_not_make_up_for_a_bad_chain() {
    run(async {
        let mut rig = Rig::new();
        rig.tls.subject_alt_names = vec![HOST.into()];
        let text = rig.refusal(&Authority::new("other").issue(HOST)).await;
        assert!(text.contains("no trusted authority"), "{text}");
    });
}

#[test]
fn the_sni_of_the_policy_is_sent_and_verified() {
    run(async {
        let mut rig = Rig::new();
        rig.tls.sni = Some("front.example.net".into());
        let config = server_config(&rig.authority.issue("front.example.net"), None);
        let (connected, server) = rig.meet(&config).await;
        assert_eq!(
            connected.unwrap().tls.unwrap().sni.as_deref(),
            Some("front.example.net")
        );
        assert_eq!(
            server.unwrap().get_ref().1.server_name(),
            Some("front.example.net")
        );
        // Istio would take any certificate of the authority here.
        rig.refusal(&rig.authority.issue(HOST)).await;
    });
}

#[test]
fn an_address_as_host_is_verified_and_not_sent() {
    run(async {
        let mut rig = Rig::new();
        rig.host = "127.0.0.1";
        let config = server_config(&rig.authority.issue("127.0.0.1"), None);
        let (connected, server) = rig.meet(&config).await;
        assert_eq!(connected.unwrap().tls.unwrap().sni, None);
        assert_eq!(server.unwrap().get_ref().1.server_name(), None);
    });
}

#[test]
fn a_self_signed_certificate_is_explained_and_can_be_trusted() {
    run(async {
        // With CA:TRUE, as `openssl req -x509` makes them, and without.
        for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::NoCa] {
            let mut rig = Rig::new();
            let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
            params.is_ca = is_ca;
            let key = rcgen::KeyPair::generate().unwrap();
            let made = params.self_signed(&key).unwrap();
            let leaf = Leaf {
                certificate_pem: made.pem(),
                certificate: made.der().clone(),
                key,
            };
            let text = rig.refusal(&leaf).await;
            assert!(text.contains("caCertificates"), "{text}");
            rig.tls = simple(&rig.put("self.pem", &leaf.certificate_pem));
            rig.meet_leaf(&leaf).await.unwrap();
            // Trusted, but still only for its names.
            rig.host = "other.example";
            let text = rig.refusal(&leaf).await;
            assert!(text.contains("not for other.example"), "{text}");
        }
    });
}

#[test]
fn revoked_certificates_are_refused() {
    run(async {
        let mut rig = Rig::new();
        let serial = |n: u64| {
            move |params: &mut CertificateParams| {
                params.serial_number = Some(n.into());
            }
        };
        let (good, bad) = (
            rig.authority.issue_with(HOST, serial(7)),
            rig.authority.issue_with(HOST, serial(8)),
        );
        let list = rig.put("crl.pem", &rig.authority.revocation_list(&[8]));
        let Trust::File { crl, .. } = &mut rig.tls.trust else {
            unreachable!()
        };
        *crl = Some(list);
        rig.meet_leaf(&good).await.unwrap();
        let text = rig.refusal(&bad).await;
        assert!(text.contains("has been revoked"), "{text}");
    });
}

#[test]
fn name_constraints_of_an_authority_hold() {
    run(async {
        let mut rig = Rig::new();
        rig.authority = Authority::constrained("narrow", "allowed.example");
        rig.tls = simple(&rig.authority.write(rig.directory.path()));
        let text = rig.refusal(&rig.authority.issue(HOST)).await;
        assert!(text.contains("name constraints"), "{text}");
        rig.host = "www.allowed.example";
        rig.meet_leaf(&rig.authority.issue("www.allowed.example"))
            .await
            .unwrap();
    });
}

#[test]
fn skipping_verification_takes_any_certificate() {
    run(async {
        let mut rig = Rig::new();
        rig.tls.insecure_skip_verify = true;
        rig.meet_leaf(&Authority::new("other").issue("wrong.example"))
            .await
            .unwrap();
    });
}

fn identity(rig: &Rig, leaf: &Leaf) -> Identity {
    Identity::Files {
        certificate: rig.put("client.pem", &leaf.certificate_pem),
        key: rig.put("client.key", &leaf.key.serialize_pem()),
    }
}

#[test]
fn a_client_certificate_is_presented() {
    run(async {
        let mut rig = Rig::new();
        let clients = Authority::new("clients");
        let leaf = clients.issue("cart");
        rig.tls.identity = identity(&rig, &leaf);
        let config = server_config(&rig.authority.issue(HOST), Some(&clients));
        let (connected, server) = rig.meet(&config).await;
        assert!(connected.unwrap().tls.unwrap().mutual);
        let server = server.unwrap();
        assert_eq!(
            server.get_ref().1.peer_certificates().unwrap()[0],
            leaf.certificate
        );
    });
}

/// With TLS 1.3 the client is done before the server has judged.
#[test]
fn a_refused_client_certificate_is_explained_when_it_shows() {
    run(async {
        let mut rig = Rig::new();
        let clients = Authority::new("clients");
        let config = server_config(&rig.authority.issue(HOST), Some(&clients));
        let told = |connected: Result<Connected, ConnectError>| async {
            let mut stream = connected.unwrap().stream;

            stream.read(&mut [0; 8]).await.unwrap_err()
        };
        let (connected, server) = rig.meet(&config).await;
        assert!(server.is_err());
        let text = explain_broken(&told(connected).await, false).unwrap();
        assert!(text.contains("use tls.mode MUTUAL"), "{text}");

        rig.tls.identity = identity(&rig, &Authority::new("strangers").issue("cart"));
        let (connected, server) = rig.meet(&config).await;
        assert!(server.is_err());
        let text = explain_broken(&told(connected).await, true).unwrap();
        assert!(
            text.contains("does not accept our client certificate"),
            "{text}"
        );
    });
}

#[test]
fn sessions_resume_and_never_across_identities() {
    run(async {
        let mut rig = Rig::new();
        let config = server_config(&rig.authority.issue(HOST), None);
        let visit = async |rig: &Rig| {
            let (connected, server) = rig.meet(&config).await;
            let (mut connected, mut server) = (connected.unwrap(), server.unwrap());
            // Tickets come with the first bytes of the server.
            server.write_all(b"x").await.unwrap();
            connected.stream.read_u8().await.unwrap();
            connected.tls.unwrap().resumed
        };
        assert!(!visit(&rig).await);
        assert!(visit(&rig).await);
        assert!(visit(&rig).await);
        rig.tls.identity = identity(&rig, &Authority::new("clients").issue("cart"));
        assert!(!visit(&rig).await);
    });
}

#[test]
fn alpn_is_offered_and_its_outcome_known() {
    run(async {
        let mut rig = Rig::new();
        let mut config = ServerConfig::clone(&server_config(&rig.authority.issue(HOST), None));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        for (alpn, http2) in [
            (Alpn::Http2, true),
            (Alpn::Http2OrHttp1, true),
            (Alpn::Http1, false),
            (Alpn::None, false),
        ] {
            rig.alpn = alpn;
            let (connected, _) = rig.meet(&config).await;
            assert_eq!(connected.unwrap().tls.unwrap().http2, http2, "{alpn:?}");
        }
        let mut config = ServerConfig::clone(&config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        rig.alpn = Alpn::Http2;
        let (connected, _) = rig.meet(&Arc::new(config)).await;
        let text = connected.unwrap_err().to_string();
        assert!(text.contains("ALPN"), "{text}");
    });
}

#[test]
fn a_server_too_old_for_the_policy_is_refused() {
    run(async {
        let mut rig = Rig::new();
        rig.tls.extra.only_tls13 = true;
        let leaf = rig.authority.issue(HOST);
        let config = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.certificate.clone()],
            leaf.key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
        let config = Arc::new(config);
        let (connected, _) = rig.meet(&config).await;
        let text = connected.unwrap_err().to_string();
        assert!(text.contains("alert ProtocolVersion"), "{text}");
        rig.tls.extra.only_tls13 = false;
        let (connected, _) = rig.meet(&config).await;
        assert_eq!(connected.unwrap().tls.unwrap().version_name(), "TLSv1.2");
    });
}

#[test]
fn material_that_cannot_be_used_fails_before_anything_is_dialled() {
    run(async {
        let mut rig = Rig::new();
        rig.tls = simple(Path::new("/nonexistent/ca.pem"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Destination::Tcp(listener.local_addr().unwrap());
        let error = rig.dial_with(&to, |_| {}).await.unwrap_err();
        assert!(matches!(error, ConnectError::Secret(_)), "{error}");
        let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept());
        assert!(accepted.await.is_err());
    });
}

async fn first_bytes(mut stream: impl AsyncReadExt + Unpin, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[test]
fn the_proxy_header_goes_before_tls() {
    run(async {
        let rig = Rig::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let to = Destination::Tcp(address);
        let text = format!("PROXY TCP4 192.0.2.7 127.0.0.1 4711 {}\r\n", address.port());
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let dialled = rig.dial_with(&to, |policy| policy.proxy_protocol = Some(version));
            let served = async {
                let (stream, _) = listener.accept().await.unwrap();
                let expected = match version {
                    ProxyProtocol::V1 => text.clone().into_bytes(),
                    ProxyProtocol::V2 => {
                        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
                        bytes.extend([192, 0, 2, 7, 127, 0, 0, 1]);
                        bytes.extend(4711_u16.to_be_bytes());
                        bytes.extend(address.port().to_be_bytes());
                        bytes
                    }
                };
                let bytes = first_bytes(stream, expected.len() + 1).await;
                assert_eq!(bytes[..expected.len()], expected);
                assert_eq!(bytes[expected.len()], 22, "TLS follows");
            };
            let (dialled, ()) = tokio::join!(dialled, served);
            assert!(dialled.is_err());
        }
    });
}

#[test]
fn unix_sockets_are_dialled_by_path_and_by_name() {
    run(async {
        let rig = Rig::new();
        let path = rig.directory.path().join("socket");
        let name = format!("egress-test-{}-{}", std::process::id(), fastrand::u64(..));
        let listeners = [
            (
                UnixListener::bind(&path).unwrap(),
                path.display().to_string(),
            ),
            (
                UnixListener::bind(format!("\0{name}")).unwrap(),
                format!("@{name}"),
            ),
        ];
        for (listener, path) in listeners {
            let to = Destination::Unix(path.into());
            let dialled = rig.dial_with(&to, |policy| policy.tls = None);
            let (dialled, accepted) = tokio::join!(dialled, listener.accept());
            assert!(matches!(dialled.unwrap().stream, Stream::Unix(_)));
            accepted.unwrap();
        }
        let gone = Destination::Unix("/nonexistent/socket".into());
        let error = rig.dial_with(&gone, |policy| policy.tls = None).await;
        assert!(matches!(error, Err(ConnectError::Refused { .. })));
    });
}

#[test]
fn keepalive_follows_the_policy() {
    run(async {
        let rig = Rig::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Destination::Tcp(listener.local_addr().unwrap());
        let connected = rig
            .dial_with(&to, |policy| {
                policy.tls = None;
                policy.connection_pool.keepalive = Some(Keepalive {
                    time: Some(Duration::from_millis(61_500)),
                    interval: Some(Duration::from_secs(11)),
                    probes: Some(4),
                });
            })
            .await
            .unwrap();
        let socket = socket2::SockRef::from(connected.stream.tcp().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(62)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(11)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        assert!(socket.tcp_nodelay().unwrap());
        let plain = rig
            .dial_with(&to, |policy| policy.tls = None)
            .await
            .unwrap();
        let socket = socket2::SockRef::from(plain.stream.tcp().unwrap());
        assert!(!socket.keepalive().unwrap());
    });
}

#[test]
fn a_black_hole_times_out_in_the_tcp_phase() {
    run(async {
        let rig = Rig::new();
        let (address, _held) = black_hole().await;
        let to = Destination::Tcp(address);
        let dialled = rig.dial_with(&to, |policy| {
            policy.tls = None;
            policy.connection_pool.connect_timeout = Duration::from_millis(100);
        });
        let error = dialled.await.unwrap_err();
        assert!(
            matches!(
                error,
                ConnectError::TimedOut {
                    phase: Phase::Tcp,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("tcp.connectTimeout"), "{error}");
    });
}
