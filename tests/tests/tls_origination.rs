//! The main job: plain HTTP in, verified TLS 1.3 out, nothing but a policy
//! file written.
#![allow(clippy::panic, reason = "tests")]

use lab::scene::{HOST, REAL, TlsUpstream};
use lab::{CLIENT, RESOLVER, Result};

#[test]
fn plain_http_leaves_as_verified_tls_with_sni() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let TlsUpstream { lab, nginx, .. } = &upstream;
    let agent = upstream.agent()?.start()?;

    let answer = lab
        .curl(&["--fail", &format!("http://{HOST}/orders?id=7")])
        .text()?;
    assert!(answer.contains(r#""server":"api""#), "{answer}");

    let request = nginx.request(1)?;
    assert_eq!(request["protocol"], "TLSv1.3");
    assert_eq!(request["sni"], HOST);
    assert_eq!(request["host"], HOST);
    assert_eq!(request["client"], CLIENT);
    assert_eq!(request["request"], "GET /orders?id=7 HTTP/1.1");

    let record = agent.record("the record of curl's connection", |_| true)?;
    assert_eq!(record.process(), "curl", "{record}");
    assert_eq!(record.service(), HOST, "{record}");
    assert_eq!(record.endpoint(), format!("{REAL}:443"), "{record}");
    assert_eq!(record.flag(), "-", "{record}");
    assert!(record.pid() > 1, "{record}");
    assert!(record.received() > 100, "{record}");
    assert!(record.duration() > 0.0, "{record}");

    lab.curl(&["--fail", "--data", "ten bytes!", &format!("http://{HOST}/")])
        .text()?;
    agent.record("the bytes of a request", |record| record.sent() >= 10)?;
    agent.stop()
}

/// A document as operators have it, word for word: without `caCertificates` the
/// system's roots count, which here are the lab's.
const DOCUMENT: &str = include_str!("policies/07-external-https-api.yaml");

#[test]
fn the_usual_document_works_as_it_stands() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let TlsUpstream { lab, nginx, ca, .. } = &upstream;
    let agent = lab
        .agent()
        .policy("07-external-https-api", DOCUMENT)?
        // The documents are of this namespace; so are the callers then.
        .setting("--namespace", "production")
        .environment("SSL_CERT_FILE", ca)
        .start()?;
    lab.curl(&["--fail", &format!("http://{HOST}/")]).text()?;
    let request = nginx.request(1)?;
    assert_eq!(request["protocol"], "TLSv1.3");
    assert_eq!(request["sni"], HOST);
    agent.stop()
}

#[test]
fn https_goes_through_untouched() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let TlsUpstream { lab, nginx, ca, .. } = &upstream;
    let agent = upstream.agent()?.start()?;
    // The client's own limit shows at the server: nobody has made new TLS.
    lab.curl(&[
        "--fail",
        "--cacert",
        ca,
        "--tls-max",
        "1.2",
        &format!("https://{HOST}/"),
    ])
    .text()?;
    let request = nginx.request(1)?;
    assert_eq!(request["protocol"], "TLSv1.2");
    assert_eq!(request["sni"], HOST);
    // And verification is the client's own.
    let finished = lab.curl(&[&format!("https://{HOST}/")]).output()?;
    assert_eq!(finished.code(), 60, "{finished:?}");
    agent.stop()
}

#[test]
fn tls_on_a_port_with_origination_is_not_wrapped_again() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let TlsUpstream { lab, nginx, ca, .. } = &upstream;
    let agent = upstream.agent()?.start()?;
    lab.curl(&[
        "--fail",
        "--cacert",
        ca,
        "--tls-max",
        "1.2",
        &format!("https://{HOST}:80/"),
    ])
    .text()?;
    assert_eq!(nginx.request(1)?["protocol"], "TLSv1.2");
    agent.stop()
}

#[test]
fn applications_see_the_address_they_dialled_and_never_the_real_one() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let TlsUpstream { lab, .. } = &upstream;
    let agent = upstream.agent()?.start()?;
    let script = format!(
        r#"
import http.client, ipaddress, socket
infos = socket.getaddrinfo("{HOST}", 80, type=socket.SOCK_STREAM)
assert infos
for version, kind, _, _, address in infos:
    ip = ipaddress.ip_address(address[0])
    assert ip in ipaddress.ip_network("240.240.0.0/16") or ip in ipaddress.ip_network("2001:2::/48"), ip
    with socket.socket(version, kind) as s:
        s.settimeout(5)
        s.connect(address)
        assert s.getpeername()[:2] == address[:2], (s.getpeername(), address)
        s.sendall(b"GET /peer HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n")
        assert b" 200 " in s.makefile("rb").readline()
for tcp in (False, True):
    for kind in (A, AAAA, HTTPS, SVCB, TXT):
        answer = query("{RESOLVER}", "{HOST}", kind, tcp=tcp)
        assert "{REAL}" not in answer.addresses(), answer.addresses()
        assert answer.rcode == NOERROR, (kind, answer.rcode)
print(len(infos))
"#
    );
    let families = lab.dns_python(&script).text()?;
    assert_eq!(families.trim(), "2", "one virtual address of each family");
    agent.stop()
}

#[test]
fn http_client_and_asyncio_work_unmodified() -> Result<()> {
    let upstream = TlsUpstream::new()?;
    let TlsUpstream { lab, nginx, .. } = &upstream;
    let agent = upstream.agent()?.start()?;
    let script = format!(
        r#"
import asyncio, http.client, json
connection = http.client.HTTPConnection("{HOST}", timeout=5)
for number in range(3):
    connection.request("GET", f"/keep-alive/{{number}}")
    assert json.load(connection.getresponse())["protocol"] == "TLSv1.3"
connection.close()

async def one(number):
    reader, writer = await asyncio.open_connection("{HOST}", 80)
    writer.write(f"GET /asyncio/{{number}} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n".encode())
    text = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert b"TLSv1.3" in text, text

async def main():
    await asyncio.gather(*(one(number) for number in range(20)))

asyncio.run(main())
"#
    );
    lab.python(&script).text()?;
    nginx.request(23)?;
    for request in nginx.requests()? {
        assert_eq!(request["protocol"], "TLSv1.3", "{request}");
        assert_eq!(request["sni"], HOST, "{request}");
    }
    agent.stop()
}
