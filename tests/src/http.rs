//! An HTTP/1.1 server in the world that records what it got, byte for byte,
//! and answers as a test tells it to; and curl's answers taken apart.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use crate::process::{DEADLINE, wait_for};
use crate::{Context, Lab, Result, bail};

/// How long a connection may stay silent.
const PATIENCE: Duration = Duration::from_mins(1);

/// Bytes of a body that a server keeps.
pub const KEPT: usize = 1 << 20;

/// One request as the server got it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Request target.
    pub target: String,
    /// Header lines in order, names as they were spelt.
    pub headers: Vec<(String, String)>,
    /// Body, without its framing: the first [`KEPT`] bytes.
    pub body: Vec<u8>,
    /// Bytes of the whole body.
    pub length: u64,
    /// Trailer lines of a chunked body.
    pub trailers: Vec<(String, String)>,
    /// Number of the connection, from 0.
    pub connection: usize,
    /// Number of the request on this server, from 0.
    pub number: usize,
}

impl Request {
    /// Value of the first line with this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Values of all lines with this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers
            .iter()
            .filter(move |(one, _)| one.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Reads so many bytes of the body.
    fn read(&mut self, reader: &mut impl BufRead, count: u64) -> io::Result<()> {
        let room = KEPT.saturating_sub(self.body.len()) as u64;
        let mut kept = reader.by_ref().take(count.min(room));
        let kept = kept.read_to_end(&mut self.body)? as u64;
        let rest = io::copy(&mut reader.by_ref().take(count - kept), &mut io::sink())?;
        self.length += kept + rest;
        if kept + rest < count {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// What a server does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A complete answer.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// These bytes, and then a reset.
    ThenReset(Vec<u8>),
    /// These bytes, and then the end of the connection.
    ThenClose(Vec<u8>),
    /// Nothing for this long, and then that.
    After(Duration, Box<Reply>),
    /// Nothing at all.
    Silence,
}

impl Reply {
    /// 200 with a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::Answer(200, Vec::new(), body.into())
    }

    /// A status and no more.
    pub fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), Vec::new())
    }

    /// The same, later.
    pub fn after(self, delay: Duration) -> Self {
        Self::After(delay, Box::new(self))
    }
}

/// A running server; its listener is closed on drop.
pub struct HttpServer {
    listener: TcpListener,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl HttpServer {
    /// Starts one on `address` in the world that answers by `handler`.
    pub fn start(
        lab: &Lab,
        address: &str,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let wanted: SocketAddr = address.parse().context("listen address")?;
        let listener = lab
            .world()
            .run(|| TcpListener::bind(wanted))?
            .with_context(|| format!("cannot listen on {wanted}"))?;
        let server = Self {
            listener: listener.try_clone()?,
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (requests, connections) = (server.requests.clone(), server.connections.clone());
        let handler = Arc::new(handler);
        thread::spawn(move || {
            // Ends when the listener is shut down.
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                let (requests, handler) = (Arc::clone(&requests), Arc::clone(&handler));
                let connection = connections.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    let record = |mut request: Request| {
                        let mut all = requests.lock().unwrap_or_else(PoisonError::into_inner);
                        request.number = all.len();
                        all.push(request.clone());
                        request
                    };
                    // A client that goes away is not this server's concern.
                    let _ = serve(stream, connection, record, &*handler);
                });
            }
        });
        Ok(server)
    }

    /// What came so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The request that came last.
    pub fn last(&self) -> Result<Request> {
        self.requests().pop().context("no request came")
    }

    /// Waits until `count` requests have come.
    pub fn wait(&self, count: usize) -> Result<Vec<Request>> {
        wait_for("requests at a server", DEADLINE, || {
            Ok(Some(self.requests()).filter(|all| all.len() >= count))
        })
        .with_context(|| format!("{:?}", self.requests()))
    }

    /// Number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn serve(
    stream: TcpStream,
    connection: usize,
    record: impl Fn(Request) -> Request,
    handler: &(dyn Fn(&Request) -> Reply + Send + Sync),
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader, &stream, connection)? {
        let request = record(request);
        if !answer(&stream, &request.method, handler(&request))? {
            break;
        }
    }
    stream.shutdown(Shutdown::Both)
}

fn answer(mut stream: &TcpStream, method: &str, reply: Reply) -> io::Result<bool> {
    match reply {
        Reply::Answer(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} Lab\r\n");
            for (name, value) in headers {
                head.push_str(&[name, ": ", &value, "\r\n"].concat());
            }
            if status != 204 && status != 304 {
                head.push_str(&format!("content-length: {}\r\n", body.len()));
            }
            head.push_str("\r\n");
            let mut bytes = head.into_bytes();
            if method != "HEAD" && status != 204 && status != 304 {
                bytes.extend_from_slice(&body);
            }
            stream.write_all(&bytes)?;
            Ok(true)
        }
        Reply::ThenClose(bytes) => stream.write_all(&bytes).map(|()| false),
        Reply::ThenReset(bytes) => {
            stream.write_all(&bytes)?;
            if !bytes.is_empty() {
                // A reset may overtake what was written.
                thread::sleep(Duration::from_millis(50));
            }
            set_socket_linger(stream, Some(Duration::ZERO))?;
            // Closed, not shut down: only so it is a reset.
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Reply::After(delay, reply) => {
            thread::sleep(delay);
            answer(stream, method, *reply)
        }
        Reply::Silence => {
            let mut scratch = [0; 1024];
            while stream.read(&mut scratch)? > 0 {}
            Ok(false)
        }
    }
}

fn read_request(
    reader: &mut BufReader<TcpStream>,
    mut stream: &TcpStream,
    connection: usize,
) -> io::Result<Option<Request>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.trim_end().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(malformed());
    };
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: read_lines(reader)?,
        body: Vec::new(),
        length: 0,
        trailers: Vec::new(),
        connection,
        number: 0,
    };
    if request.header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if request.header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = size.trim_end().split(';').next().unwrap_or_default();
            let size = u64::from_str_radix(size, 16).map_err(|_| malformed())?;
            if size == 0 {
                break;
            }
            request.read(reader, size)?;
            reader.read_line(&mut String::new())?;
        }
        request.trailers = read_lines(reader)?;
    } else if let Some(length) = request.header("content-length") {
        let length = length.parse().map_err(|_| malformed())?;
        request.read(reader, length)?;
    }
    Ok(Some(request))
}

fn read_lines(reader: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => lines.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(lines),
        }
    }
}

/// What a client got.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Header lines.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Answer {
    /// Value of the first line with this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(one, _)| one.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    fn parse(mut text: &str) -> Result<Self> {
        loop {
            let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
            let mut lines = head.lines();
            let status = lines
                .next()
                .and_then(|line| line.split(' ').nth(1))
                .context("no status line")?
                .parse()?;
            if status == 100 {
                text = body;
                continue;
            }
            return Ok(Self {
                status,
                headers: lines
                    .filter_map(|line| line.split_once(':'))
                    .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                    .collect(),
                body: body.to_owned(),
            });
        }
    }
}

impl Lab {
    /// What curl, as a captured client, gets for `arguments`.
    ///
    /// # Errors
    /// When it gets no answer at all.
    pub fn fetch(&self, arguments: &[&str]) -> Result<Answer> {
        let finished = self.curl(&["--include"]).args(arguments).output()?;
        if finished.code() != 0 {
            bail!("curl {arguments:?}: {finished:?}");
        }
        Answer::parse(&finished.stdout).with_context(|| finished.stdout.clone())
    }
}
