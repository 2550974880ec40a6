//! HTTP/2 with prior knowledge: `GET /N` answers N bytes.

use anyhow::Result;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// Longest body.
const BODY: usize = 1 << 20;

pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(1024)
        .handshake::<_, Bytes>(stream)
        .await?;
    let all = Bytes::from(vec![b'x'; BODY]);
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let size = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .and_then(|size| size.parse::<usize>().ok())
            .filter(|size| *size <= BODY);
        let Some(size) = size else {
            let refused = http::Response::builder().status(404).body(())?;
            respond.send_response(refused, true)?;
            continue;
        };
        let answer = http::Response::builder()
            .header("server", "bench")
            .header("content-type", "application/octet-stream")
            .header("content-length", size)
            .body(())?;
        // Frames wait in the connection's own buffers for the windows.
        respond
            .send_response(answer, false)?
            .send_data(all.slice(..size), true)?;
    }
    Ok(())
}
