//! Calls and streams of HTTP/2, and connections that become something else:
//! gRPC, WebSocket, and what becomes of them when the service ends a session.
#![allow(clippy::panic, reason = "tests")]

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply};
use lab::nginx::Nginx;
use lab::process::{DEADLINE, Process, wait_for};
use lab::{Group, Lab, RESOLVER, Result, policy};

const RECORDER: &str = "10.255.0.1:8080";

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
                grpc(policy::http(
                    "grpc.example.com",
                    "203.0.113.41",
                    80,
                    false,
                    false,
                )),
                grpc(policy::http(
                    "grpcs.example.com",
                    "203.0.113.42",
                    443,
                    true,
                    false,
                )),
                grpc(policy::http(
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
            &policy::http("ws.example.com", "203.0.113.51", 80, false, false),
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
            &policy::http("h2.example.com", "203.0.113.61", 80, false, true),
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
                policy::http("old.example.com", "203.0.113.71", 443, true, true),
                policy::http("same.example.com", "10.255.0.1", 8080, false, false)
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
