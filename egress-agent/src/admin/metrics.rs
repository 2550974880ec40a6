//! `/metrics`, `/healthz` and `/readyz` over TCP.

use std::net::SocketAddr;
use std::rc::Rc;

use http::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::api::AdminApi;
use super::connection::{self, Answer, Asked, content};
use super::error::ListenError;

/// Type of OpenMetrics text 1.0.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// The listener.
#[derive(Debug)]
pub struct MetricsListener(TcpListener);

impl MetricsListener {
    /// Opens it.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        TcpListener::bind(address)
            .await
            .map(Self)
            .map_err(|error| ListenError::Metrics { address, error })
    }

    /// The listener of an agent that hands over; `None` if it is another
    /// address.
    pub fn inherit(address: SocketAddr, listener: std::net::TcpListener) -> Option<Self> {
        if listener.local_addr().ok()? != address {
            return None;
        }
        TcpListener::from_std(listener).ok().map(Self)
    }

    /// A second descriptor, to hand over.
    pub fn descriptor(&self) -> &impl std::os::fd::AsFd {
        &self.0
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves. Never returns; must run in a `LocalSet`.
    pub async fn serve(self, api: Rc<dyn AdminApi>) {
        let permits = Rc::new(Semaphore::new(connection::CONNECTION_LIMIT));
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let api = Rc::clone(&api);
                    tokio::task::spawn_local(connection::serve(
                        stream,
                        Rc::clone(&permits),
                        move |asked| std::future::ready(answer(&*api, &asked)),
                    ));
                }
                Err(error) => {
                    tracing::warn!("metrics listener: cannot accept: {error}");
                    tokio::time::sleep(connection::ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

fn answer(api: &dyn AdminApi, asked: &Asked) -> Answer {
    if !matches!(asked.head.method, Method::GET | Method::HEAD) {
        return content(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n");
    }
    match asked.head.uri.path() {
        "/metrics" => match api.metrics() {
            Ok(text) => content(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => content(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                format!("{error}\n"),
            ),
        },
        "/healthz" => state(api.healthy()),
        "/readyz" => state(api.ready()),
        _ => content(
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /metrics, /healthz and /readyz\n",
        ),
    }
}

fn state(state: Result<(), String>) -> Answer {
    match state {
        Ok(()) => content(StatusCode::OK, TEXT, "ok\n"),
        Err(why) => content(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
    }
}
