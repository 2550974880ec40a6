//! Real clients, unmodified, through the agent: over plaintext and TLS, to
//! HTTP/1.1 and HTTP/2 services. Streams that last are in `http_streams`.
#![allow(clippy::panic, reason = "tests")]

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use lab::agent::Agent;
use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::http::{HttpServer, Reply};
use lab::nginx::{Nginx, RunningNginx};
use lab::{Group, Lab, RESOLVER, Result, policy};

const RECORDER: &str = "10.255.0.1:8080";

/// Services by the way they are reached. The names say how: `plain1` in the
/// clear over HTTP/1.1, `tls2` over TLS and HTTP/2, and so on.
const SERVICES: [(&str, &str, bool, bool); 4] = [
    ("plain1.example.com", "203.0.113.11", false, false),
    ("plain2.example.com", "203.0.113.12", false, true),
    ("tls1.example.com", "203.0.113.13", true, false),
    ("tls2.example.com", "203.0.113.14", true, true),
];

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
                request.method, request.target, request.length
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
            documents.push_str(&policy::http(host, address, port, tls, http2));
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
            // Compared as it comes: the disk need not hold it twice.
            let compare = format!(
                "curl --silent --show-error --fail {version} --max-time {limit} \
                 http://{host}/files/big | cmp - {}",
                big.display()
            );
            scene
                .lab
                .client("sh")
                .args(["-c", &compare])
                .deadline(Duration::from_mins(5))
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
