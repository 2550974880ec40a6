//! HTTP/1.1: `GET /N` answers N bytes; `GET /close/N` closes after it.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest request head.
const HEAD: usize = 8192;
/// Longest body.
const BODY: usize = 16 << 20;

pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<()> {
    let mut buffer = vec![0; HEAD];
    let mut filled = 0;
    let mut last: Option<(String, Vec<u8>)> = None;
    loop {
        let count = stream
            .read(buffer.get_mut(filled..).unwrap_or_default())
            .await?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let bytes = buffer.get(..filled).unwrap_or_default();
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        if filled != end + 4 {
            bail!("a body or a second request, which no load sends");
        }
        let head = std::str::from_utf8(bytes)?;
        let path = head.split(' ').nth(1).context("no path")?;
        let close = path.starts_with("/close/");
        let answer = match &last {
            Some((known, answer)) if known == path => answer,
            _ => {
                let made = (path.to_owned(), answer(path, close)?);
                &last.insert(made).1
            }
        };
        stream.write_all(answer).await?;
        stream.flush().await?;
        if close {
            stream.shutdown().await?;
            return Ok(());
        }
        filled = 0;
    }
}

fn answer(path: &str, close: bool) -> Result<Vec<u8>> {
    let size: usize = path
        .rsplit('/')
        .next()
        .context("no size")?
        .parse()
        .context("the path is no size")?;
    if size > BODY {
        bail!("{size} bytes are too many");
    }
    let connection = if close { "connection: close\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nserver: bench\r\ncontent-type: application/octet-stream\r\n\
         {connection}content-length: {size}\r\n\r\n"
    )
    .into_bytes();
    answer.resize(answer.len() + size, b'x');
    Ok(answer)
}
