//! Real clients, unmodified, through the agent: over plaintext and TLS, to
//! HTTP/1.1 and HTTP/2 services.
#![allow(clippy::panic, reason = "tests")]

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use lab::agent::Agent;
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply};
use lab::nginx::{Nginx, RunningNginx};
use lab::process::{DEADLINE, Process, wait_for};
use lab::{Group, Lab, RESOLVER, Result};

const RECORDER: &str = "10.255.0.1:8080";

/// Services by the way they are reached. The names say how: `plain1` in the
/// clear over HTTP/1.1, `tls2` over TLS and HTTP/2, and so on.
const SERVICES: [(&str, &str, bool, bool); 4] = [
    ("plain1.example.com", "203.0.113.11", false, false),
    ("plain2.example.com", "203.0.113.12", false, true),
    ("tls1.example.com", "203.0.113.13", true, false),
    ("tls2.example.com", "203.0.113.14", true, true),
];

fn service(host: &str, address: &str, port: u16, tls: bool, http2: bool) -> String {
    let name = host.replace('.', "-");
    let tls = if tls { "\n    tls: {mode: SIMPLE}" } else { "" };
    let upgrade = if http2 { "UPGRADE" } else { "DEFAULT" };
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{host}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]
  resolution: STATIC
  endpoints: [{{address: {address}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec:
  host: {host}
  trafficPolicy:
    connectionPool: {{http: {{h2UpgradePolicy: {upgrade}}}}}{tls}
---
"
    )
}

struct Scene {
    agent: Agent,
    server: HttpServer,
    _nginx: RunningNginx,
    _dns: NameServer,
    lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let authority = Authority::new(&lab, "world")?;
        let server = HttpServer::start(&lab, RECORDER, |request| {
            // A digest of what came, so that the client can compare.
            Reply::ok(format!(
                "{} {} {}\n",
                request.method,
                request.target,
                request.body.len()
            ))
        })?;
        let big = lab.directory().join("files");
        std::fs::create_dir(&big)?;
        let size = if lab::long() { 1024 } else { 64 };
        let mut file = File::create(big.join("big"))?;
        let chunk: Vec<u8> = (0..1024 * 1024_u32).map(|at| (at % 251) as u8).collect();
        for _ in 0..size {
            file.write_all(&chunk)?;
        }
        let mut nginx = Nginx::new(&lab, "world");
        let mut documents = String::new();
        for (host, address, tls, http2) in SERVICES {
            let certificate = tls.then(|| authority.issue(&[host])).transpose()?;
            let port = if tls { 443 } else { 80 };
            nginx = nginx
                .proxy(
                    &format!("{address}:{port}"),
                    certificate.as_ref(),
                    http2,
                    RECORDER,
                )?
                .with(&format!(
                    "    location /files/ {{ alias {}/; }}\n    ",
                    big.display()
                ));
            documents.push_str(&service(host, address, port, tls, http2));
        }
        let nginx = nginx.start()?;
        Ok(Self {
            _dns: NameServer::start(&lab, RESOLVER, "")?,
            agent: lab
                .agent()
                .policy("services", &documents)?
                .environment("SSL_CERT_FILE", &authority.path().display().to_string())
                .start()?,
            server,
            _nginx: nginx,
            lab,
        })
    }
}

#[test]
fn curl_speaks_every_version_to_every_service() -> Result<()> {
    let scene = Scene::new()?;
    let mut count = 0;
    for (host, _, tls, http2) in SERVICES {
        for (version, name) in [
            ("--http1.0", "1"),
            ("--http1.1", "1.1"),
            ("--http2-prior-knowledge", "2"),
            // Upgrade: h2c is offered; going on with HTTP/1.1 is allowed.
            ("--http2", "1.1"),
        ] {
            let text = scene
                .lab
                .curl(&[
                    "--fail",
                    version,
                    "--write-out",
                    "%{http_version}",
                    "--data",
                    "twelve bytes",
                    &format!("http://{host}/up?v={name}"),
                ])
                .text()?;
            let (body, spoken) = text.split_once('\n').unwrap_or_default();
            assert_eq!(body, format!("POST /up?v={name} 12"), "{host} {version}");
            // The answer to HTTP/1.0 has the agent's version, 1.1.
            let answered = if name == "1" { "1.1" } else { name };
            assert!(
                [name, answered].contains(&spoken),
                "{host} {version}: {spoken}"
            );
            count += 1;
            let got = scene.server.last()?;
            assert_eq!(got.body, b"twelve bytes");
            assert_eq!(got.header("host"), Some(host));
            let upstream = if http2 { "HTTP/2.0" } else { "HTTP/1.1" };
            assert_eq!(got.header("x-seen-protocol"), Some(upstream), "{host}");
            let wanted = if tls { "TLSv1.3" } else { "" };
            assert_eq!(got.header("x-seen-tls").unwrap_or_default(), wanted);
            for name in ["upgrade", "http2-settings"] {
                assert_eq!(got.header(name), None, "{got:?}");
            }
        }
    }
    assert_eq!(scene.agent.wait_records(count)?.len(), count);
    scene.agent.stop()
}

#[test]
fn large_files_go_up_and_down_whole() -> Result<()> {
    let scene = Scene::new()?;
    let big = scene.lab.directory().join("files/big");
    let size = std::fs::metadata(&big)?.len();
    let limit = if lab::long() { "300" } else { "60" };
    // All of them in a long run; else one of each kind.
    let hosts = if lab::long() {
        &SERVICES[..]
    } else {
        &SERVICES[2..]
    };
    let peak = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", scene.agent.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        Ok(line
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_default())
    };
    let before = peak()?;
    for (host, ..) in hosts {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let down = scene.lab.directory().join("down");
            let down = down.display().to_string();
            let fetched = scene
                .lab
                .curl(&[
                    "--fail",
                    version,
                    "--max-time",
                    limit,
                    "--output",
                    &down,
                    &format!("http://{host}/files/big"),
                ])
                .deadline(Duration::from_mins(5))
                .output()?;
            assert_eq!(fetched.code(), 0, "{host} {version}: {fetched:?}");
            scene
                .lab
                .outsider("cmp")
                .arg(&big)
                .arg(&down)
                .deadline(Duration::from_mins(2))
                .text()?;
            // Its Expect: 100-continue is answered.
            let answer = scene
                .lab
                .curl(&[
                    "--fail",
                    version,
                    "--max-time",
                    limit,
                    "--upload-file",
                    &big.display().to_string(),
                    &format!("http://{host}/upload"),
                ])
                .deadline(Duration::from_mins(5))
                .text()?;
            assert_eq!(answer, format!("PUT /upload {size}\n"), "{host} {version}");
        }
    }
    // Nothing of that size was held: a few buffers for each stream.
    let grown = peak()? - before;
    assert!(grown < 32 * 1024, "the agent grew by {grown} kB");
    scene.agent.stop()
}

#[test]
fn an_expectation_is_answered_before_the_body_comes() -> Result<()> {
    let scene = Scene::new()?;
    for host in ["plain1.example.com", "tls2.example.com"] {
        let finished = scene
            .lab
            .curl(&[
                "--verbose",
                "--expect100-timeout",
                "15",
                "--header",
                "expect: 100-continue",
                "--data",
                "waited for",
                &format!("http://{host}/expect"),
            ])
            .output()?;
        assert!(finished.stderr.contains("100 Continue"), "{finished:?}");
        assert!(finished.elapsed < Duration::from_secs(10), "{finished:?}");
        assert_eq!(finished.stdout, "POST /expect 10\n");
    }
    scene.agent.stop()
}

#[test]
fn h2load_runs_many_streams_and_connections() -> Result<()> {
    let scene = Scene::new()?;
    for (host, ..) in SERVICES {
        for flags in [&["--h1"][..], &[]] {
            let text = scene
                .lab
                .client("h2load")
                .args(flags)
                .args(["-n", "300", "-c", "6", "-m", "5", "-t", "1"])
                .arg(format!("http://{host}/load"))
                .text()?;
            assert!(
                text.contains("300 succeeded, 0 failed, 0 errored, 0 timeout"),
                "{host} {flags:?}: {text}"
            );
        }
    }
    assert_eq!(scene.server.requests().len(), 2400);
    scene.agent.stop()
}

#[test]
fn python_clients_work_unmodified() -> Result<()> {
    let scene = Scene::new()?;
    let script = r#"
import asyncio, http.client, httpx

HOSTS = ["plain1", "plain2", "tls1", "tls2"]
def chunks():
    for n in range(10):
        yield b"x" * n

for name in HOSTS:
    host = name + ".example.com"
    c = http.client.HTTPConnection(host, timeout=20)
    for n in range(5):
        c.request("GET", f"/hc/{n}")
        r = c.getresponse()
        assert (r.status, r.read()) == (200, f"GET /hc/{n} 0\n".encode()), r.status
    c.request("POST", "/chunked", body=chunks(), encode_chunked=True,
              headers={"transfer-encoding": "chunked"})
    r = c.getresponse()
    assert r.read() == b"POST /chunked 45\n"
    c.request("HEAD", "/head")
    r = c.getresponse()
    assert r.status == 200 and r.read() == b""
    c.close()

    for settings in ({}, {"http1": False, "http2": True}):
        with httpx.Client(timeout=20, **settings) as client:
            r = client.get(f"http://{host}/httpx")
            assert r.text == "GET /httpx 0\n", r.text
            assert r.http_version == ("HTTP/2" if settings else "HTTP/1.1"), r.http_version
            r = client.post(f"http://{host}/stream", content=chunks())
            assert r.text == "POST /stream 45\n", r.text

    async def many():
        async with httpx.AsyncClient(timeout=30, http1=False, http2=True) as client:
            answers = await asyncio.gather(
                *(client.post(f"http://{host}/many/{n}", content=b"y" * n) for n in range(40)))
            for n, r in enumerate(answers):
                assert r.text == f"POST /many/{n} {n}\n", r.text
    asyncio.run(many())
print("done")
"#;
    assert_eq!(scene.lab.python_clients(script)?.text()?, "done\n");
    scene.agent.stop()
}

#[test]
fn node_clients_work_unmodified() -> Result<()> {
    let scene = Scene::new()?;
    let script = r"
const http = require('http'), http2 = require('http2');
const fail = e => { console.error(e); process.exit(1); };
process.on('unhandledRejection', fail);
const agent = new http.Agent({keepAlive: true, maxSockets: 4});
const one = (host, n) => new Promise((done, bad) => {
  const r = http.request({host, path: '/node/' + n, method: 'POST', agent}, a => {
    let t = ''; a.on('data', d => t += d); a.on('end', () => done([a.statusCode, t]));
  });
  r.on('error', bad); r.write('a'); r.end('b');
});
const two = (session, host, n) => new Promise((done, bad) => {
  const r = session.request({':path': '/node2/' + n, ':method': 'POST'});
  let t = '', status;
  r.on('response', h => status = h[':status']);
  r.on('data', d => t += d); r.on('end', () => done([status, t])); r.on('error', bad);
  r.write('a'); r.end('b');
});
(async () => {
  for (const name of ['plain1', 'plain2', 'tls1', 'tls2']) {
    const host = name + '.example.com';
    const all = await Promise.all([...Array(20).keys()].map(n => one(host, n)));
    all.forEach(([s, t], n) => { if (s != 200 || t != `POST /node/${n} 2\n`) fail([host, s, t]); });
    const session = http2.connect('http://' + host);
    session.on('error', fail);
    const more = await Promise.all([...Array(20).keys()].map(n => two(session, host, n)));
    more.forEach(([s, t], n) => { if (s != 200 || t != `POST /node2/${n} 2\n`) fail([host, s, t]); });
    session.close();
  }
  agent.destroy();
  console.log('done');
})();
";
    let text = scene.lab.node_in(Group::Clients, script).text()?;
    assert_eq!(text, "done\n");
    scene.agent.stop()
}

/// A Python server in the world; `script` prints `listening`.
fn python_server(lab: &Lab, script: &str) -> Result<Process> {
    let mut server = lab.python_server(script)?.interactive().start()?;
    server.expect_line("listening")?;
    Ok(server)
}

const GRPC_SERVER: &str = r#"
import sys, time, grpc
from concurrent import futures
raw = dict(request_deserializer=None, response_serializer=None)
def unary(request, context):
    metadata = dict(context.invocation_metadata())
    if request == b"slow":
        time.sleep(5)
    if request == b"fail":
        context.set_trailing_metadata((("why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
    context.send_initial_metadata((("begun", "yes"),))
    context.set_trailing_metadata((("ended", metadata.get("asked", "-")),))
    return b"echo " + request
def down(request, context):
    for n in range(int(request)):
        yield b"part %d" % n
def up(requests, context):
    return b"%d" % sum(len(r) for r in requests)
def both(requests, context):
    for r in requests:
        yield r[::-1]
methods = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Down": grpc.unary_stream_rpc_method_handler(down),
    "Up": grpc.stream_unary_rpc_method_handler(up),
    "Both": grpc.stream_stream_rpc_method_handler(both),
}
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Echo", methods),))
for arg in ADDRESSES:
    if arg[1]:
        key, certificate = (open(f, "rb").read() for f in arg[1])
        server.add_secure_port(arg[0], grpc.ssl_server_credentials([(key, certificate)]))
    else:
        server.add_insecure_port(arg[0])
server.start()
print("listening", flush=True)
server.wait_for_termination()
"#;

const GRPC_CLIENT: &str = r#"
import grpc, time
for host in ("grpc.example.com", "grpcs.example.com"):
    channel = grpc.insecure_channel(host + ":80")
    unary = channel.unary_unary("/lab.Echo/Unary")
    answer, call = unary.with_call(b"hello", metadata=(("asked", "x"),), timeout=20)
    assert answer == b"echo hello", answer
    assert dict(call.initial_metadata())["begun"] == "yes"
    assert dict(call.trailing_metadata())["ended"] == "x"
    assert call.code() == grpc.StatusCode.OK
    try:
        unary(b"fail", timeout=20)
        raise SystemExit("no failure")
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.FAILED_PRECONDITION, e
        assert e.details() == "not today", e
        assert dict(e.trailing_metadata())["why"] == "because", e
    started = time.monotonic()
    try:
        unary(b"slow", timeout=0.5)
        raise SystemExit("no deadline")
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.DEADLINE_EXCEEDED, e
    assert time.monotonic() - started < 4
    down = list(channel.unary_stream("/lab.Echo/Down")(b"200", timeout=20))
    assert down == [b"part %d" % n for n in range(200)], down
    up = channel.stream_unary("/lab.Echo/Up")(iter([b"x" * 1000] * 300), timeout=20)
    assert up == b"300000", up
    # Both ways at once: each answer before the next question.
    import queue
    questions = queue.Queue()
    answers = channel.stream_stream("/lab.Echo/Both")(iter(questions.get, None), timeout=20)
    for n in range(50):
        questions.put(b"ab%d" % n)
        assert next(answers) == (b"ab%d" % n)[::-1]
    questions.put(None)
    assert list(answers) == []
    assert answers.code() == grpc.StatusCode.OK
    calls = [unary.future(b"%d" % n, timeout=20) for n in range(100)]
    assert [c.result() for c in calls] == [b"echo %d" % n for n in range(100)]
# An answer of the agent's own is a gRPC one.
channel = grpc.insecure_channel("nobody.example.com:80")
try:
    channel.unary_unary("/lab.Echo/Unary")(b"x", timeout=20)
    raise SystemExit("no failure")
except grpc.RpcError as e:
    assert e.code() == grpc.StatusCode.UNAVAILABLE, e
    assert "UH" in e.details() or "UF" in e.details(), e
print("done")
"#;

#[test]
fn grpc_calls_work_in_all_four_shapes() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let certificate = authority.issue(&["grpcs.example.com"])?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let _server = python_server(
        &lab,
        &format!(
            "ADDRESSES = [('203.0.113.41:80', None), ('203.0.113.42:443', ('{}', '{}'))]\n{GRPC_SERVER}",
            certificate.key.display(),
            certificate.certificate.display()
        ),
    )?;
    let grpc = |document: String| document.replace("protocol: HTTP,", "protocol: GRPC,");
    let agent = lab
        .agent()
        .policy(
            "grpc",
            &[
                grpc(service(
                    "grpc.example.com",
                    "203.0.113.41",
                    80,
                    false,
                    false,
                )),
                grpc(service(
                    "grpcs.example.com",
                    "203.0.113.42",
                    443,
                    true,
                    false,
                )),
                grpc(service(
                    "nobody.example.com",
                    "203.0.113.43",
                    80,
                    false,
                    false,
                )),
            ]
            .concat(),
        )?
        .environment("SSL_CERT_FILE", &authority.path().display().to_string())
        .start()?;
    assert_eq!(lab.python_clients(GRPC_CLIENT)?.text()?, "done\n");
    let record = agent.record("a call that failed", |r| r.field("grpc_status") == "9")?;
    assert_eq!(record.field("protocol"), "HTTP/2", "{record}");
    assert_eq!(record.field("path"), "/lab.Echo/Unary", "{record}");
    agent.stop()
}

const WEBSOCKET_SERVER: &str = r#"
import asyncio, websockets
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main():
    async with websockets.serve(echo, "203.0.113.51", 80, max_size=None):
        print("listening", flush=True)
        await asyncio.get_running_loop().create_future()
asyncio.run(main())
"#;

#[test]
fn websockets_work_over_http1_and_over_an_http2_stream() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let _server = python_server(&lab, WEBSOCKET_SERVER)?;
    let agent = lab
        .agent()
        .policy(
            "ws",
            &service("ws.example.com", "203.0.113.51", 80, false, false),
        )?
        .start()?;
    let script = r#"
import asyncio, websockets
async def main():
    async with websockets.connect("ws://ws.example.com/chat", max_size=None) as socket:
        for message in ("hello", b"\x00\x01", "x" * 300000, b"y" * 1000000):
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), 20) == message
        await (await socket.ping())
    sockets = [await websockets.connect("ws://ws.example.com/") for _ in range(10)]
    for n, socket in enumerate(sockets):
        await socket.send(str(n))
    for n, socket in enumerate(sockets):
        assert await socket.recv() == str(n)
        await socket.close()
asyncio.run(main())
print("done")
"#;
    assert_eq!(lab.python_clients(script)?.text()?, "done\n");
    let record = agent.record("a WebSocket", |r| r.field("path") == "/chat")?;
    assert_eq!(record.field("response_code"), "101", "{record}");
    // Frames that repeat themselves are compressed.
    assert!(record.sent() > 1_000, "{record}");

    // RFC 8441: Node opens the stream, frames are written by hand.
    let script = r"
const http2 = require('http2');
const session = http2.connect('http://ws.example.com');
const fail = e => { console.error(e); process.exit(1); };
session.on('error', fail);
session.on('remoteSettings', settings => {
  if (!settings.enableConnectProtocol) fail('no extended CONNECT');
  const s = session.request({':method': 'CONNECT', ':protocol': 'websocket', ':path': '/h2',
    ':scheme': 'http', ':authority': 'ws.example.com', 'sec-websocket-version': '13'});
  s.on('error', fail);
  s.on('response', h => {
    if (h[':status'] != 200) fail(h);
    // A masked text frame, key 0.
    s.write(Buffer.concat([Buffer.from([0x81, 0x85, 0, 0, 0, 0]), Buffer.from('hello')]));
  });
  let got = Buffer.alloc(0);
  s.on('data', d => {
    got = Buffer.concat([got, d]);
    if (got.length < 7) return;
    if (got[0] != 0x81 || got.subarray(2, 7).toString() != 'hello') fail(got);
    console.log('done');
    process.exit(0);
  });
});
";
    assert_eq!(lab.node_in(Group::Clients, script).text()?, "done\n");
    agent.stop()
}

#[test]
fn goaway_and_resets_of_the_service_fail_no_healthy_request() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    // Every session ends with GOAWAY after three streams; one path is reset,
    // one is refused the first time that it comes.
    let server = r"
const http2 = require('http2');
const server = http2.createServer();
const refused = new Set();
server.on('session', session => {
  let streams = 0;
  session.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    const path = headers[':path'];
    if (++streams == 3) session.goaway(0, stream.id);
    if (path.startsWith('/reset')) return stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR);
    if (path.startsWith('/refuse') && !refused.has(path)) {
      refused.add(path);
      return stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
    }
    stream.respond({':status': 200});
    setTimeout(() => stream.end(path), 5);
  });
});
server.listen(80, '203.0.113.61', () => console.log('listening'));
";
    let mut server = lab.node_in(Group::Servers, server).interactive().start()?;
    server.expect_line("listening")?;
    let agent = lab
        .agent()
        .policy(
            "h2",
            &service("h2.example.com", "203.0.113.61", 80, false, true),
        )?
        .start()?;
    let script = r#"
import asyncio, httpx
async def main():
    async with httpx.AsyncClient(timeout=20, http1=False, http2=True) as client:
        for round in range(5):
            answers = await asyncio.gather(
                *(client.get(f"http://h2.example.com/{round}/{n}") for n in range(20)))
            for n, r in enumerate(answers):
                assert (r.status_code, r.text) == (200, f"/{round}/{n}"), (r.status_code, r.text)
        # Istio's default retry: refused-stream.
        for n in range(5):
            r = await client.get(f"http://h2.example.com/refuse/{n}")
            assert r.status_code == 200, (r.status_code, r.text)
        r = await client.get("http://h2.example.com/reset")
        assert r.status_code == 503, r.status_code
        r = await client.get("http://h2.example.com/fine")
        assert r.status_code == 200
asyncio.run(main())
print("done")
"#;
    assert_eq!(lab.python_clients(script)?.text()?, "done\n");
    let record = agent.record("a reset stream", |r| r.field("path") == "/reset")?;
    assert!(record.has_flag("UR") || record.has_flag("UC"), "{record}");
    agent.stop()
}

#[test]
fn an_upstream_that_speaks_no_http2_is_spoken_to_in_http1() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "world")?;
    let certificate = authority.issue(&["old.example.com"])?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let server = HttpServer::start(&lab, RECORDER, |_| Reply::ok("ok"))?;
    let _nginx = Nginx::new(&lab, "old")
        .proxy("203.0.113.71:443", Some(&certificate), false, RECORDER)?
        .start()?;
    let agent = lab
        .agent()
        .policy(
            "old",
            &[
                service("old.example.com", "203.0.113.71", 443, true, true),
                service("same.example.com", "10.255.0.1", 8080, false, false)
                    .replace("h2UpgradePolicy: DEFAULT", "useClientProtocol: true"),
            ]
            .concat(),
        )?
        .environment("SSL_CERT_FILE", &authority.path().display().to_string())
        .start()?;
    // h2 is offered by ALPN, and http/1.1 is taken.
    for _ in 0..3 {
        assert_eq!(lab.fetch(&["http://old.example.com/"])?.status, 200);
        let got = server.last()?;
        assert_eq!(got.header("x-seen-protocol"), Some("HTTP/1.1"));
    }
    // useClientProtocol: a server of HTTP/1.1 alone is fine with such a client.
    assert_eq!(lab.fetch(&["http://same.example.com/"])?.status, 200);
    wait_for("the records", DEADLINE, || {
        Ok((agent.records()?.len() == 4).then_some(()))
    })?;
    agent.stop()
}
