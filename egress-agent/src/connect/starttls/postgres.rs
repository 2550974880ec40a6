//! PostgreSQL (chapter "Frontend/Backend Protocol", section "Message Flow"):
//! SSLRequest towards the server; `N` to an application that asks for TLS or
//! GSSAPI encryption of its own; and no offer of channel binding, since the
//! application has no TLS to bind to (libpq ends a connection whose server
//! offers it without).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::StartTlsFailure;
use super::{TEXT, farewell, quoted};
use crate::policy::model::StartTls;

const PROTOCOL: StartTls = StartTls::Postgres;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
/// `MAX_STARTUP_PACKET_LENGTH` of the server.
const STARTUP_LIMIT: u32 = 10_000;
/// Longest message that is looked into before authentication.
const MESSAGE_LIMIT: u32 = 64 * 1024;
/// Messages before the first request for authentication: notices, and what
/// the server does not know of the protocol version.
const MESSAGES: usize = 20;
/// AuthenticationSASL.
const SASL: [u8; 4] = 10_u32.to_be_bytes();

/// Asks for TLS.
pub(super) async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
) -> Result<(), StartTlsFailure> {
    let mut request = [0; 8];
    request[3] = 8;
    request[4..].copy_from_slice(&SSL_REQUEST.to_be_bytes());
    let written = stream.write_all(&request).await;
    written.map_err(StartTlsFailure::broken)?;
    match stream.read_u8().await.map_err(StartTlsFailure::broken)? {
        b'S' => Ok(()),
        b'N' => {
            let words = "it answered N to SSLRequest (ssl = off)".to_owned();
            Err(StartTlsFailure::Refused(PROTOCOL, words))
        }
        b'E' => {
            let words = read_error(stream).await;
            Err(StartTlsFailure::Refused(PROTOCOL, words))
        }
        _ => Err(StartTlsFailure::NotSpoken(PROTOCOL)),
    }
}

/// The text of an ErrorResponse whose type has been read. It came in the
/// clear, so it is the log's and not the application's.
async fn read_error<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut text = Vec::new();
    let _ = stream.take(512).read_to_end(&mut text).await;
    let fields = text.get(4..).unwrap_or_default().split(|byte| *byte == 0);
    fields
        .filter_map(|field| field.strip_prefix(b"M"))
        .map(quoted)
        .next()
        .unwrap_or_else(|| "it answered with an error".to_owned())
}

/// What an application wants.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Startup {
    /// A session; the packet.
    Session(Vec<u8>),
    /// To cancel a query of another connection; the packet.
    Cancel(Vec<u8>),
}

/// Reads the application's first packet, and answers what comes before it.
pub(super) async fn startup<C: AsyncRead + AsyncWrite + Unpin>(
    client: &mut C,
) -> Result<Startup, StartTlsFailure> {
    let (mut ssl, mut gss) = (false, false);
    loop {
        let packet = match read_startup(client).await {
            Err(StartTlsFailure::ClientLeft) if ssl => {
                return Err(StartTlsFailure::ClientInsists(PROTOCOL));
            }
            read => read?,
        };
        let asked = match packet.get(4..8).map(<[u8; 4]>::try_from) {
            Some(Ok(code)) => u32::from_be_bytes(code),
            _ => return Err(StartTlsFailure::ClientMisspoke(PROTOCOL, "a short packet")),
        };
        let before = match asked {
            SSL_REQUEST => &mut ssl,
            GSSENC_REQUEST => &mut gss,
            CANCEL_REQUEST => return Ok(Startup::Cancel(packet)),
            _ => return Ok(Startup::Session(packet)),
        };
        if *before || packet.len() != 8 {
            return Err(StartTlsFailure::ClientMisspoke(
                PROTOCOL,
                "a request for encryption twice, or of an odd length",
            ));
        }
        *before = true;
        client
            .write_all(b"N")
            .await
            .map_err(StartTlsFailure::client)?;
    }
}

async fn read_startup<C: AsyncRead + Unpin>(client: &mut C) -> Result<Vec<u8>, StartTlsFailure> {
    let length = client.read_u32().await.map_err(StartTlsFailure::client)?;
    if !(8..=STARTUP_LIMIT).contains(&length) {
        return Err(StartTlsFailure::ClientMisspoke(
            PROTOCOL,
            "its first packet has an impossible length",
        ));
    }
    let mut packet = vec![0; length as usize];
    packet[..4].copy_from_slice(&length.to_be_bytes());
    let read = client.read_exact(&mut packet[4..]).await;
    read.map_err(StartTlsFailure::client)?;
    Ok(packet)
}

/// From the application's first packet to the server's request for
/// authentication. `server` is the connection inside TLS.
pub(super) async fn open<C, S>(client: &mut C, server: &mut S) -> Result<(), StartTlsFailure>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let packet = match startup(client).await? {
        // The server answers with the end of the connection alone.
        Startup::Cancel(packet) => return send(server, &packet).await,
        Startup::Session(packet) => packet,
    };
    send(server, &packet).await?;
    // Only version 3 has messages of this form.
    if packet.get(4..6) != Some(&[0, 3]) {
        return Ok(());
    }
    for _ in 0..MESSAGES {
        let mut message = vec![0; 5];
        match server.read_exact(&mut message).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                // As if it had been relayed: the end is the server's answer.
                return Ok(());
            }
            Err(error) => return Err(StartTlsFailure::Broken(error)),
        }
        let (kind, length) = (message[0], [message[1], message[2], message[3], message[4]]);
        let length = u32::from_be_bytes(length);
        let looked_into = matches!(kind, b'R' | b'v' | b'N');
        if !looked_into || !(4..=MESSAGE_LIMIT).contains(&length) {
            // An error, or nothing that we know: the application's affair.
            return answer(client, &message).await;
        }
        message.resize(length as usize + 1, 0);
        let read = server.read_exact(&mut message[5..]).await;
        read.map_err(StartTlsFailure::broken)?;
        if kind != b'R' {
            answer(client, &message).await?;
            continue;
        }
        let Some(message) = without_channel_binding(&message) else {
            let failure = StartTlsFailure::ChannelBinding;
            farewell(client, &error_response(&failure.to_string())).await;
            return Err(failure);
        };
        return answer(client, &message).await;
    }
    Ok(())
}

/// An Authentication message without the mechanisms that bind to TLS; `None`
/// where no other mechanism is left.
pub(super) fn without_channel_binding(message: &[u8]) -> Option<Vec<u8>> {
    if message.get(5..9) != Some(&SASL) {
        return Some(message.to_vec());
    }
    let names = message[9..]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !name.ends_with(b"-PLUS"));
    let mut rewritten = message[..9].to_vec();
    for name in names {
        rewritten.extend(name);
        rewritten.push(0);
    }
    if rewritten.len() == 9 {
        return None;
    }
    rewritten.push(0);
    let length = u32::try_from(rewritten.len() - 1).ok()?;
    rewritten[1..5].copy_from_slice(&length.to_be_bytes());
    Some(rewritten)
}

async fn send<S: AsyncWrite + Unpin>(server: &mut S, bytes: &[u8]) -> Result<(), StartTlsFailure> {
    let sent = async {
        server.write_all(bytes).await?;
        server.flush().await
    };
    sent.await.map_err(StartTlsFailure::broken)
}

async fn answer<C: AsyncWrite + Unpin>(
    client: &mut C,
    bytes: &[u8],
) -> Result<(), StartTlsFailure> {
    client
        .write_all(bytes)
        .await
        .map_err(StartTlsFailure::client)
}

/// An ErrorResponse with SQLSTATE 08006, connection failure.
pub(super) fn error_response(why: &str) -> Vec<u8> {
    let why: String = why.chars().filter(|c| *c != '\0').take(TEXT).collect();
    let mut message = vec![b'E', 0, 0, 0, 0];
    for field in ["SFATAL", "VFATAL", "C08006", &format!("Megress: {why}")] {
        message.extend(field.as_bytes());
        message.push(0);
    }
    message.push(0);
    let length = u32::try_from(message.len() - 1).unwrap_or_default();
    message[1..5].copy_from_slice(&length.to_be_bytes());
    message
}
