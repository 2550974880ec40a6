//! Echo, and bulk: eight bytes ask for so many bytes (none: one byte, which
//! tells that the path stands).

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(super) async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<()> {
    // Small: thousands of idle connections are held open on this server.
    let mut buffer = vec![0; 2048];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            stream.shutdown().await?;
            return Ok(());
        }
        stream
            .write_all(buffer.get(..count).unwrap_or_default())
            .await?;
        stream.flush().await?;
    }
}

pub(super) async fn bulk<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<()> {
    let data = vec![b'x'; 256 * 1024];
    loop {
        let mut count = [0; 8];
        if stream.read_exact(&mut count).await.is_err() {
            return Ok(());
        }
        let mut left = u64::from_be_bytes(count).max(1);
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            stream
                .write_all(data.get(..part).unwrap_or_default())
                .await?;
            left -= part as u64;
        }
        stream.flush().await?;
    }
}
