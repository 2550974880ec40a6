//! The body of a response.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};

use super::super::trailers;

/// The body of a response. Dropped before its end, the stream is reset.
pub(in super::super) struct Answer {
    stream: RecvStream,
    /// Bytes that are still to come, as far as the head has told.
    left: Option<u64>,
    /// Only trailers may follow.
    all_data: bool,
}

impl Answer {
    pub(super) fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        // h2 refuses those that do not fit what comes.
        let told = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        let left = told.or_else(|| stream.is_end_stream().then_some(0));
        Self {
            stream,
            left,
            all_data: false,
        }
    }

    /// The next piece. A reset without an error (RFC 9113 section 8.1) is an
    /// end: the service has said all, and wants no more of the request.
    pub(in super::super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.all_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails for more than was received alone.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(end(error)),
                None => self.all_data = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|found| Ok(Frame::trailers(trailers::allowed(found)))),
            Err(error) => end(error),
        })
    }

    /// Whether nothing is to come, trailers included.
    pub(in super::super) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// What the head has told of the length.
    pub(in super::super) fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn end(error: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
    (error.reason() != Some(Reason::NO_ERROR)).then_some(Err(error))
}
