//! nginx in front of the services, dialled by the clients themselves. Behind
//! HTTP/2 it speaks HTTP/1.1 to the service: it knows nothing else.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use lab::Group;
use lab::process::{DEADLINE, Process};
use rustix::process::Signal;

use super::{Counters, Name, Peer, redirect};
use crate::arena::Arena;
use crate::logs::LogPipe;
use crate::serve::{Speaks, Tls};
use crate::services::{self, Service};

/// Its port for a service is this and the service's.
const OFFSET: u16 = 20_000;
const STATUS: u16 = 29_999;
/// Where Debian's package `libnginx-mod-stream` puts the module.
pub(crate) const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) struct Nginx {
    process: Process,
    _log: LogPipe,
}

impl Nginx {
    pub(super) fn start(arena: &Arena, services: &[Service]) -> Result<Self> {
        let directory = arena.lab.directory().join("nginx-peer");
        std::fs::create_dir_all(&directory)?;
        let file = directory.join("nginx.conf");
        let log = LogPipe::new(arena, "nginx", None)?;
        std::fs::write(&file, configuration(arena, services, log.path()))?;
        let mut process = arena
            .proxy("nginx", "nginx".as_ref())?
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(&directory)
            .arg("-e")
            .arg(directory.join("error.log"))
            .start()?;
        arena.wait_listening(&mut process, "nginx", STATUS)?;
        Ok(Self { process, _log: log })
    }
}

impl Drop for Nginx {
    /// A master that is killed leaves its workers behind, with their ports.
    fn drop(&mut self) {
        let ended = self.process.signal(Signal::TERM);
        let _ = ended.and_then(|()| self.process.wait(DEADLINE));
    }
}

fn configuration(arena: &Arena, services: &[Service], log: &Path) -> String {
    let (log, threads) = (log.display(), arena.cpus.threads());
    let records = arena.records.nginx(&log.to_string());
    let (mut http, mut stream) = (String::new(), String::new());
    for service in services {
        match service.speaks {
            Speaks::Http1 | Speaks::Http2 => http.push_str(&http_server(arena, service)),
            Speaks::Echo | Speaks::Bulk => stream.push_str(&stream_server(arena, service)),
        }
    }
    format!(
        "load_module {STREAM};
daemon off;
user root;
worker_processes {threads};
pid nginx.pid;
error_log error.log error;
events {{ worker_connections 12000; }}
http {{
    {records}
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    proxy_buffers 16 8k;
    proxy_http_version 1.1;
    proxy_set_header Connection '';
    proxy_set_header Host $http_host;
    server {{ listen 127.0.0.1:{STATUS}; location / {{ stub_status; }} }}
{http}}}
stream {{
    log_format tcp '$remote_addr $time_iso8601 $status $bytes_sent $bytes_received $session_time $upstream_addr';
    access_log {log} tcp buffer=64k flush=1s;
    proxy_timeout 1h;
{stream}}}
"
    )
}

fn http_server(arena: &Arena, service: &Service) -> String {
    let (http2, upstream) = if service.speaks == Speaks::Http2 {
        // It speaks HTTP/1.1 to what is behind it.
        (" http2", services::HTTP1)
    } else {
        ("", *service)
    };
    let scheme = if service.tls == Tls::Off {
        "http"
    } else {
        "https"
    };
    let name = service.name;
    format!(
        "    upstream {name} {{ server {}:{}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{}{http2};
        location / {{ proxy_pass {scheme}://{name}; {} }}
    }}
",
        upstream.address(),
        upstream.upstream_port,
        service.port + OFFSET,
        verified(arena, service)
    )
}

fn stream_server(arena: &Arena, service: &Service) -> String {
    let mut text = String::new();
    let ssl = if service.tls == Tls::Off {
        ""
    } else {
        "proxy_ssl on; "
    };
    let _ = writeln!(
        text,
        "    server {{ listen 127.0.0.1:{}; proxy_pass {}:{}; {ssl}{} }}",
        service.port + OFFSET,
        service.address(),
        service.upstream_port,
        verified(arena, service)
    );
    text
}

/// TLS as the others do it: the name sent and verified, sessions resumed.
fn verified(arena: &Arena, service: &Service) -> String {
    if service.tls == Tls::Off {
        return String::new();
    }
    format!(
        "proxy_ssl_server_name on; proxy_ssl_name {}; proxy_ssl_verify on; \
         proxy_ssl_trusted_certificate {}; proxy_ssl_protocols TLSv1.2 TLSv1.3;",
        service.host(),
        arena.authority.display()
    )
}

impl Peer for Nginx {
    fn name(&self) -> Name {
        Name::Nginx
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.id())
    }

    fn group(&self) -> Group {
        Group::Outside
    }

    fn target(&self, service: &Service) -> String {
        format!("127.0.0.1:{}", service.port + OFFSET)
    }

    fn counters(&self, arena: &Arena, _service: &Service) -> Result<Option<Counters>> {
        // The third line: accepted, handled, requests.
        let page = arena.get(&format!("http://127.0.0.1:{STATUS}/"))?;
        let line = page.lines().nth(2).context("nginx's status")?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| page.clone())?;
        let [accepted, _, requests] = numbers[..] else {
            anyhow::bail!("nginx's status has changed: {page}");
        };
        Ok(Some(Counters {
            connections: accepted,
            requests,
            ..Counters::default()
        }))
    }

    fn carries(&self, _service: &Service) -> bool {
        true
    }

    fn engage<'a>(&'a self, _arena: &'a Arena) -> Result<Option<redirect::Redirect<'a>>> {
        Ok(None)
    }
}
