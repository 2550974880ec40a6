//! A connection made to be looked at: `egressctl explain --connect`.

use std::cell::Cell;
use std::time::Duration;

use jiff::Timestamp;

use super::dial::{DialContext, dial_prepared};
use super::error::{ConnectError, Phase};
use super::{starttls, tls};
use crate::endpoint::resolved::Destination;
use crate::policy::explain::report::{Certificate, Connection, Handshake};
use crate::secret::{CertificateSummary, iana_name};

/// Connects with the policy's identity by a full handshake, and closes again.
pub async fn inspect(context: &DialContext<'_>, destination: &Destination) -> Connection {
    let mut seen = Connection {
        endpoint: destination.to_string(),
        ..Connection::default()
    };
    if let Err(error) = look(context, destination, &mut seen).await {
        seen.error = Some(error.to_string());
    }
    seen
}

async fn look(
    context: &DialContext<'_>,
    destination: &Destination,
    seen: &mut Connection,
) -> Result<(), ConnectError> {
    let prepared = context
        .tls
        .map(|tls| tls::prepare(context, tls).map(tls::Prepared::anew))
        .transpose()?;
    let own = prepared.as_ref().and_then(tls::Prepared::certificate);
    let own = own.map(ToString::to_string);
    let phase = Cell::new(Phase::Tcp);
    let mut connected = dial_prepared(context, destination, prepared, &phase).await?;
    starttls::start_alone(&mut connected).await?;
    seen.local = connected.local().map(|address| address.to_string());
    seen.tcp_ms = milliseconds(connected.tcp_time);
    seen.tls_ms = milliseconds(connected.tls_time);
    let (Some(facts), Some(session)) = (&connected.tls, connected.stream.session()) else {
        return Ok(());
    };
    let presented = session.peer_certificates().unwrap_or_default();
    seen.tls = Some(Handshake {
        version: facts.version_name().to_owned(),
        cipher: facts.cipher.map(iana_name).unwrap_or_default(),
        sni: facts.sni.as_deref().map(str::to_owned),
        alpn: session
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        client_certificate: own,
        chain: presented
            .iter()
            .filter_map(|der| CertificateSummary::read(der))
            .map(|certificate| Certificate {
                days_left: certificate.days_left(Timestamp::now()),
                not_after: certificate.not_after.to_string(),
                subject: certificate.subject,
                issuer: certificate.issuer,
                names: certificate.names,
                serial: certificate.serial,
            })
            .collect(),
    });
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
