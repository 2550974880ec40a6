#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::packets::{PacketError, Packets, packet};
use super::*;

/// Plays a server that says `parts`, each after it has read something, and
/// returns what it read.
async fn server(mut stream: DuplexStream, parts: Vec<&'static [u8]>, first: bool) -> Vec<u8> {
    let mut heard = Vec::new();
    for (place, part) in parts.into_iter().enumerate() {
        if place > 0 || !first {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            heard.extend(&buffer[..count]);
        }
        if stream.write_all(part).await.is_err() {
            break;
        }
    }
    heard
}

async fn ask(
    protocol: StartTls,
    first: bool,
    parts: &[&'static [u8]],
) -> (Result<Begun, StartTlsFailure>, Vec<u8>) {
    let (mut near, far) = duplex(64 * 1024);
    let local = Some("192.0.2.2:4711".parse().unwrap());
    let begun = async {
        let begun = begin(protocol, &mut near, local).await;
        drop(near);
        begun
    };
    tokio::join!(begun, server(far, parts.to_vec(), first))
}

async fn refusal(protocol: StartTls, first: bool, parts: &[&'static [u8]]) -> String {
    match ask(protocol, first, parts).await {
        (Err(error), _) => error.to_string(),
        _ => panic!("it was not refused"),
    }
}

fn greeted(begun: Result<Begun, StartTlsFailure>) -> Vec<u8> {
    match begun.unwrap() {
        Begun::Tls(Some(Opening::Greeting(greeting))) => greeting,
        _ => panic!("no greeting"),
    }
}

const SMTP_HELLO: &[u8] = b"220-mail.example ESMTP\r\n220 ready\r\n";
const SMTP_OFFERS: &[u8] = b"250-mail.example\r\n250-PIPELINING\r\n250-starttls\r\n250 SIZE 9\r\n";

#[tokio::test]
async fn smtp_starts_and_keeps_the_greeting_for_the_application() {
    let parts = [SMTP_HELLO, SMTP_OFFERS, b"220 go ahead\r\n"];
    let (begun, heard) = ask(StartTls::Smtp, true, &parts).await;
    assert_eq!(greeted(begun), SMTP_HELLO);
    assert_eq!(heard, b"EHLO [192.0.2.2]\r\nSTARTTLS\r\n");
}

#[tokio::test]
async fn smtp_refusals_are_told() {
    let text = refusal(StartTls::Smtp, true, &[b"554 go away\r\n"]).await;
    assert!(text.contains("554 go away"), "{text}");
    let parts = [SMTP_HELLO, b"250-mail\r\n250 STARTTLSX\r\n".as_slice()];
    let text = refusal(StartTls::Smtp, true, &parts).await;
    assert!(text.contains("does not offer STARTTLS"), "{text}");
    let parts = [SMTP_HELLO, SMTP_OFFERS, b"454 no TLS now\r\n"];
    let text = refusal(StartTls::Smtp, true, &parts).await;
    assert!(text.contains("454 no TLS now"), "{text}");
    let text = refusal(StartTls::Smtp, true, &[b"* OK imap\r\n"]).await;
    assert!(text.contains("does not speak SMTP"), "{text}");
}

#[tokio::test]
async fn bytes_after_the_consent_are_an_injection() {
    let injected = b"220 go ahead\r\n250 injected\r\n";
    let parts = [SMTP_HELLO, SMTP_OFFERS, injected];
    let text = refusal(StartTls::Smtp, true, &parts).await;
    assert!(text.contains("in the clear after"), "{text}");
    let parts: [&[u8]; 2] = [
        b"* OK ready\r\n",
        b"egress1 OK begin\r\n* CAPABILITY IMAP4rev1\r\n",
    ];
    let text = refusal(StartTls::Imap, true, &parts).await;
    assert!(text.contains("in the clear after"), "{text}");
}

#[tokio::test]
async fn nothing_is_read_beyond_the_consent() {
    // Where the consent has a known length, what follows stays for the TLS
    // library, which refuses it.
    for (protocol, first, consent) in [
        (StartTls::Postgres, false, b"SEvil".as_slice()),
        (
            StartTls::Ldap,
            false,
            b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00Evil",
        ),
    ] {
        let (mut near, far) = duplex(1024);
        let (begun, _) = tokio::join!(
            begin(protocol, &mut near, None),
            server(far, vec![consent], first)
        );
        begun.unwrap_or_else(|error| panic!("{protocol:?}: {error}"));
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"Evil", "{protocol:?}");
    }
}

#[tokio::test]
async fn imap_hides_capabilities_that_tls_changes() {
    let parts: [&[u8]; 2] = [
        b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] Dovecot ready.\r\n",
        b"* NOTICE x\r\negress1 OK Begin TLS negotiation now.\r\n",
    ];
    let (begun, heard) = ask(StartTls::Imap, true, &parts).await;
    assert_eq!(greeted(begun), b"* OK Dovecot ready.\r\n");
    assert_eq!(heard, b"egress1 STARTTLS\r\n");
    assert_eq!(
        imap::without_capabilities(b"* OK [X y] hi\r\n"),
        b"* OK [X y] hi\r\n"
    );
    assert_eq!(
        imap::without_capabilities(b"* OK [CAPABILITY a]\r\n"),
        b"* OK ready\r\n"
    );
}

#[tokio::test]
async fn an_imap_session_that_has_begun_is_refused() {
    let text = refusal(StartTls::Imap, true, &[b"* PREAUTH root\r\n"]).await;
    assert!(text.contains("PREAUTH root"), "{text}");
    let parts: [&[u8]; 2] = [b"* OK hi\r\n", b"egress1 BAD unknown\r\n"];
    let text = refusal(StartTls::Imap, true, &parts).await;
    assert!(text.contains("BAD unknown"), "{text}");
}

#[tokio::test]
async fn ldap_tells_result_code_and_diagnosis() {
    let answer = b"\x30\x0e\x02\x01\x01\x78\x09\x0a\x01\x34\x04\x00\x04\x02no";
    let text = refusal(StartTls::Ldap, false, &[answer]).await;
    assert!(text.contains("result code 52: no"), "{text}");
    // The server's goodbye has message id 0.
    let answer = b"\x30\x0c\x02\x01\x00\x78\x07\x0a\x01\x00\x04\x00\x04\x00";
    refusal(StartTls::Ldap, false, &[answer]).await;
    let huge = b"\x30\x84\x7f\xff\xff\xff";
    let text = refusal(StartTls::Ldap, false, &[huge]).await;
    assert!(text.contains("does not speak LDAP"), "{text}");
}

#[tokio::test]
async fn postgresql_refusals_are_told_apart() {
    let text = refusal(StartTls::Postgres, false, &[b"N"]).await;
    assert!(text.contains("ssl = off"), "{text}");
    let error = b"E\0\0\0\x17SFATAL\0Mtoo many clients\0\0";
    let text = refusal(StartTls::Postgres, false, &[error]).await;
    assert!(text.contains("too many clients"), "{text}");
    let text = refusal(StartTls::Postgres, false, &[b"H"]).await;
    assert!(text.contains("does not speak PostgreSQL"), "{text}");
}

#[tokio::test]
async fn endless_answers_are_cut() {
    for protocol in [StartTls::Smtp, StartTls::Imap] {
        let (mut near, mut far) = duplex(1024);
        let flood = async {
            let mut sent = 0_usize;
            while far.write_all(b"220-xxxxxxxxxxxx").await.is_ok() && sent < 1_000_000 {
                sent += 16;
            }
            sent
        };
        let begun = async {
            let begun = begin(protocol, &mut near, None).await;
            drop(near);
            begun
        };
        let (begun, sent) = tokio::join!(begun, flood);
        assert!(begun.is_err());
        assert!(sent < 100_000, "{sent}");
    }
}

// PostgreSQL, the application's side.

const SSL: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
const GSS: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];
const CANCEL: &[u8] = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02";
const START: &[u8] = b"\0\0\0\x10\0\x03\0\0user\0a\0\0";

async fn startup_of(said: &[u8]) -> (Result<postgres::Startup, StartTlsFailure>, Vec<u8>) {
    let (mut near, mut far) = duplex(64 * 1024);
    far.write_all(said).await.unwrap();
    far.shutdown().await.unwrap();
    let startup = postgres::startup(&mut near).await;
    drop(near);
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    (startup, heard)
}

#[tokio::test]
async fn requests_for_encryption_are_answered_with_n() {
    let (startup, heard) = startup_of(&[GSS, SSL, START].concat()).await;
    assert_eq!(startup.unwrap(), postgres::Startup::Session(START.to_vec()));
    assert_eq!(heard, b"NN");
    let (startup, heard) = startup_of(&[SSL, CANCEL].concat()).await;
    assert_eq!(startup.unwrap(), postgres::Startup::Cancel(CANCEL.to_vec()));
    assert_eq!(heard, b"N");
}

#[tokio::test]
async fn an_application_that_insists_is_told_from_one_that_leaves() {
    let (startup, _) = startup_of(SSL).await;
    let text = startup.unwrap_err().to_string();
    assert!(text.contains("sslmode=disable or sslmode=prefer"), "{text}");
    let (startup, _) = startup_of(b"").await;
    assert!(matches!(startup, Err(StartTlsFailure::ClientLeft)));
    // A ClientHello that does not wait for the answer, and the same twice.
    for said in [b"\x16\x03\x01\x02\x00\x01".as_slice(), &[SSL, SSL].concat()] {
        let (startup, _) = startup_of(said).await;
        assert!(matches!(startup, Err(StartTlsFailure::ClientMisspoke(..))));
    }
}

fn sasl(names: &[&str]) -> Vec<u8> {
    let mut body = 10_u32.to_be_bytes().to_vec();
    for name in names {
        body.extend(name.as_bytes());
        body.push(0);
    }
    body.push(0);
    let mut message = vec![b'R'];
    message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    message.extend(body);
    message
}

/// An application that starts a session with a server that answers so.
async fn session(answer: &[u8]) -> (Result<(), StartTlsFailure>, Vec<u8>, Vec<u8>) {
    let (mut client, mut application) = duplex(64 * 1024);
    let (mut upstream, mut server) = duplex(64 * 1024);
    application.write_all(&[SSL, START].concat()).await.unwrap();
    application.shutdown().await.unwrap();
    server.write_all(answer).await.unwrap();
    let opened = postgres::open(&mut client, &mut upstream).await;
    drop((client, upstream));
    let (mut heard, mut forwarded) = (Vec::new(), Vec::new());
    application.read_to_end(&mut heard).await.unwrap();
    server.read_to_end(&mut forwarded).await.unwrap();
    (opened, heard, forwarded)
}

#[tokio::test]
async fn channel_binding_is_not_offered() {
    let offer = sasl(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    let (opened, heard, forwarded) = session(&offer).await;
    opened.unwrap();
    assert_eq!(heard, [b"N".as_slice(), &sasl(&["SCRAM-SHA-256"])].concat());
    assert_eq!(forwarded, START);
    // Without another mechanism the application hears why.
    let (opened, heard, _) = session(&sasl(&["SCRAM-SHA-256-PLUS"])).await;
    assert!(matches!(opened, Err(StartTlsFailure::ChannelBinding)));
    let heard = String::from_utf8_lossy(&heard);
    assert!(
        heard.contains("SFATAL") && heard.contains("channel binding"),
        "{heard}"
    );
}

#[tokio::test]
async fn a_server_that_ends_or_errs_is_passed_on() {
    let error = b"E\0\0\0\x0bSFATAL\0\0";
    let (opened, heard, _) = session(error).await;
    opened.unwrap();
    // The head alone has been read; the relay carries the rest.
    assert_eq!(heard, b"NE\0\0\0\x0b");
    let notice = b"N\0\0\0\x08Mhi\0";
    let okay = b"R\0\0\0\x08\0\0\0\0";
    let (opened, heard, _) = session(&[notice.as_slice(), okay].concat()).await;
    opened.unwrap();
    assert_eq!(heard, [b"N".as_slice(), notice, okay].concat());
}

// MySQL.

/// A greeting with these lower capabilities.
fn hello(flags: u16, plugin: &str) -> Vec<u8> {
    let mut payload = vec![10];
    payload.extend(b"8.0.36\0");
    payload.extend([7, 0, 0, 0]);
    payload.extend(b"12345678");
    payload.push(0);
    payload.extend(flags.to_le_bytes());
    payload.push(255);
    payload.extend([2, 0, 0xff, 0xdf, 21]);
    // MariaDB's own capabilities are the last four.
    payload.extend([0, 0, 0, 0, 0, 0, 0x1f, 0, 0, 0]);
    payload.extend(b"abcdefghijkl\0");
    payload.extend(plugin.as_bytes());
    payload.push(0);
    payload
}

const ALL: u16 = 0xffff;

/// An answer to a greeting.
fn answer(flags: u32) -> Vec<u8> {
    let mut payload = flags.to_le_bytes().to_vec();
    payload.extend([0, 0, 0, 1, 45]);
    payload.extend([0; 19]);
    payload.extend([0x1d, 0, 0, 0]);
    payload.extend(b"user\0\0");
    payload
}

#[test]
fn the_greeting_shown_has_no_tls_and_is_else_the_same() {
    let payload = hello(ALL, "mysql_native_password");
    let greeting = mysql::parse_greeting(&payload).unwrap();
    let Opened { shown, nonce } = opened(&greeting);
    assert_eq!(nonce, b"12345678abcdefghijkl");
    let differing: Vec<_> = (0..payload.len())
        .filter(|&at| shown[at] != payload[at])
        .collect();
    assert_eq!(differing.len(), 1);
    assert_eq!(shown[differing[0]], 0xf7);
    // MariaDB's versions are shown as they are.
    let text = mysql::parse_greeting(&hello(ALL & !(1 << 11), "x")).unwrap_err();
    assert!(text.to_string().contains("have_ssl"), "{text}");
}

struct Opened<'a> {
    shown: &'a [u8],
    nonce: &'a [u8],
}

fn opened(greeting: &mysql::Greeting) -> Opened<'_> {
    let (shown, nonce) = greeting.parts();
    Opened { shown, nonce }
}

#[test]
fn an_ssl_request_has_what_the_application_has() {
    let answer = answer(0x00ff_a285);
    let request = mysql::ssl_request(&answer).unwrap();
    assert_eq!(request[0], 0x85);
    assert_eq!(request[1], 0xa2 | 0x08);
    assert_eq!(request[2..], answer[2..32]);
    let insists = mysql::ssl_request(&self::answer(0x00ff_aa85)).unwrap_err();
    assert!(
        insists.to_string().contains("ssl-mode=DISABLED"),
        "{insists}"
    );
    assert!(mysql::ssl_request(&self::answer(0x85)).is_err());
    assert!(mysql::ssl_request(&answer[..31]).is_err());
}

#[tokio::test]
async fn packets_are_read_exactly_and_in_order() {
    let (mut near, mut far) = duplex(1024);
    far.write_all(&packet(3, b"abc")).await.unwrap();
    far.write_all(&packet(4, b"")).await.unwrap();
    far.write_all(b"rest").await.unwrap();
    far.shutdown().await.unwrap();
    let mut packets = Packets::new(&mut near, 3);
    assert_eq!(**packets.read().await.unwrap(), *b"abc");
    assert_eq!(**packets.read().await.unwrap(), *b"");
    let mut rest = Vec::new();
    near.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"rest");

    let (mut near, mut far) = duplex(1024);
    far.write_all(&packet(4, b"abc")).await.unwrap();
    let read = Packets::new(&mut near, 3).read().await;
    assert!(matches!(read, Err(PacketError::OutOfOrder)));
    far.write_all(&[0xff, 0xff, 0xff, 0]).await.unwrap();
    let (mut near, mut far) = duplex(1024);
    far.write_all(&[0xff, 0xff, 0xff, 0]).await.unwrap();
    let read = Packets::new(&mut near, 0).read().await;
    assert!(matches!(read, Err(PacketError::TooLong)));
}

#[tokio::test]
async fn a_password_comes_out_as_it_went_in() {
    use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
    use base64::Engine;
    let key = password::password_key().await.unwrap();
    let text: String = key
        .public
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let der = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap();
    let public = PublicEncryptingKey::from_der(&der).unwrap();
    let public = OaepPublicEncryptingKey::new(public).unwrap();
    let nonce = b"12345678abcdefghijkl";
    // Longer than the nonce, which is then used again from its start.
    let password = b"correct horse battery staple\0";
    let masked: Vec<u8> = password
        .iter()
        .zip(nonce.iter().cycle())
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    let mut room = vec![0; public.ciphertext_size()];
    let sent = public
        .encrypt(&OAEP_SHA1_MGF1SHA1, &masked, &mut room, None)
        .unwrap();
    assert_eq!(sent.len(), key.size());
    assert_eq!(**key.decrypt(sent, nonce).unwrap(), *password);
    assert!(key.decrypt(sent, b"another nonce......!").is_none());
    assert!(key.decrypt(&[1; 256], nonce).is_none());
}

#[tokio::test]
async fn refusals_are_in_the_protocol_of_the_application() {
    let (mut near, mut far) = duplex(64 * 1024);
    let application = async {
        far.write_all(&[SSL, START].concat()).await.unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let refused = async {
        let refused = refuse(StartTls::Postgres, &mut near, "expired\0 certificate").await;
        drop(near);
        refused
    };
    let (refused, heard) = tokio::join!(refused, application);
    assert!(refused);
    let text = String::from_utf8_lossy(&heard);
    assert!(text.starts_with("NE"), "{text}");
    assert!(
        text.contains("C08006\0Megress: expired certificate\0\0"),
        "{text}"
    );
    let length = u32::from_be_bytes([heard[2], heard[3], heard[4], heard[5]]);
    assert_eq!(length as usize, heard.len() - 2);

    for (protocol, wanted) in [
        (StartTls::Smtp, "421 4.7.0 no? TLS\r\n"),
        (StartTls::Imap, "* BYE no? TLS\r\n"),
    ] {
        let (mut near, mut far) = duplex(1024);
        far.shutdown().await.unwrap();
        assert!(refuse(protocol, &mut near, "no\r TLS").await);
        drop(near);
        let mut heard = String::new();
        far.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, wanted);
    }
    let words = mysql::error_packet(2, true, &"x".repeat(9_999));
    assert_eq!(words[3..7], [2, 0xff, 0x13, 0x04]);
    assert!(words.len() < 520);
}

proptest! {
    /// No peer can make a parser panic, or read past what it may.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = ldap::parse(&bytes);
        let _ = imap::without_capabilities(&bytes);
        let _ = mysql::parse_greeting(&bytes);
        let _ = mysql::ssl_request(&bytes);
        let _ = mysql::switched_nonce(&bytes);
        let _ = postgres::without_channel_binding(&bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for protocol in [
            StartTls::Postgres,
            StartTls::Mysql,
            StartTls::Smtp,
            StartTls::Imap,
            StartTls::Ldap,
        ] {
            runtime.block_on(async {
                let (mut near, mut far) = duplex(64 * 1024);
                far.write_all(&bytes).await.unwrap();
                far.shutdown().await.unwrap();
                let _ = begin(protocol, &mut near, None).await;
            });
        }
        let _ = runtime.block_on(startup_of(&bytes));
    }

    /// A good greeting that is cut anywhere is refused or understood alike.
    #[test]
    fn greetings_of_any_shape_lose_only_the_flag(
        version in "[ -~]{0,40}",
        flags in any::<u16>(),
        rest in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut payload = vec![10];
        payload.extend(version.as_bytes());
        payload.push(0);
        payload.extend([1, 2, 3, 4]);
        payload.extend(b"12345678\0");
        let at = payload.len();
        payload.extend(flags.to_le_bytes());
        payload.extend(&rest);
        let parsed = mysql::parse_greeting(&payload);
        prop_assert_eq!(parsed.is_ok(), flags & 0x0a00 == 0x0a00);
        if let Ok(greeting) = parsed {
            let mut wanted = payload.clone();
            wanted[at + 1] &= !0x08;
            prop_assert_eq!(greeting.parts().0, &wanted[..]);
        }
    }

    /// What is offered stays in order, and is a message again.
    #[test]
    fn offers_without_channel_binding(
        names in prop::collection::vec("[A-Z0-9-]{1,20}(-PLUS)?", 1..6),
    ) {
        let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
        let kept: Vec<&str> = borrowed
            .iter()
            .copied()
            .filter(|name| !name.ends_with("-PLUS"))
            .collect();
        let rewritten = postgres::without_channel_binding(&sasl(&borrowed));
        if kept.is_empty() {
            prop_assert!(rewritten.is_none());
        } else {
            prop_assert_eq!(rewritten.unwrap(), sasl(&kept));
        }
    }
}
