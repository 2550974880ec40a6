//! The body of a response on its way to the application, and the end of a
//! request that comes with it.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::ServiceStream;
use super::client::Open;
use super::deadline::Deadline;
use super::tries::Judged;
use super::upload::{RequestBody, Upload};
use crate::connect::pool::Lease;
use crate::endpoint::Permit;
use crate::flag::Flag;

/// The body of a response.
pub(super) struct ResponseBody<S: ServiceStream>(Kind<S>);

enum Kind<S: ServiceStream> {
    Full(Bytes),
    Stream(Box<Stream<S>>),
}

/// A response that is passed on as it arrives. The request ends with it.
pub(super) struct Stream<S: ServiceStream> {
    pub(super) ending: Option<Ending<S>>,
    /// `timeout` of the route.
    pub(super) deadline: Option<Deadline>,
    /// What broke the response off. It is told one poll later, so that what
    /// came before it is written.
    pub(super) broken: Option<io::Error>,
}

/// What is held until the response has ended.
pub(super) struct Ending<S: ServiceStream> {
    pub(super) open: Box<Open<S>>,
    pub(super) lease: Lease<RequestBody, S>,
    pub(super) upload: Option<Rc<Upload>>,
    pub(super) _picked: Judged,
    /// The request's place, and the retry's.
    pub(super) _permits: (Permit, Option<Permit>),
}

impl<S: ServiceStream> Ending<S> {
    /// The response is complete.
    pub(super) fn complete(mut self) {
        self.count();
        if self.open.record.version == Version::HTTP_2
            && let Some(upload) = &self.upload
        {
            upload.drain();
        }
        let now = Instant::now();
        self.open.finish(now);
        self.lease.give_back(now);
    }

    /// The response broke off.
    fn broken(mut self, flag: Flag, details: &str) {
        self.count();
        self.open.broken(flag, details);
    }

    fn count(&mut self) {
        if let Some(upload) = &self.upload {
            self.open.record.received = upload.received();
        }
    }
}

impl<S: ServiceStream> ResponseBody<S> {
    pub(super) const fn full(bytes: Bytes) -> Self {
        Self(Kind::Full(bytes))
    }

    pub(super) fn stream(stream: Box<Stream<S>>) -> Self {
        Self(Kind::Stream(stream))
    }
}

impl<S: ServiceStream> std::fmt::Debug for ResponseBody<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Kind::Full(_) => "ResponseBody(full)",
            Kind::Stream(_) => "ResponseBody(stream)",
        })
    }
}

impl<S: ServiceStream> Body for ResponseBody<S> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(stream) => match &stream.ending {
                Some(ending) => ending.lease.size_hint(),
                None => SizeHint::default(),
            },
        }
    }
}

impl<S: ServiceStream> Stream<S> {
    fn break_off<T>(&mut self, error: io::Error, cx: &Context<'_>) -> Poll<T> {
        self.broken = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none()
            && self
                .ending
                .as_ref()
                .is_none_or(|ending| ending.lease.is_end_stream())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.poll(cx).is_ready()
        {
            if let Some(ending) = self.ending.take() {
                ending.open.client.state.broken.set(true);
                ending.broken(
                    Flag::UpstreamRequestTimeout,
                    "the route's timeout passed inside the response",
                );
            }
            let error = io::Error::new(io::ErrorKind::TimedOut, "route timeout");
            return self.break_off(error, cx);
        }
        let Some(ending) = &mut self.ending else {
            return Poll::Ready(None);
        };
        match ready!(ending.lease.poll_frame(cx)) {
            Some(Ok(frame)) => {
                let mut last = false;
                if let Some(data) = frame.data_ref() {
                    ending.open.record.sent += data.len() as u64;
                    last = ending.lease.is_end_stream();
                } else if let Some(trailers) = frame.trailers_ref() {
                    if let Some(status) = super::retry::grpc_status(trailers) {
                        ending.open.record.grpc_status = Some(status);
                    }
                    last = true;
                }
                if last && let Some(ending) = self.ending.take() {
                    ending.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if let Some(ending) = self.ending.take() {
                    ending.open.client.state.broken.set(true);
                    let text = format!("the service broke off inside the response: {error}");
                    ending.broken(Flag::UpstreamConnectionTermination, &text);
                }
                self.break_off(error, cx)
            }
            None => {
                if let Some(ending) = self.ending.take() {
                    ending.complete();
                }
                Poll::Ready(None)
            }
        }
    }
}

impl<S: ServiceStream> Drop for Stream<S> {
    fn drop(&mut self) {
        if let Some(ending) = self.ending.take() {
            if ending.lease.is_end_stream() {
                ending.complete();
            } else {
                ending.broken(
                    Flag::DownstreamConnectionTermination,
                    "the application went away inside the response",
                );
            }
        }
    }
}
