#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::accept::{Accepted, Admission};
use crate::capture::sockets::NetNs;
use crate::capture::{Caller, Captured, Comm};
use crate::connect::{Connected, Stream};
use crate::endpoint::resolved::Destination;
use crate::flag::Flag;
use crate::identify::{Spoken, Workload};
use crate::policy::model::{DocumentRef, HostPattern, Labels, Protocol, Resolution, Visibility};
use crate::policy::snapshot::{
    Client, OnAgentFailure, Path as DataPath, Service, ServiceId, ServiceKey,
};
use crate::relay::End;

fn service() -> Arc<Service> {
    Arc::new(Service {
        id: ServiceId(1),
        key: ServiceKey {
            namespace: "bank".into(),
            host: HostPattern::Exact("pay.example".into()),
            port: 443,
        },
        entry: Arc::new(DocumentRef {
            kind: "ServiceEntry",
            namespace: "bank".into(),
            name: "pay".into(),
            source: "test".into(),
            line: 1,
        }),
        port_name: "tls".into(),
        protocol: Protocol::Tcp,
        resolution: Resolution::Static,
        target_port: 443,
        addresses: Vec::new(),
        virtual_address: true,
        endpoints: [].into(),
        visibility: Visibility::All,
        path: DataPath::Proxy("test".into()),
        on_agent_failure: OnAgentFailure::Closed,
        views: Vec::new(),
    })
}

fn workload(name: &str) -> Workload {
    Workload {
        client: Client {
            namespace: "shop".into(),
            labels: Arc::new(Labels::new()),
        },
        name: name.into(),
        instance: None,
    }
}

async fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

async fn accepted() -> Accepted {
    let mut comm = [0; 16];
    // A name that tries to write a line of its own.
    comm[..8].copy_from_slice(b"a\"\n\xffb{},");
    Accepted {
        captured: Captured {
            peer: "127.0.0.1:5000".parse().unwrap(),
            original: "240.240.0.9:443".parse().unwrap(),
            service: ServiceId(1),
            name_decides: false,
            caller: Caller {
                cgroup: 21,
                netns: 22,
                pid: 23,
                uid: 24,
                comm: Comm(comm),
            },
        },
        stream: streams().await.0,
        netns: NetNs::current().unwrap(),
        started: Instant::now(),
        started_at: SystemTime::now(),
        admitted: Admission::new(9).admit().unwrap(),
    }
}

async fn connected() -> Connected {
    let (stream, _) = streams().await;
    Connected {
        opening: None,
        stream: Stream::Tcp(stream),
        tls: None,
        tcp_time: Duration::from_micros(1500),
        tls_time: Duration::ZERO,
    }
}

struct Rig {
    registry: Registry,
    account: Account,
    log: AccessLog,
    directory: tempfile::TempDir,
}

fn rig() -> Rig {
    let metrics = Metrics::new();
    let mut registry = Registry::default();
    metrics.register(&mut registry, Arc::default());
    let directory = tempfile::tempdir().unwrap();
    let log = AccessLog::open(
        LogTarget::File(directory.path().join("access.log")),
        &metrics,
    )
    .unwrap();
    Rig {
        account: Account::new(metrics, Some(log.clone())),
        registry,
        log,
        directory,
    }
}

impl Rig {
    fn lines(&self) -> Vec<Value> {
        assert!(self.log.flush(Duration::from_secs(10)));
        lines(&self.directory.path().join("access.log"))
    }

    /// Value of the series whose labels have all of these parts.
    fn metric(&self, name: &str, parts: &[&str]) -> f64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text.lines()
            .filter(|line| line.starts_with(&format!("{name}{{")) || *line == name)
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    }
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn a_connection_is_told_once_in_full() {
    let rig = rig();
    let mut record = rig.account.begin(&accepted().await, workload("cart"));
    record.identified(&service(), &"pay.example".into(), &Spoken::Opaque);
    record.trying(&Destination::Tcp("192.0.2.1:443".parse().unwrap()));
    record.connected(&connected().await);
    record.traffic().received.set(100);
    record.traffic().sent.set(2000);
    record.ended(&End::Closed);
    drop(record);
    let lines = rig.lines();
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    for (name, value) in [
        ("comm", "a\"\\n\u{fffd}b{},"),
        ("namespace", "shop"),
        ("workload", "cart"),
        ("client_address", "127.0.0.1:5000"),
        ("original_destination", "240.240.0.9:443"),
        ("service", "pay.example:443"),
        ("service_namespace", "bank"),
        ("endpoint", "192.0.2.1:443"),
        ("response_flags", "-"),
        ("protocol", "tcp"),
        ("spoken", "opaque"),
        ("via", "proxy"),
    ] {
        assert_eq!(line[name], value, "{name}: {line}");
    }
    for (name, value) in [
        ("pid", 23),
        ("uid", 24),
        ("cgroup", 21),
        ("netns", 22),
        ("bytes_received", 100),
        ("bytes_sent", 2000),
        ("attempts", 1),
    ] {
        assert_eq!(line[name], value, "{name}: {line}");
    }
    assert_eq!(line["connect_ms"], 1.5);
    assert_eq!(line["cause"], Value::Null);
    let start = line["start_time"].as_str().unwrap();
    assert!(start.parse::<jiff::Timestamp>().is_ok() && start.ends_with('Z'));

    let labels = [
        "reporter=\"source\"",
        "source_workload=\"cart\"",
        "source_workload_namespace=\"shop\"",
        "destination_service=\"pay.example\"",
        "destination_service_name=\"pay.example\"",
        "destination_service_namespace=\"bank\"",
        "request_protocol=\"tcp\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"none\"",
    ];
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1.0),
        ("istio_tcp_connections_closed_total", 1.0),
        ("istio_tcp_received_bytes_total", 100.0),
        ("istio_tcp_sent_bytes_total", 2000.0),
    ] {
        assert!((rig.metric(name, &labels) - value).abs() < 0.1, "{name}");
    }
}

#[tokio::test]
async fn a_record_that_is_cut_off_is_still_written() {
    let rig = rig();
    let mut record = rig.account.begin(&accepted().await, workload("cart"));
    record.identified(&service(), &"pay.example".into(), &Spoken::Unheard);
    record.connected(&connected().await);
    record.traffic().sent.set(7);
    drop(record);
    let line = &rig.lines()[0];
    assert_eq!(line["response_flags"], "LR");
    assert_eq!(line["cause"], "the agent stopped");
    assert_eq!(line["bytes_sent"], 7);
    let closed = rig.metric(
        "istio_tcp_connections_closed_total",
        &["response_flags=\"LR\""],
    );
    assert!((closed - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn long_connections_report_bytes_while_they_run() {
    let rig = rig();
    let mut record = rig.account.begin(&accepted().await, workload("cart"));
    record.identified(&service(), &"pay.example".into(), &Spoken::Opaque);
    record.connected(&connected().await);
    let sent = || rig.metric("istio_tcp_sent_bytes_total", &[]);
    record.traffic().sent.set(10);
    rig.account.flush();
    assert!((sent() - 10.0).abs() < 0.1);
    record.traffic().sent.set(25);
    rig.account.flush();
    rig.account.flush();
    assert!((sent() - 25.0).abs() < 0.1);
    record.traffic().sent.set(26);
    record.ended(&End::Closed);
    drop(record);
    rig.account.flush();
    assert!((sent() - 26.0).abs() < 0.1);
}

#[tokio::test]
async fn http_is_told_by_request_and_its_connection_only_when_it_fails() {
    let rig = rig();
    let begin = async || {
        let mut record = rig.account.begin(&accepted().await, workload("cart"));
        record.identified(&service(), &"pay.example".into(), &Spoken::Http);
        record.carries_http();
        record
    };
    let quiet = begin().await;
    let mut request = quiet.request(Instant::now()).unwrap();
    request.edit(|line| {
        line.method = http::Method::POST;
        line.path = Some("/pay?x=1".parse().unwrap());
        line.response_code = 503;
        line.attempts = 3;
    });
    request.flag(Flag::UpstreamRetryLimitExceeded);
    request.failed(
        Flag::UpstreamConnectionFailure,
        "192.0.2.1:443: connection refused".to_owned(),
    );
    request.flag(Flag::UpstreamRetryLimitExceeded);
    request.traffic().sent.set(9);
    drop(request);
    drop(quiet);
    let mut broken = begin().await;
    broken.failed(Flag::DownstreamProtocolError, "no HTTP".to_owned());
    drop(broken);

    let lines = rig.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0]["method"], "POST");
    assert_eq!(lines[0]["path"], "/pay?x=1");
    assert_eq!(lines[0]["response_code"], 503);
    assert_eq!(lines[0]["response_flags"], "UF,URX");
    assert_eq!(lines[0]["bytes_sent"], 9);
    assert_eq!(lines[0]["pid"], 23);
    assert_eq!(lines[1]["response_flags"], "DPE");
    let requests = rig.metric(
        "istio_requests_total",
        &["response_code=\"503\"", "response_flags=\"UF,URX\""],
    );
    assert!((requests - 1.0).abs() < 0.1);
    let observed = rig.metric("istio_request_duration_milliseconds_count", &[]);
    assert!((observed - 1.0).abs() < 0.1);
}

#[test]
fn durations_fall_into_istios_buckets() {
    let histogram = histogram::DurationHistogram::default();
    for micros in [400, 500, 600, 30_000, 7_200_000_000] {
        histogram.observe(Duration::from_micros(micros));
    }
    let mut registry = Registry::default();
    registry.register("d", "help", histogram);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        "d_bucket{le=\"0.5\"} 2",
        "d_bucket{le=\"1.0\"} 3",
        "d_bucket{le=\"25.0\"} 3",
        "d_bucket{le=\"50.0\"} 4",
        "d_bucket{le=\"3600000.0\"} 4",
        "d_bucket{le=\"+Inf\"} 5",
        "d_count 5",
        "d_sum 7200031.5",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} not in {text}");
    }
}

#[test]
fn too_many_workloads_become_one() {
    let metrics = Metrics::new();
    let mut cache = SeriesCache::default();
    let service = service();
    for number in 0..2_000 {
        let series = cache.tcp(
            &metrics,
            &service,
            &workload(&format!("job-{number}")),
            "none",
        );
        series.opened();
    }
    let mut registry = Registry::default();
    metrics.register(&mut registry, Arc::default());
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let series: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total{"))
        .collect();
    assert_eq!(series.len(), 501);
    let other = series
        .iter()
        .find(|line| line.contains("source_workload=\"other\""))
        .unwrap();
    assert!(other.ends_with(" 1500"), "{other}");
}

async fn write_one(account: &Account) {
    let mut record = account.begin(&accepted().await, workload("cart"));
    record.ended(&End::Closed);
}

#[tokio::test]
async fn a_rotated_file_is_opened_anew() {
    let rig = rig();
    write_one(&rig.account).await;
    assert_eq!(rig.lines().len(), 1);
    let (now, old) = (
        rig.directory.path().join("access.log"),
        rig.directory.path().join("access.log.1"),
    );
    fs::rename(&now, &old).unwrap();
    // Until told, it writes where it did.
    write_one(&rig.account).await;
    assert!(rig.log.flush(Duration::from_secs(10)));
    assert_eq!(lines(&old).len(), 2);
    rig.log.reopen();
    write_one(&rig.account).await;
    assert_eq!(rig.lines().len(), 1);
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_nothing_else() {
    let metrics = Metrics::new();
    let log = AccessLog::open(LogTarget::File("/dev/full".into()), &metrics).unwrap();
    let account = Account::new(metrics.clone(), Some(log.clone()));
    for _ in 0..3 {
        write_one(&account).await;
    }
    assert!(log.flush(Duration::from_secs(10)));
    assert_eq!(metrics.log_dropped().get(), 3);
}

#[tokio::test]
async fn a_log_that_stands_still_never_blocks() {
    // A pipe that nobody reads.
    let (reader, writer) = std::io::pipe().unwrap();
    let path = {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", writer.as_raw_fd())
    };
    let metrics = Metrics::new();
    let log = AccessLog::open(LogTarget::File(path.into()), &metrics).unwrap();
    let account = Account::new(metrics.clone(), Some(log.clone()));
    let accepted = accepted().await;
    for _ in 0..20_000 {
        let mut record = account.begin(&accepted, workload("cart"));
        record.ended(&End::Closed);
    }
    assert!(metrics.log_dropped().get() > 0);
    assert!(!log.flush(Duration::from_millis(20)));
    drop((reader, writer));
}
