//! MySQL and MariaDB (chapter "Connection Phase" of the protocol's manual; the
//! same in MariaDB's knowledge base).
//!
//! The server greets in the clear. The application gets the greeting without
//! `CLIENT_SSL`; what it answers tells us the capabilities that our SSLRequest
//! must name, and goes on inside TLS, one number later, since the SSLRequest
//! is a packet too. The numbers of both sides are kept apart until the server
//! ends authentication; with the first command both start anew.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::error::StartTlsFailure;
use super::packets::{PacketError, Packets, packet};
use super::password::password_key;
use super::{ConnectError, Connected, TEXT, Waiting, farewell, plain_text, quoted};
use crate::connect::Stream;
use crate::policy::model::StartTls;

const PROTOCOL: StartTls = StartTls::Mysql;

const CLIENT_PROTOCOL_41: u16 = 1 << 9;
const CLIENT_SSL: u16 = 1 << 11;
/// Capabilities, longest packet, character set, and 23 bytes of which MariaDB
/// uses the last four for capabilities of its own: all of it is in the
/// SSLRequest as it is in the answer to the greeting.
const SSL_REQUEST: usize = 32;

/// First byte of a server's packet.
const OK: u8 = 0x00;
const MORE_DATA: u8 = 0x01;
const AUTH_SWITCH: u8 = 0xfe;
const ERR: u8 = 0xff;
/// `caching_sha2_password`: the server wants the password itself.
const FULL_AUTHENTICATION: [u8; 2] = [MORE_DATA, 4];
/// `caching_sha2_password`: the application wants the server's public key.
const PUBLIC_KEY_REQUEST: [u8; 1] = [2];
/// Length of a server's nonce.
const NONCE: usize = 20;
/// Packets of one authentication; plug-ins such as Kerberos take several.
const PACKETS: usize = 100;

/// A server's greeting (`HandshakeV10`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::connect) struct Greeting {
    /// For the application: without `CLIENT_SSL`.
    payload: Vec<u8>,
    nonce: Vec<u8>,
}

#[cfg(test)]
impl Greeting {
    /// What the application is shown, and the nonce.
    pub(super) fn parts(&self) -> (&[u8], &[u8]) {
        (&self.payload, &self.nonce)
    }
}

/// Reads the greeting of a server that has TLS.
pub(super) async fn greeting<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
) -> Result<Greeting, StartTlsFailure> {
    let payload = Packets::new(stream, 0).read().await.map_err(of_server)?;
    if payload.first() == Some(&ERR) {
        let words = quoted(payload.get(3..).unwrap_or_default());
        return Err(StartTlsFailure::Refused(PROTOCOL, words));
    }
    parse_greeting(&payload)
}

pub(super) fn parse_greeting(payload: &[u8]) -> Result<Greeting, StartTlsFailure> {
    let not_spoken = StartTlsFailure::NotSpoken(PROTOCOL);
    let Some((10, rest)) = payload.split_first() else {
        return Err(not_spoken);
    };
    let Some(version) = memchr::memchr(0, rest) else {
        return Err(not_spoken);
    };
    // Thread id (4), first part of the nonce (8), a zero byte, capabilities.
    let nonce_at = 1 + version + 1 + 4;
    let flags_at = nonce_at + 8 + 1;
    let (Some(first), Some(flags)) = (
        payload.get(nonce_at..nonce_at + 8),
        payload.get(flags_at..flags_at + 2),
    ) else {
        return Err(not_spoken);
    };
    let flags = u16::from_le_bytes([flags[0], flags[1]]);
    if flags & CLIENT_PROTOCOL_41 == 0 || flags & CLIENT_SSL == 0 {
        let words = "its greeting does not offer TLS (have_ssl is not YES)".to_owned();
        return Err(StartTlsFailure::Refused(PROTOCOL, words));
    }
    let mut shown = payload.to_vec();
    shown[flags_at..flags_at + 2].copy_from_slice(&(flags & !CLIENT_SSL).to_le_bytes());
    // Character set, status, capabilities, length of the nonce, reserved (10).
    let second_at = flags_at + 2 + 1 + 2 + 2 + 1 + 10;
    let second = payload
        .get(second_at..second_at + NONCE - 8)
        .unwrap_or_default();
    Ok(Greeting {
        payload: shown,
        nonce: [first, second].concat(),
    })
}

/// From the greeting to the end of authentication.
pub(super) async fn open<C: AsyncRead + AsyncWrite + Unpin>(
    client: &mut C,
    waiting: Waiting,
    connected: &mut Connected,
) -> Result<(), ConnectError> {
    let to = waiting.destination.clone();
    let failed = |failure| ConnectError::StartTls {
        to: to.clone(),
        failure,
    };
    let Greeting { payload, nonce } = waiting.greeting.clone();
    let mut client = Packets::new(client, 0);
    client
        .write(&payload)
        .await
        .map_err(|error| failed(StartTlsFailure::client(error)))?;
    let answer = match client.read().await {
        Ok(answer) => answer,
        Err(PacketError::Broken(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            // A client that demands TLS reads the greeting and leaves.
            return Err(failed(StartTlsFailure::ClientInsists(PROTOCOL)));
        }
        Err(error) => return Err(failed(of_client(error))),
    };
    let started = match ssl_request(&answer) {
        Ok(request) => waiting.start(&packet(1, &request), connected).await,
        Err(failure) => Err(failed(failure)),
    };
    if let Err(error) = started {
        let number = client.number();
        let words = error_packet(number, true, &error.to_string());
        farewell(client.stream(), &words).await;
        return Err(error);
    }
    let answer = with_tls(answer);
    authenticate(client, &mut connected.stream, &answer, nonce)
        .await
        .map_err(failed)
}

/// The SSLRequest that fits an answer to the greeting.
pub(super) fn ssl_request(answer: &[u8]) -> Result<[u8; SSL_REQUEST], StartTlsFailure> {
    let misspoke = |why| StartTlsFailure::ClientMisspoke(PROTOCOL, why);
    let Some(head) = answer.first_chunk::<SSL_REQUEST>() else {
        return Err(misspoke("its answer to the greeting is too short"));
    };
    let flags = u16::from_le_bytes([head[0], head[1]]);
    if flags & CLIENT_SSL != 0 {
        return Err(StartTlsFailure::ClientInsists(PROTOCOL));
    }
    if flags & CLIENT_PROTOCOL_41 == 0 {
        return Err(misspoke("its protocol is older than MySQL 4.1"));
    }
    let mut request = *head;
    request[..2].copy_from_slice(&(flags | CLIENT_SSL).to_le_bytes());
    Ok(request)
}

/// The SSLRequest of a client that wants nothing more.
pub(super) fn plain_request() -> Vec<u8> {
    const SECURE_CONNECTION: u16 = 1 << 15;
    let mut request = [0; SSL_REQUEST];
    let flags = CLIENT_PROTOCOL_41 | CLIENT_SSL | SECURE_CONNECTION;
    request[..2].copy_from_slice(&flags.to_le_bytes());
    // 16 MiB, utf8mb4.
    request[7] = 1;
    request[8] = 45;
    packet(1, &request)
}

fn with_tls(mut answer: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if let Some(byte) = answer.get_mut(1) {
        *byte |= CLIENT_SSL.to_le_bytes()[1];
    }
    answer
}

/// Where an application stands that the server has asked for the password.
#[derive(PartialEq, Eq)]
enum Password {
    NotAsked,
    Asked,
    KeySent,
}

/// Passes packets both ways, each side with its own numbers, until the server
/// says that authentication is over.
async fn authenticate<C: AsyncRead + AsyncWrite + Unpin>(
    mut client: Packets<'_, C>,
    stream: &mut Stream,
    answer: &[u8],
    mut nonce: Vec<u8>,
) -> Result<(), StartTlsFailure> {
    let mut server = Packets::new(stream, 2);
    let mut password = Password::NotAsked;
    server
        .write(answer)
        .await
        .map_err(StartTlsFailure::broken)?;
    for _ in 0..PACKETS {
        tokio::select! {
            biased;
            packet = server.read() => {
                let packet = packet.map_err(of_server)?;
                client.write(&packet).await.map_err(StartTlsFailure::client)?;
                match packet.first() {
                    Some(&(OK | ERR)) | None => return hand_over(&client, server).await,
                    Some(&AUTH_SWITCH) => {
                        password = Password::NotAsked;
                        if let Some(next) = switched_nonce(&packet) {
                            nonce = next;
                        }
                    }
                    Some(_) if **packet == FULL_AUTHENTICATION => password = Password::Asked,
                    Some(_) => {}
                }
            }
            packet = client.read() => {
                let packet = packet.map_err(of_client)?;
                match password {
                    Password::Asked if **packet == PUBLIC_KEY_REQUEST => {
                        let key = password_key()
                            .await
                            .ok_or(StartTlsFailure::Password("no key could be made"))?;
                        let words = [&[MORE_DATA], key.public.as_bytes()].concat();
                        client.write(&words).await.map_err(StartTlsFailure::client)?;
                        password = Password::KeySent;
                    }
                    Password::KeySent => {
                        let plain = plain_password(&packet, &nonce).await;
                        let Some(plain) = plain else {
                            let failure = StartTlsFailure::Password("it cannot be decrypted");
                            let number = client.number();
                            let words = error_packet(number, true, &failure.to_string());
                            farewell(client.stream(), &words).await;
                            return Err(failure);
                        };
                        password = Password::NotAsked;
                        server.write(&plain).await.map_err(StartTlsFailure::broken)?;
                    }
                    _ => server.write(&packet).await.map_err(StartTlsFailure::broken)?,
                }
            }
        }
    }
    Err(StartTlsFailure::NotSpoken(PROTOCOL))
}

async fn plain_password(encrypted: &[u8], nonce: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let key = password_key().await?;
    if encrypted.len() != key.size() {
        return None;
    }
    key.decrypt(encrypted, nonce)
}

/// The rest is relayed as it is, from bytes on that the application may have
/// sent ahead.
async fn hand_over<C>(
    client: &Packets<'_, C>,
    mut server: Packets<'_, Stream>,
) -> Result<(), StartTlsFailure> {
    let ahead = client.begun();
    if ahead.is_empty() {
        return Ok(());
    }
    let written = server.stream().write_all(ahead).await;
    written.map_err(StartTlsFailure::broken)
}

/// The nonce of an AuthSwitchRequest: after the plug-in's name.
pub(super) fn switched_nonce(payload: &[u8]) -> Option<Vec<u8>> {
    let rest = payload.get(1..)?;
    let name = memchr::memchr(0, rest)?;
    rest.get(name + 1..name + 1 + NONCE).map(<[u8]>::to_vec)
}

/// An ERR packet: error 1043, bad handshake; with SQLSTATE 08S01 where the
/// application has said that it knows such.
pub(super) fn error_packet(number: u8, state: bool, why: &str) -> Vec<u8> {
    let mut payload = vec![ERR];
    payload.extend(1043_u16.to_le_bytes());
    if state {
        payload.extend(b"#08S01");
    }
    let text = plain_text(&format!("egress: {why}"));
    // The longest message that clients keep is 512 bytes.
    payload.extend(&text.as_bytes()[..text.len().min(TEXT).min(500)]);
    packet(number, &payload)
}

fn of_server(error: PacketError) -> StartTlsFailure {
    match error {
        PacketError::Broken(error) => StartTlsFailure::Broken(error),
        PacketError::TooLong | PacketError::OutOfOrder => StartTlsFailure::NotSpoken(PROTOCOL),
    }
}

fn of_client(error: PacketError) -> StartTlsFailure {
    let misspoke = |why| StartTlsFailure::ClientMisspoke(PROTOCOL, why);
    match error {
        PacketError::Broken(error) => StartTlsFailure::client(error),
        PacketError::TooLong => misspoke("a packet is too long"),
        PacketError::OutOfOrder => misspoke("a packet has the wrong number"),
    }
}
