#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::LocalSet;

use super::metrics::MetricsListener;
use super::socket::AdminListener;
use super::*;

struct Double {
    ready: Result<(), String>,
}

impl AdminApi for Double {
    fn status(&self) -> view::Status {
        let mut status = view::Status::default();
        status.agent.version = "9.9.9".to_owned();
        status
    }
    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }
    fn ready(&self) -> Result<(), String> {
        self.ready.clone()
    }
    fn metrics(&self) -> Result<String, ApiError> {
        Ok("# EOF\n".to_owned())
    }
    fn drain(&self) -> Result<view::Draining, ApiError> {
        Err(ApiError::Unavailable("not now".to_owned()))
    }
    fn set_log(&self, filter: &str) -> Result<view::Log, ApiError> {
        let filter = filter.to_owned();
        Ok(view::Log { filter })
    }
    fn dns(&self, query: &Query) -> Result<Vec<view::Name>, ApiError> {
        let host = query.get("host").unwrap_or("all").to_owned();
        Ok(vec![view::Name {
            host,
            ..view::Name::default()
        }])
    }
    fn explain(&self, query: &Query) -> Pending<serde_json::Value> {
        let target = query.get("target").unwrap_or_default().to_owned();
        Box::pin(async move {
            if target == "slow" {
                std::future::pending::<()>().await;
            }
            Ok(serde_json::json!({ "target": target }))
        })
    }
}

fn double() -> Rc<dyn AdminApi> {
    Rc::new(Double {
        ready: Err("starting".to_owned()),
    })
}

/// Sends bytes as they are and reads to the end.
async fn talk(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(path: &Path, what: &str) -> String {
    let request = format!("GET {what} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    talk(path, &request).await
}

async fn with_socket<T>(test: impl AsyncFnOnce(&Path) -> T) -> T {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("run/admin.sock");
    let listener = AdminListener::bind(&path).unwrap();
    LocalSet::new()
        .run_until(async {
            tokio::task::spawn_local(listener.serve(double()));
            test(&path).await
        })
        .await
}

#[tokio::test]
async fn paths_methods_and_parameters_are_checked() {
    with_socket(async |path| {
        let status = get(path, "/v1/status").await;
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        assert!(status.contains("\"version\":\"9.9.9\""), "{status}");
        assert!(get(path, "/v1/none").await.starts_with("HTTP/1.1 404"));
        assert!(get(path, "/v1/drain").await.starts_with("HTTP/1.1 405"));
        let unknown = get(path, "/v1/dns?hots=a").await;
        assert!(unknown.starts_with("HTTP/1.1 400"), "{unknown}");
        assert!(unknown.contains("no parameter `hots`"), "{unknown}");
        let found = get(path, "/v1/dns?host=a%2Eb").await;
        assert!(found.contains("\"host\":\"a.b\""), "{found}");
        assert!(get(path, "/v1/routes").await.starts_with("HTTP/1.1 501"));
        let explained = get(path, "/v1/explain?target=http%3A%2F%2Fa").await;
        assert!(explained.contains("http://a"), "{explained}");
        assert!(get(path, "/v1/stats").await.ends_with("# EOF\n"));
    })
    .await;
}

#[tokio::test]
async fn bodies_are_taken_and_limited() {
    with_socket(async |path| {
        let put = "PUT /v1/log HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 6\r\n\r\ndebug\n";
        assert!(talk(path, put).await.ends_with("{\"filter\":\"debug\"}"));
        let huge = "POST /v1/documents HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 99999999\r\n\r\nx";
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(huge.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; 17 << 20]).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        assert!(answer.starts_with(b"HTTP/1.1 413"));
        let drain = "POST /v1/drain HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let answer = talk(path, drain).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("{\"error\":\"not now\"}"), "{answer}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn slow_answers_and_slow_clients_meet_their_deadlines() {
    with_socket(async |path| {
        let slow = get(path, "/v1/explain?target=slow").await;
        assert!(slow.starts_with("HTTP/1.1 504"), "{slow}");
        let half = talk(path, "GET /v1/status HTTP/1.1\r\nhost:").await;
        assert!(
            half.is_empty() || half.starts_with("HTTP/1.1 408"),
            "{half}"
        );
    })
    .await;
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_listener() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("admin.sock");
    let listener = AdminListener::bind(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_live_agent_is_noticed_and_a_dead_one_replaced() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("admin.sock");
    let first = AdminListener::bind(&path).unwrap();
    let error = AdminListener::bind(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    // What a killed process leaves behind: a socket that nobody listens on.
    std::mem::forget(first);
    fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let second = AdminListener::bind(&path).unwrap();

    // A third took the place of the second, whose end must leave it alone.
    fs::remove_file(&path).unwrap();
    let third = AdminListener::bind(&path).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    drop(second);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    drop(third);

    fs::write(&path, "text").unwrap();
    let error = AdminListener::bind(&path).unwrap_err();
    assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
}

#[tokio::test]
async fn metrics_and_health_are_served_over_tcp() {
    let listener = MetricsListener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.address().unwrap();
    let fetch = async |request: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    LocalSet::new()
        .run_until(async {
            tokio::task::spawn_local(listener.serve(double()));
            let metrics = fetch("GET /metrics HTTP/1.0\r\n\r\n").await;
            assert!(
                metrics.contains("application/openmetrics-text"),
                "{metrics}"
            );
            assert!(metrics.ends_with("# EOF\n"), "{metrics}");
            let health = fetch("GET /healthz HTTP/1.0\r\n\r\n").await;
            assert!(health.contains(" 200 OK"), "{health}");
            let ready = fetch("GET /readyz HTTP/1.0\r\n\r\n").await;
            assert!(ready.contains(" 503 "), "{ready}");
            assert!(ready.ends_with("starting\n"), "{ready}");
            let post = fetch("POST /metrics HTTP/1.0\r\ncontent-length: 0\r\n\r\n").await;
            assert!(post.contains(" 405 "), "{post}");
        })
        .await;
    let error = MetricsListener::bind("192.0.2.1:1".parse().unwrap()).await;
    assert!(error.unwrap_err().to_string().contains("--metrics"));
}
