//! nginx in the world: it tells, in its answer and in its log, what it saw of
//! the client (protocol, SNI, address, request).

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::certificates::Certificate;
use crate::process::{DEADLINE, Process, wait_for};
use crate::{Context, Group, Lab, Result, bail, tcp};

/// An nginx about to be started.
#[must_use]
pub struct Nginx<'lab> {
    lab: &'lab Lab,
    name: String,
    servers: String,
    addresses: Vec<SocketAddr>,
}

impl<'lab> Nginx<'lab> {
    /// One that calls itself `name` in its answers.
    pub fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            name: name.to_owned(),
            servers: String::new(),
            addresses: Vec::new(),
        }
    }

    /// Listens for TLS, 1.2 and 1.3.
    pub fn https(self, address: &str, certificate: &Certificate) -> Result<Self> {
        let tls = format!(
            "ssl_certificate {};\n ssl_certificate_key {};",
            certificate.certificate.display(),
            certificate.key.display()
        );
        self.server(address, " ssl", &tls)
    }

    /// Listens for plain HTTP.
    pub fn http(self, address: &str) -> Result<Self> {
        self.server(address, "", "")
    }

    /// Passes requests on to `to`, saying what it saw of the agent in
    /// `x-seen-protocol`, `x-seen-tls` and `x-seen-sni`. `http2` without a
    /// certificate is HTTP/2 with prior knowledge.
    pub fn proxy(
        mut self,
        address: &str,
        certificate: Option<&Certificate>,
        http2: bool,
        to: &str,
    ) -> Result<Self> {
        let address: SocketAddr = address.parse().context("listen address")?;
        self.addresses.push(address);
        let mut flags = String::new();
        let mut tls = String::new();
        if let Some(certificate) = certificate {
            flags.push_str(" ssl");
            write!(
                tls,
                "ssl_certificate {}; ssl_certificate_key {};",
                certificate.certificate.display(),
                certificate.key.display()
            )?;
        }
        if http2 {
            flags.push_str(" http2");
        }
        write!(
            self.servers,
            r"
    server {{
        listen {address}{flags};
        {tls}
        client_max_body_size 0;
        location / {{
            proxy_pass http://{to};
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header x-seen-protocol $server_protocol;
            proxy_set_header x-seen-tls $ssl_protocol;
            proxy_set_header x-seen-sni $ssl_server_name;
        }}
    }}"
        )?;
        Ok(self)
    }

    /// Adds lines to the `server` block of the address added last.
    pub fn with(mut self, lines: &str) -> Self {
        if let Some(end) = self.servers.rfind('}') {
            self.servers.insert_str(end, lines);
        }
        self
    }

    fn server(mut self, address: &str, flags: &str, lines: &str) -> Result<Self> {
        let address: SocketAddr = address.parse().context("listen address")?;
        self.addresses.push(address);
        let name = &self.name;
        write!(
            self.servers,
            r#"
    server {{
        listen {address}{flags};
        {lines}
        default_type application/json;
        location / {{
            return 200 '{{"server":"{name}","protocol":"$ssl_protocol","sni":"$ssl_server_name","client":"$remote_addr","host":"$http_host","request":"$request"}}\n';
        }}
    }}"#
        )?;
        Ok(self)
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Result<RunningNginx> {
        let directory = self.lab.directory().join(format!("nginx.{}", self.name));
        fs::create_dir_all(&directory)?;
        let log = directory.join("access.log");
        let configuration = format!(
            r#"daemon off;
user root;
worker_processes 1;
pid {dir}/pid;
error_log {dir}/error.log info;
events {{ worker_connections 4096; }}
http {{
    log_format lab escape=json '{{"protocol":"$ssl_protocol","sni":"$ssl_server_name","client":"$remote_addr","port":"$server_port","host":"$http_host","request":"$request","status":$status}}';
    access_log {log} lab;
    ssl_protocols TLSv1.2 TLSv1.3;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
{servers}
}}
"#,
            dir = directory.display(),
            log = log.display(),
            servers = self.servers,
        );
        let file = directory.join("nginx.conf");
        fs::write(&file, configuration)?;
        let output = fs::File::create(directory.join("output"))?;
        let mut process = self
            .lab
            .spawn(Group::Servers, "nginx")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(&directory)
            .arg("-e")
            .arg(directory.join("error.log"))
            .stdout(output.try_clone()?)
            .stderr(output)
            .start()?;
        for address in &self.addresses {
            wait_for("nginx to listen", DEADLINE, || {
                if !process.is_running() {
                    bail!(
                        "nginx ended: {}",
                        fs::read_to_string(directory.join("output"))?
                    );
                }
                tcp::answers(self.lab, *address)
            })?;
        }
        Ok(RunningNginx { process, log })
    }
}

/// A running nginx; ended on drop.
pub struct RunningNginx {
    process: Process,
    log: PathBuf,
}

impl RunningNginx {
    /// One object for each request so far: `protocol` (empty without TLS),
    /// `sni`, `client`, `port`, `host`, `request`, `status`.
    pub fn requests(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.log)?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// Waits for the request number `count` (from 1) to be in the log: nginx
    /// writes its line after the answer.
    pub fn request(&self, count: usize) -> Result<Value> {
        wait_for("a line of nginx's log", DEADLINE, || {
            Ok(self.requests()?.into_iter().nth(count.saturating_sub(1)))
        })
    }

    /// Stops it and waits for its end.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(DEADLINE).map(drop)
    }
}

impl Drop for RunningNginx {
    fn drop(&mut self) {
        // Its master takes the workers with it when it may.
        if self.process.signal(Signal::TERM).is_ok() {
            let _ = self.process.wait(std::time::Duration::from_secs(2));
        }
    }
}
