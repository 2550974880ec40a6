//! The access log, where it goes to a pipe: as of a container, whose reader may
//! be slow.
#![allow(clippy::panic, reason = "tests")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lab::dns::NameServer;
use lab::{Lab, RESOLVER, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

/// Threads of the client, and requests of each.
const CLIENTS: usize = 4;
const REQUESTS: usize = 1_000;

const POLICY: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: logged}
spec:
  hosts: [logged.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 10.0.0.1}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: logged}
spec:
  hosts: [logged.example.com]
  http:
    - directResponse: {status: 200, body: {string: ok}}
";

/// Reads lines of the log, for a while as slowly as the machine lets it be.
fn read_slowly(log: File, lines: &mpsc::Sender<String>) {
    struct Slow(File, Instant);
    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let slow = self.1.elapsed() < Duration::from_secs(2);
            if slow {
                thread::sleep(Duration::from_millis(10));
            }
            let most = if slow { 3_000 } else { buffer.len() };
            self.0.read(&mut buffer[..most])
        }
    }
    let slow = BufReader::with_capacity(60_000, Slow(log, Instant::now()));
    for line in slow.lines().map_while(std::result::Result::ok) {
        if lines.send(line).is_err() {
            break;
        }
    }
}

#[test]
fn a_pipe_gets_each_record_once_and_whole_however_slow_its_reader_is() -> Result<()> {
    let lab = Lab::new()?;
    let _dns = NameServer::start(&lab, RESOLVER, "")?;
    let path = lab.directory().join("records");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    // Also for writing: opening waits for nobody.
    let reader = File::options().read(true).write(true).open(&path)?;
    let (lines, received) = mpsc::channel();
    thread::spawn(move || read_slowly(reader, &lines));
    let agent = lab
        .agent()
        .policy("logged", POLICY)?
        .setting("--workers", "2")
        .setting("--access-log", path.display().to_string())
        .setting("--access-log-linger", "20ms")
        .start()?;
    let script = format!(
        r#"
import http.client, threading
def run(client):
    c = http.client.HTTPConnection("logged.example.com", timeout=20)
    for n in range({REQUESTS}):
        c.request("GET", f"/{{client}}/{{n}}")
        answer = c.getresponse()
        assert answer.status == 200 and answer.read() == b"ok"
threads = [threading.Thread(target=run, args=(n,)) for n in range({CLIENTS})]
[t.start() for t in threads]
[t.join() for t in threads]
print("done")
"#
    );
    let said = lab
        .python(&script)
        .deadline(Duration::from_mins(1))
        .text()?;
    ensure!(said.trim() == "done", "the client said {said}");
    let mut next = [0; CLIENTS];
    let until = Instant::now() + Duration::from_secs(30);
    while next.iter().sum::<usize>() < CLIENTS * REQUESTS {
        let line = received.recv_timeout(until.saturating_duration_since(Instant::now()))?;
        let record: Value = serde_json::from_str(&line)?;
        let path = record["path"].as_str().unwrap_or_default();
        let (client, number) = path[1..].split_once('/').unwrap_or_default();
        // Each connection has one worker: its records are in order.
        let expected = &mut next[client.parse::<usize>()?];
        ensure!(number == expected.to_string(), "{line} after {expected}");
        *expected += 1;
    }
    let metrics = agent.metrics(&lab)?;
    ensure!(
        metrics.contains("egress_access_log_dropped_lines_total 0\n"),
        "lines were lost"
    );
    agent.stop()
}
