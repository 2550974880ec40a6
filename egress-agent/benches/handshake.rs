//! CPU time that the agent's side of a TLS 1.3 handshake takes, full and
//! resumed, with a server in the same thread and no network between. Each side's
//! own calls are timed by the thread's CPU clock. The server's chain has an
//! intermediate, as those of public authorities have, so a full handshake
//! verifies three signatures; both kinds agree on a new X25519 key.
//!
//! `cargo bench --bench handshake`; ends with an error where resumed handshakes
//! take more than half of the CPU of full ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    reason = "a benchmark"
)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use egress_agent::policy::model::{ClientTls, Identity, Trust};
use egress_agent::secret::{SecretSettings, Secrets};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256};
use rustix::time::{ClockId, clock_gettime};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use rustls_pki_types::PrivateKeyDer;

const HOST: &str = "api.example.com";
const ROUNDS: usize = 2_000;

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

/// One handshake and the tickets after it; returns the client's CPU time.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (Duration, HandshakeKind) {
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut spent = Duration::ZERO;
    let mut timed = |begun: Duration| spent += cpu().saturating_sub(begun);
    let begun = cpu();
    let name = HOST.try_into().unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    timed(begun);
    let mut wire = Vec::new();
    loop {
        wire.clear();
        let begun = cpu();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        timed(begun);
        let sent = wire.len();
        let mut rest = &wire[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        if sent == 0 && wire.is_empty() {
            break;
        }
        let begun = cpu();
        let mut rest = &wire[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
        timed(begun);
    }
    assert!(!client.is_handshaking());
    (spent, client.handshake_kind().unwrap())
}

fn mean(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, kind: HandshakeKind) -> f64 {
    // The first fills caches, and leaves tickets where they are kept.
    shake(client, server);
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        let (time, was) = shake(client, server);
        assert_eq!(was, kind);
        spent += time;
    }
    spent.as_secs_f64() * 1e6 / ROUNDS as f64
}

fn main() -> ExitCode {
    let directory = tempfile::tempdir().unwrap();
    let mut worst: f64 = 0.0;
    println!("keys of the server's chain, CPU of the client in microseconds");
    for (label, algorithm) in [
        ("ECDSA P-256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("RSA 2048", &PKCS_RSA_SHA256),
    ] {
        let key = || KeyPair::generate_for(algorithm).unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = key();
        let root = authority.self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(authority.clone(), root_key);
        authority
            .distinguished_name
            .push(DnType::CommonName, "intermediate");
        let intermediate_key = key();
        let intermediate = authority
            .signed_by(&intermediate_key, &root_issuer)
            .unwrap();
        let issuer = Issuer::new(authority, intermediate_key);
        let own = key();
        let leaf = CertificateParams::new(vec![HOST.to_owned()])
            .unwrap()
            .signed_by(&own, &issuer)
            .unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, root.pem()).unwrap();
        let tls = ClientTls {
            identity: Identity::None,
            trust: Trust::File { ca, crl: None },
            ..ClientTls::simple()
        };
        // A new one each time: material is remembered by its path.
        let secrets = Secrets::new(SecretSettings::default());
        let config = secrets.client_config(&tls, &Arc::from("default")).unwrap();
        let resuming = Arc::clone(&config.client);
        let mut full = ClientConfig::clone(&resuming);
        full.resumption = Resumption::disabled();
        let chain = vec![leaf.der().clone(), intermediate.der().clone()];
        let key = PrivateKeyDer::try_from(own.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
        let server = Arc::new(server);
        let full = mean(&Arc::new(full), &server, HandshakeKind::Full);
        let resumed = mean(&resuming, &server, HandshakeKind::Resumed);
        println!(
            "{label:12} full {full:7.1}  resumed {resumed:7.1}  ratio {:.2}",
            resumed / full
        );
        worst = worst.max(resumed / full);
    }
    // Without `--bench`, which `cargo bench` gives, the code is not optimized.
    if worst > 0.5 && std::env::args().any(|argument| argument == "--bench") {
        println!("resumed handshakes take more than half of the CPU of full ones");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
