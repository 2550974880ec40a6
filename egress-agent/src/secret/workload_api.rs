//! The identity of this node's agent from a SPIFFE Workload API (SPIFFE's
//! standard of that name, section 5.2, "X.509-SVID Profile"): one gRPC call on a
//! Unix socket, whose answers are a stream, one for each renewal.
//!
//! The call has one message without fields and one shape of answer, so the few
//! lines of gRPC and protobuf that it needs stand here.

use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::Secrets;
use super::source::{MeshIdentity, SecretData};

const METHOD: &str = "http://localhost/SpiffeWorkloadAPI/FetchX509SVID";
/// For connecting and for the head of the answer; the stream itself is open as
/// long as the API is.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest message; bundles of many domains are far below.
const LIMIT: usize = 1024 * 1024;
/// Between two calls, growing while they fail.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why the API gave no identity.
#[derive(Debug)]
enum ApiError {
    Connect(std::io::Error),
    Silent,
    Http(h2::Error),
    Status(StatusCode),
    /// gRPC's own status and text.
    Refused(String, String),
    Malformed(&'static str),
    Ended,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Silent => write!(f, "no answer within {DEADLINE:?}"),
            Self::Http(error) => write!(f, "the call broke: {error}"),
            Self::Status(status) => write!(f, "it answered with HTTP status {status}"),
            // SPIFFE: PermissionDenied (7) when the caller has no identity.
            Self::Refused(code, text) if code == "7" => {
                write!(f, "it has no identity registered for the agent: {text}")
            }
            Self::Refused(code, text) => write!(f, "it refused (gRPC status {code}): {text}"),
            Self::Malformed(what) => write!(f, "its answer cannot be understood: {what}"),
            Self::Ended => f.write_str("it ended the call"),
        }
    }
}

impl From<h2::Error> for ApiError {
    fn from(error: h2::Error) -> Self {
        Self::Http(error)
    }
}

impl Secrets {
    /// Follows the identity that the Workload API gives, for ever; does nothing
    /// where the settings name none.
    pub async fn follow_workload_api(self: Arc<Self>) {
        let Some(MeshIdentity::WorkloadApi(socket)) = &self.settings.mesh else {
            return pending().await;
        };
        let mut pause = PAUSE;
        loop {
            let mut got = false;
            let error = fetch(socket, |svid| {
                got = true;
                self.take_svid(Ok(Arc::new(svid)));
            })
            .await;
            if got {
                pause = PAUSE;
            }
            tracing::warn!(socket = %socket.display(), "SPIFFE Workload API: {error}");
            self.take_svid(Err(error.to_string().into()));
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Calls once, and tells every identity that comes; returns how it ended.
async fn fetch(socket: &Path, mut tell: impl FnMut(SecretData)) -> ApiError {
    match call(socket, &mut tell).await {
        Ok(()) => ApiError::Ended,
        Err(error) => error,
    }
}

async fn call(socket: &Path, tell: &mut dyn FnMut(SecretData)) -> Result<(), ApiError> {
    let opening = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(ApiError::Connect)?;
        Ok::<_, ApiError>(h2::client::handshake(stream).await?)
    };
    let (mut sender, connection) = timeout(DEADLINE, opening)
        .await
        .map_err(|_| ApiError::Silent)??;
    let exchange = async {
        let request = Request::builder()
            .method(Method::POST)
            .uri(METHOD)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // Proves that no browser or confused deputy asks.
            .header("workload.spiffe.io", "true")
            .body(())
            .map_err(|_| ApiError::Malformed("the request"))?;
        let (answer, mut body) = sender.send_request(request, false)?;
        // An empty message, not compressed.
        body.send_data(Bytes::from_static(&[0; 5]), true)?;
        let answer = timeout(DEADLINE, answer)
            .await
            .map_err(|_| ApiError::Silent)??;
        if answer.status() != StatusCode::OK {
            return Err(ApiError::Status(answer.status()));
        }
        refused(answer.headers())?;
        let mut stream = answer.into_body();
        let mut buffer = Zeroizing::new(Vec::new());
        while let Some(part) = stream.data().await {
            let part = part?;
            let _ = stream.flow_control().release_capacity(part.len());
            buffer.extend_from_slice(&part);
            while let Some(message) = message(&mut buffer)? {
                tell(svid(&message)?);
            }
        }
        match stream.trailers().await? {
            Some(trailers) => refused(&trailers),
            None => Ok(()),
        }
    };
    tokio::select! {
        done = exchange => done,
        ended = connection => match ended {
            Err(error) => Err(error.into()),
            Ok(()) => Err(ApiError::Ended),
        },
    }
}

/// gRPC's status, where the headers have one.
fn refused(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| {
        let value = headers.get(name);
        value.map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .escape_debug()
                .to_string()
        })
    };
    match text("grpc-status") {
        Some(code) if code != "0" => {
            let words = text("grpc-message").unwrap_or_default();
            Err(ApiError::Refused(code, words.chars().take(300).collect()))
        }
        _ => Ok(()),
    }
}

/// The first message of a gRPC stream, once it is complete.
fn message(buffer: &mut Zeroizing<Vec<u8>>) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
    let Some((&[compressed, a, b, c, d], rest)) = buffer.split_first_chunk::<5>() else {
        return Ok(None);
    };
    if compressed != 0 {
        return Err(ApiError::Malformed("it is compressed"));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > LIMIT {
        return Err(ApiError::Malformed("it is too long"));
    }
    let Some(message) = rest.get(..length) else {
        return Ok(None);
    };
    let message = Zeroizing::new(message.to_vec());
    let left = Zeroizing::new(rest[length..].to_vec());
    *buffer = left;
    Ok(Some(message))
}

/// The first SVID of an `X509SVIDResponse`, which is the one to use where
/// nothing else says, as PEM.
fn svid(response: &[u8]) -> Result<SecretData, ApiError> {
    const SVIDS: u64 = 1;
    const CHAIN: u64 = 2;
    const KEY: u64 = 3;
    const BUNDLE: u64 = 4;
    let first = field(response, SVIDS)?.ok_or(ApiError::Malformed("it has no identity"))?;
    let part = |number, what| field(first, number)?.ok_or(ApiError::Malformed(what));
    let mut data: SecretData = BTreeMap::new();
    let chain = certificates(part(CHAIN, "an identity has no certificate")?)?;
    data.insert("tls.crt".into(), Arc::new(chain));
    let bundle = certificates(part(BUNDLE, "an identity has no roots")?)?;
    data.insert("ca.crt".into(), Arc::new(bundle));
    let mut key = Zeroizing::new(Vec::new());
    pem(
        "PRIVATE KEY",
        part(KEY, "an identity has no key")?,
        &mut key,
    );
    data.insert("tls.key".into(), Arc::new(key));
    Ok(data)
}

/// The first field with this number that is a sequence of bytes (protobuf's
/// wire type 2).
fn field(mut message: &[u8], wanted: u64) -> Result<Option<&[u8]>, ApiError> {
    let torn = || ApiError::Malformed("a field is cut short");
    while !message.is_empty() {
        let tag = varint(&mut message).ok_or_else(torn)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut message).ok_or_else(torn)?;
                continue;
            }
            1 => 8,
            2 => varint(&mut message).ok_or_else(torn)?,
            5 => 4,
            _ => return Err(ApiError::Malformed("a field of an unknown kind")),
        };
        let length = usize::try_from(length).map_err(|_| torn())?;
        let (content, rest) = message.split_at_checked(length).ok_or_else(torn)?;
        if tag & 7 == 2 && tag >> 3 == wanted {
            return Ok(Some(content));
        }
        message = rest;
    }
    Ok(None)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(7 * place)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// DER certificates that stand one behind the other, as PEM.
fn certificates(mut der: &[u8]) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let torn = || ApiError::Malformed("a certificate is cut short");
    let mut text = Zeroizing::new(Vec::new());
    while !der.is_empty() {
        // SEQUENCE, then a length of one byte, or of as many as that says.
        let [0x30, first, rest @ ..] = der else {
            return Err(ApiError::Malformed("a certificate is none"));
        };
        let (head, length) = match first {
            0..=0x7f => (2, usize::from(*first)),
            0x81..=0x83 => {
                let count = usize::from(first & 0x7f);
                let bytes = rest.get(..count).ok_or_else(torn)?;
                let length = bytes.iter().fold(0, |l, byte| l << 8 | usize::from(*byte));
                (2 + count, length)
            }
            _ => return Err(ApiError::Malformed("a certificate is none")),
        };
        let (one, rest) = der.split_at_checked(head + length).ok_or_else(torn)?;
        pem("CERTIFICATE", one, &mut text);
        der = rest;
    }
    if text.is_empty() {
        return Err(ApiError::Malformed("there are no certificates"));
    }
    Ok(text)
}

fn pem(label: &str, der: &[u8], out: &mut Zeroizing<Vec<u8>>) {
    let body = Zeroizing::new(STANDARD.encode(der));
    // In one piece, so that growing leaves no copy of a key behind.
    let lines = body.len() / 64 + 1;
    out.reserve_exact(body.len() + lines + 2 * label.len() + 40);
    out.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
    for line in body.as_bytes().chunks(64) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "tests"
    )]

    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};
    use tempfile::tempdir;
    use tokio::net::UnixListener;

    use super::*;
    use crate::policy::model::{ClientTls, Identity, Trust};
    use crate::secret::SecretSettings;

    fn bytes_field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        let mut length = content.len();
        while length >= 0x80 {
            field.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        field.push(u8::try_from(length).unwrap());
        field.extend(content);
        field
    }

    /// A response with one identity, and what it is made of.
    fn response(id: &str) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![id.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let svid = [
            bytes_field(1, format!("spiffe://{id}").as_bytes()),
            bytes_field(2, certificate.der()),
            bytes_field(3, key.serialized_der()),
            bytes_field(4, &[certificate.der().as_ref(), certificate.der()].concat()),
        ]
        .concat();
        bytes_field(1, &svid)
    }

    fn grpc(message: &[u8]) -> Bytes {
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend(message);
        framed.into()
    }

    /// A Workload API that gives these answers, in pieces, and then this
    /// status.
    async fn serve(listener: UnixListener, answers: Vec<Vec<u8>>, status: &'static str) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
        assert_eq!(request.headers()["workload.spiffe.io"], "true");
        let head = http::Response::new(());
        let mut body = respond.send_response(head, false).unwrap();
        for answer in answers {
            let framed = grpc(&answer);
            let middle = framed.len() / 2;
            body.send_data(framed.slice(..middle), false).unwrap();
            body.send_data(framed.slice(middle..), false).unwrap();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        body.send_trailers(trailers).unwrap();
        pending::<()>().await;
    }

    fn mesh() -> ClientTls {
        ClientTls {
            identity: Identity::Mesh,
            trust: Trust::Mesh,
            ..ClientTls::simple()
        }
    }

    #[tokio::test]
    async fn identities_are_taken_and_kept_when_the_api_goes() {
        let directory = tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answers = vec![response("one.example"), response("two.example")];
        tokio::spawn(serve(listener, answers, "14"));
        let secrets = Secrets::new(SecretSettings {
            mesh: Some(MeshIdentity::parse(Path::new(&format!(
                "unix://{}",
                socket.display()
            )))),
            ..SecretSettings::default()
        });
        let namespace: Arc<str> = "a".into();
        let error = secrets.client_config(&mesh(), &namespace).unwrap_err();
        assert!(error.to_string().contains("not been asked"), "{error}");
        let mut seen = Vec::new();
        let end = fetch(&socket, |data| {
            secrets.take_svid(Ok(Arc::new(data)));
            let config = secrets.client_config(&mesh(), &namespace).unwrap();
            assert!(config.mutual);
            seen.push(config.certificate().unwrap().names.clone());
        })
        .await;
        assert_eq!(seen, [["one.example"], ["two.example"]]);
        assert!(end.to_string().contains("gRPC status 14"), "{end}");
        // What was good stays in force.
        secrets.take_svid(Err(end.to_string().into()));
        let config = secrets.client_config(&mesh(), &namespace).unwrap();
        assert_eq!(config.certificate().unwrap().names, ["two.example"]);
    }

    #[tokio::test]
    async fn an_agent_without_identity_learns_why() {
        let directory = tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(serve(listener, Vec::new(), "7"));
        let end = fetch(&socket, |_| panic!("an identity")).await;
        assert!(end.to_string().contains("no identity registered"), "{end}");
        let end = fetch(&directory.path().join("none"), |_| {}).await;
        assert!(end.to_string().contains("cannot connect"), "{end}");
    }

    #[test]
    fn files_of_either_layout_are_an_identity() {
        for names in super::super::source::MESH_FILES {
            let directory = tempdir().unwrap();
            let data = svid(&response("files.example")).unwrap();
            for (name, key) in names.iter().zip(["tls.crt", "tls.key", "ca.crt"]) {
                std::fs::write(directory.path().join(name), &***data[key]).unwrap();
            }
            let secrets = Secrets::new(SecretSettings {
                mesh: Some(MeshIdentity::parse(directory.path())),
                ..SecretSettings::default()
            });
            let config = secrets.client_config(&mesh(), &"a".into()).unwrap();
            assert_eq!(config.certificate().unwrap().names, ["files.example"]);
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = svid(&bytes);
            let _ = certificates(&bytes);
            let _ = message(&mut Zeroizing::new(bytes));
        }

        #[test]
        fn a_cut_answer_is_refused(cut in 1_usize..400) {
            let whole = response("cut.example");
            let cut = cut.min(whole.len() - 1);
            prop_assert!(svid(&whole[..whole.len() - cut]).is_err());
        }
    }
}
