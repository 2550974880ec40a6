//! HTTP/1 byte streams, generated and hostile: what the agent forwards is
//! understood by the server as the agent understood it, and what could be
//! understood in two ways is not forwarded.
#![allow(clippy::panic, reason = "tests")]

use lab::agent::Agent;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply};
use lab::nginx::{Nginx, RunningNginx};
use lab::{Lab, RESOLVER, Result};

const HOST: &str = "wire.example.com";
const NGINX: &str = "203.0.113.10:80";

fn document(address: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: wire, namespace: default}}
spec:
  hosts: [{HOST}]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: {address}}}]
"
    )
}

struct Scene {
    agent: Agent,
    nginx: RunningNginx,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        Ok(Self {
            _dns: NameServer::start(&lab, RESOLVER, "")?,
            nginx: Nginx::new(&lab, "wire").http(NGINX)?.start()?,
            agent: lab
                .agent()
                .policy("wire", &document("203.0.113.10"))?
                .start()?,
            lab,
        })
    }
}

/// `talk(address, stream)`: what comes back for these bytes, as a list of
/// statuses, and whether the other side closed.
const TALK: &str = r#"
import socket, sys, random, time
def answers(data):
    out = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            out.append("cut")
            break
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        fields = {l.split(b":", 1)[0].lower(): l.split(b":", 1)[1].strip() for l in lines[1:]}
        if status == 100:
            data = rest
            continue
        length = int(fields.get(b"content-length", 0))
        out.append((status, rest[:length]))
        data = rest[length:]
    return out
def talk(address, stream, pieces=1, patience=0.4):
    s = socket.create_connection((address, 80), timeout=10)
    step = max(1, len(stream) // pieces)
    try:
        for at in range(0, len(stream), step):
            s.sendall(stream[at:at + step])
            if pieces > 1:
                time.sleep(0.002)
    except (BrokenPipeError, ConnectionResetError):
        pass
    data, closed = b"", False
    s.settimeout(patience)
    try:
        while True:
            got = s.recv(65536)
            if not got:
                closed = True
                break
            data += got
    except TimeoutError:
        pass
    except ConnectionResetError:
        closed = True
    s.close()
    return answers(data), closed
"#;

#[test]
fn shapes_that_smuggle_are_refused_with_400_and_the_end_of_the_connection() -> Result<()> {
    let scene = Scene::new()?;
    let script = format!(
        r#"{TALK}
H = b"host: {HOST}\r\n"
second = b"GET /smuggled HTTP/1.1\r\n" + H + b"\r\n"
shapes = {{
  "both lengths": b"POST / HTTP/1.1\r\n" + H + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
  "two lengths": b"POST / HTTP/1.1\r\n" + H + b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
  "equal lengths": b"POST / HTTP/1.1\r\n" + H + b"content-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
  "list of lengths": b"POST / HTTP/1.1\r\n" + H + b"content-length: 4, 4\r\n\r\nabcd",
  "signed length": b"POST / HTTP/1.1\r\n" + H + b"content-length: +4\r\n\r\nabcd",
  "hex length": b"POST / HTTP/1.1\r\n" + H + b"content-length: 0x4\r\n\r\nabcd",
  "huge length": b"POST / HTTP/1.1\r\n" + H + b"content-length: 99999999999999999999\r\n\r\n",
  "obs-fold": b"GET / HTTP/1.1\r\n" + H + b"x-a: b\r\n c\r\n\r\n",
  "bare LF": b"GET / HTTP/1.1\n" + H + b"\r\n",
  "bare LF in headers": b"GET / HTTP/1.1\r\n" + H + b"x-a: b\nx-c: d\r\n\r\n",
  "bare CR": b"GET / HTTP/1.1\r\n" + H + b"x-a: b\rc\r\n\r\n",
  "NUL": b"GET / HTTP/1.1\r\n" + H + b"x-a: b\x00c\r\n\r\n",
  "space before colon": b"POST / HTTP/1.1\r\n" + H + b"content-length : 4\r\n\r\nabcd",
  "tab before colon": b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding\t: chunked\r\n\r\n0\r\n\r\n",
  "no colon": b"GET / HTTP/1.1\r\n" + H + b"nonsense\r\n\r\n",
  "empty name": b"GET / HTTP/1.1\r\n" + H + b": value\r\n\r\n",
  "two hosts": b"GET / HTTP/1.1\r\n" + H + b"host: other.example.com\r\n\r\n",
  "no host": b"GET / HTTP/1.1\r\nx-a: b\r\n\r\n",
  "bad host": b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
  "two codings": b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
  "chunked in 1.0": b"POST / HTTP/1.0\r\n" + H + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
  "two spaces": b"GET  / HTTP/1.1\r\n" + H + b"\r\n",
  "tab in line": b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n",
  "no version": b"GET /\r\n" + H + b"\r\n",
  "lower version": b"GET / http/1.1\r\n" + H + b"\r\n",
  "leading space": b" GET / HTTP/1.1\r\n" + H + b"\r\n",
  "binary": bytes(range(128, 160)) + b"\r\n\r\n",
  "other scheme": b"GET ftp://{HOST}/ HTTP/1.1\r\n" + H + b"\r\n",
  "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
}}
coded = {{
  "two codings in one": (b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
  "odd coding": (b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
  "quoted coding": (b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 501),
  "odd version": (b"GET / HTTP/1.12\r\n" + H + b"\r\n", 505),
  "long target": (b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\n" + H + b"\r\n", 414),
  "endless target": (b"GET /" + b"a" * 90000, 414),
  "large headers": (b"GET / HTTP/1.1\r\n" + H + b"x-a: " + b"b" * 70000 + b"\r\n\r\n", 431),
  "many headers": (b"GET / HTTP/1.1\r\n" + H + b"".join(b"x-%d: y\r\n" % n for n in range(150)) + b"\r\n", 431),
}}
for name, shape in shapes.items():
    coded[name] = (shape, 400)
bodies = {{
  "chunk size": b"x\r\n", "negative size": b"-1\r\n", "spaced size": b" 4\r\nabcd\r\n0\r\n\r\n",
  "hex prefix": b"0x4\r\nabcd\r\n0\r\n\r\n", "bare LF size": b"4\nabcd\r\n0\r\n\r\n",
  "no end of chunk": b"4\r\nabcdef\r\n0\r\n\r\n", "long size": b"00000000000000004\r\nabcd\r\n0\r\n\r\n",
  "control in extension": b"4;a\x01\r\nabcd\r\n0\r\n\r\n",
}}
for name, body in bodies.items():
    coded[name] = (b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\n\r\n" + body, 400)
for name, (shape, status) in coded.items():
    for pieces in (1, 7):
        got, closed = talk("{HOST}", shape + second, pieces, 5)
        assert closed, (name, pieces, got)
        # The service may answer before the body turns out to be malformed.
        early = name in bodies and pieces > 1 and got[0][0] == 200
        assert len(got) == 1 and (got[0][0] == status or early), (name, pieces, got)
# CONNECT is refused, and what the connection can do afterwards is its end.
got, closed = talk("{HOST}", b"CONNECT a.example.com:443 HTTP/1.1\r\nhost: a.example.com:443\r\n\r\n" + second, 1, 5)
assert closed and [a[0] for a in got] == [403], got
print("done")
"#
    );
    let text = scene
        .lab
        .python(&script)
        .deadline(std::time::Duration::from_mins(2))
        .text()?;
    assert_eq!(text, "done\n");
    for request in scene.nginx.requests()? {
        let line = request["request"].to_string();
        assert!(!line.contains("smuggled"), "{line}");
    }
    // Each refused once in the access log, with a word in the log.
    let records = scene.agent.records()?;
    let refused = records.iter().filter(|r| r.has_flag("DPE")).count();
    assert!(refused >= 60, "{refused} of {}", records.len());
    for record in records.iter().filter(|r| !r.has_flag("DPE")) {
        assert_eq!(record.field("response_code"), "200", "{record}");
    }
    let log = scene.agent.log()?;
    assert!(log.contains("something else than HTTP"), "{log}");
    scene.agent.stop()
}

#[test]
fn generated_streams_are_understood_by_both_alike() -> Result<()> {
    let scene = Scene::new()?;
    // The same streams in every short run, so that a change is judged by what
    // it changes; new ones, whose seed a failure tells, in a long one.
    let (rounds, seed) = if lab::long() {
        (6000, "random.randrange(1 << 32)")
    } else {
        (150, "20261121")
    };
    // The servers answer with the request line that they read. For each stream
    // the agent's answers must be a prefix of nginx's own, up to a refusal.
    let script = format!(
        r#"{TALK}
import json, re
seed = {seed}
rng = random.Random(seed)
H = "{HOST}"
def token(): return "".join(rng.choice("abcXYZ019-_~!") for _ in range(rng.randint(1, 8)))
def value(): return "".join(rng.choice("abc XYZ\t,;=\"/\\%") for _ in range(rng.randint(0, 12)))
def body():
    data = bytes(rng.choice(b"GET / HTTP/1.1\r\n0abc:;") for _ in range(rng.randint(0, 60)))
    kind = rng.randrange(4)
    if kind == 0: return "", b""
    if kind == 1: return "Content-Length: %d\r\n" % len(data), data
    out, at = b"", 0
    while at < len(data):
        n = rng.randint(1, 20)
        piece = data[at:at + n]; at += n
        ext = rng.choice([b"", b"", b";a=b", b";q=\"x\""])
        size = rng.choice([b"%x", b"%X", b"0%x"]) % len(piece)
        out += size + ext + b"\r\n" + piece + b"\r\n"
    out += rng.choice([b"0", b"00"]) + b"\r\n" + rng.choice([b"", b"", b"x-trailer: yes\r\n"]) + b"\r\n"
    return rng.choice(["Transfer-Encoding: chunked\r\n", "transfer-encoding:chunked\r\n", "TRANSFER-ENCODING:  Chunked \r\n"]), out
def request(n):
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
    target = "/%d/%s" % (n, rng.choice(["", "a?b=c", "%41", "a//b", "./c", "?", "~x", "a;b", "a,b"]))
    if rng.random() < 0.1: target = "http://" + H + target
    framing, data = body()
    headers = "".join("x-%s: %s\r\n" % (token(), value()) for _ in range(rng.randint(0, 4)))
    parts = ["%s: %s\r\n" % (rng.choice(["Host", "host", "HOST"]), H), framing, headers]
    rng.shuffle(parts)
    empty = rng.choice(["", "", "", "\r\n"])
    return (empty + method + " " + target + " HTTP/1.1\r\n" + "".join(parts) + "\r\n").encode() + data
def mutate(stream):
    stream = bytearray(stream)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        at = rng.randrange(len(stream))
        kind = rng.randrange(6)
        if kind == 0: stream[at] = rng.choice(b"\r\n\t :,;0\x00\x0b\x7f\xffaG")
        elif kind == 1: del stream[at]
        elif kind == 2: stream.insert(at, rng.choice(b"\r\n\t :0\x00a"))
        elif kind == 3:
            other = rng.choice([b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n",
                b"Content-Length: 0\r\n", b"Connection: close\r\n", b"Connection: x-a, keep-alive\r\n", b"Host: b\r\n", b" folded\r\n"])
            line = stream.find(b"\r\n", at)
            if line >= 0: stream[line + 2:line + 2] = other
        elif kind == 4:
            end = stream.find(b"\r\n", at)
            if end >= 0: stream[end:end + 2] = rng.choice([b"\n", b"\r", b"\r\r\n", b"\r\n\r\n", b" \r\n"])
        else: stream[at:at + 1] = stream[at:at + 1] * 2
    return bytes(stream)
def lines(got):
    # What nginx says that it read: the request line, with its target alone
    # since the agent turns the absolute form into the origin's.
    out = []
    for answer in got:
        if answer == "cut": out.append("cut"); continue
        status, text = answer
        if status == 200 and text.startswith(b"{{"):
            r = json.loads(text.decode("latin-1"))["request"].split(" ")
            t = r[1]
            absolute = re.match("https?://[^/?]*", t, re.I)
            if absolute:
                t = t[absolute.end():]
                if not t.startswith("/"): t = "/" + t
            out.append((r[0], t))
        # What nginx refuses by itself, the agent passes on.
        elif b"nginx" in text: out.append(("nginx", status))
        else: out.append(status)
    return out
forwarded = refused = 0
for round in range({rounds}):
    stream = b"".join(request(n) for n in range(rng.randint(1, 4)))
    if rng.random() < 0.7: stream = mutate(stream)
    through, closed = talk(H, stream, rng.choice([1, 1, 3]), 0.15)
    direct, _ = talk("203.0.113.10", stream, 1, 0.1)
    a, b = lines(through), lines(direct)
    for n, one in enumerate(a):
        if isinstance(one, int):
            # Refused by the agent: nothing may follow.
            if one >= 400 and one not in (405,):
                assert n == len(a) - 1, (seed, round, stream, a, b)
                assert closed, (seed, round, stream, a, b)
                refused += 1
                break
        if one == "cut": break
        # Of some headers nginx is stricter than it need be; the agent writes
        # them anew.
        if any(two[0] == "nginx" for two in b[:n + 1]): break
        if one[0] == "nginx": continue
        assert n < len(b) and b[n] == one, (seed, round, stream, a, b)
        forwarded += 1
assert forwarded > {rounds} // 2 and refused > {rounds} // 30, (forwarded, refused)
print("done")
"#
    );
    // nginx itself is asked by somebody whom the agent does not capture, in
    // the same way: the address is no service's.
    let text = scene
        .lab
        .python(&script)
        .deadline(std::time::Duration::from_mins(if lab::long() {
            30
        } else {
            4
        }))
        .text()?;
    assert_eq!(text, "done\n");
    scene.agent.stop()
}

#[test]
fn slow_and_silent_clients_are_cut_off_and_slow_readers_slow_the_service() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let size = 64 * 1024 * 1024;
    let _server = HttpServer::start(&lab, "203.0.113.10:80", move |_| {
        Reply::ok(vec![b'x'; size])
    })?;
    let agent = lab
        .agent()
        .policy("wire", &document("203.0.113.10"))?
        .start()?;
    let memory = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        Ok(line
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_default())
    };
    let before = memory()?;
    let script = format!(
        r#"
import socket, time
readers = []
for n in range(8):
    s = socket.create_connection(("{HOST}", 80), timeout=20)
    s.sendall(b"GET /big HTTP/1.1\r\nhost: {HOST}\r\n\r\n")
    readers.append(s)
time.sleep(2)
# Nobody has read anything yet; then one reads all of it.
s = readers[0]
total = 0
while total < {size}:
    got = s.recv(1 << 20)
    assert got, total
    total += len(got)
print("done")
"#
    );
    assert_eq!(lab.python(&script).text()?, "done\n");
    // Eight answers of 64 MiB: what is held is buffers.
    let grown = memory()? - before;
    assert!(grown < 24 * 1024, "the agent grew by {grown} kB");
    if lab::long() {
        let script = format!(
            r#"
import socket, time
# A head that comes in drops: 408 after thirty seconds.
s = socket.create_connection(("{HOST}", 80), timeout=50)
started = time.monotonic()
s.sendall(b"GET / HTTP/1.1\r\n")
s.settimeout(1)
data = b""
while time.monotonic() - started < 45:
    try:
        s.sendall(b"x")
        got = s.recv(4096)
        data += got
        if not got: break
    except TimeoutError: pass
    except OSError: break
elapsed = time.monotonic() - started
assert 28 < elapsed < 40, elapsed
assert b" 408 " in data, data
print("done")
"#
        );
        let text = lab
            .python(&script)
            .deadline(std::time::Duration::from_mins(1))
            .text()?;
        assert_eq!(text, "done\n");
    }
    agent.stop()
}

#[test]
fn a_server_that_speaks_first_is_never_waited_for_on_a_tcp_port() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let _server =
        lab::tcp::Server::start(&lab, "203.0.113.10:25", lab::tcp::Behaviour::SpeakFirst)?;
    // `maxConnectionDuration` keeps it on the proxied path.
    let document = format!(
        "{}---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: wire, namespace: default}}
spec:
  host: {HOST}
  trafficPolicy: {{connectionPool: {{tcp: {{maxConnectionDuration: 60s}}}}}}
",
        document("203.0.113.10").replace(
            "number: 80, name: http, protocol: HTTP",
            "number: 25, name: tcp, protocol: TCP"
        )
    );
    let agent = lab.agent().policy("wire", &document)?.start()?;
    let script = format!(
        r#"
import socket, time
started = time.monotonic()
s = socket.create_connection(("{HOST}", 25), timeout=8)
assert s.recv(6) == b"hello\n"
assert time.monotonic() - started < 5
s.sendall(b"GET / HTTP/1.1\r\n\r\n")
assert s.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
"#
    );
    lab.python(&script).text()?;
    agent.stop()
}
