//! The body of a request on its way to the service, kept for another try as
//! long as it is small.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::spawn_local;
use tokio::time::timeout;

/// Most bytes of a request body that are kept for another try or for a
/// mirror. Envoy keeps up to 1 MiB; at the same memory this allows sixteen
/// times the uploads at once, and calls that are worth a retry (RPC, REST)
/// are nearly all smaller.
pub(super) const REPLAY_LIMIT: usize = 64 * 1024;

/// How long the rest of a body is taken after the answer.
const DRAIN_LONGEST: Duration = Duration::from_secs(2);

/// A request body that is read from the client once and may be sent several
/// times.
pub(super) struct Upload {
    inner: RefCell<Inner>,
    /// Bytes taken from the client.
    received: Cell<u64>,
    complete: Cell<bool>,
}

struct Inner {
    incoming: Incoming,
    hint: SizeHint,
    /// What was read so far; `None` once it is too much, or when nobody may
    /// ask for it again.
    kept: Option<BytesMut>,
    trailers: Option<HeaderMap>,
    /// Number of the try that reads now; earlier ones get an error.
    reader: u32,
    /// The client's side failed.
    failed: bool,
    /// Who waits for the end.
    waiting: Vec<Waker>,
}

impl Upload {
    /// `keep`: whether another try or a mirror may want the body.
    pub(super) fn new(incoming: Incoming, keep: bool) -> Rc<Self> {
        let hint = incoming.size_hint();
        let fits = hint.lower() <= REPLAY_LIMIT as u64;
        Rc::new(Self {
            inner: RefCell::new(Inner {
                incoming,
                hint,
                kept: (keep && fits).then(BytesMut::new),
                trailers: None,
                reader: 0,
                failed: false,
                waiting: Vec::new(),
            }),
            received: Cell::new(0),
            complete: Cell::new(false),
        })
    }

    /// Bytes taken from the client so far.
    pub(super) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Whether it can be sent (again): nothing was taken from the client yet,
    /// or all that was taken is still here.
    pub(super) fn can_send(&self) -> bool {
        let inner = self.inner.borrow();
        !inner.failed && (self.received.get() == 0 || inner.kept.is_some())
    }

    /// Ready when the client has sent all of it, or has failed. Several may
    /// wait: a try and the route each have a timeout.
    pub(super) fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.inner.borrow_mut();
        if self.complete.get() || inner.failed {
            return Poll::Ready(());
        }
        if !inner.waiting.iter().any(|one| one.will_wake(cx.waker())) {
            inner.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Takes what still comes of a request that has its answer, for a while.
    ///
    /// Over HTTP/2 a body often ends in an empty frame of its own, which may be
    /// on its way when the answer, to a body whose length was told, is complete.
    /// A stream that is reset then, though without an error, fails requests of
    /// clients that are about to write that frame.
    pub(super) fn drain(self: &Rc<Self>) {
        if self.complete.get() || self.inner.borrow().failed {
            return;
        }
        let upload = Rc::clone(self);
        let mut taken = 0;
        spawn_local(timeout(
            DRAIN_LONGEST,
            poll_fn(move |cx| {
                let mut inner = upload.inner.borrow_mut();
                while !upload.complete.get() {
                    match ready!(Pin::new(&mut inner.incoming).poll_frame(cx)) {
                        Some(Ok(frame)) => {
                            taken += frame.data_ref().map_or(0, Bytes::len);
                            if taken > REPLAY_LIMIT {
                                break;
                            }
                        }
                        Some(Err(_)) | None => break,
                    }
                }
                Poll::Ready(())
            }),
        ));
    }

    /// The whole body, if it is complete and was kept.
    pub(super) fn kept(&self) -> Option<Bytes> {
        let inner = self.inner.borrow();
        match &inner.kept {
            Some(kept) if self.complete.get() => Some(Bytes::copy_from_slice(kept)),
            _ => None,
        }
    }

    fn poll(
        &self,
        reader: u32,
        sent: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut guard = self.inner.borrow_mut();
        let inner = &mut *guard;
        if inner.reader != reader {
            let error = io::Error::other("another try of the request took over");
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(kept) = &inner.kept
            && *sent < kept.len()
        {
            let again = Bytes::copy_from_slice(&kept[*sent..]);
            *sent = kept.len();
            return Poll::Ready(Some(Ok(Frame::data(again))));
        }
        if self.complete.get() {
            // A later try sends the same trailers.
            let trailers = inner.trailers.clone().filter(|_| *sent != usize::MAX);
            *sent = usize::MAX;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut inner.incoming).poll_frame(cx));
        match frame {
            Some(Ok(frame)) => {
                let frame = match frame.into_data() {
                    Ok(data) => {
                        self.received.set(self.received.get() + data.len() as u64);
                        if let Some(kept) = &mut inner.kept {
                            if kept.len() + data.len() <= REPLAY_LIMIT {
                                kept.extend_from_slice(&data);
                                *sent = kept.len();
                            } else {
                                inner.kept = None;
                            }
                        }
                        if inner.incoming.is_end_stream() {
                            self.end(inner, None);
                        }
                        Frame::data(data)
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.end(inner, Some(trailers.clone()));
                        *sent = usize::MAX;
                        Frame::trailers(trailers)
                    }
                };
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                inner.failed = true;
                wake(inner);
                Poll::Ready(Some(Err(io::Error::other(error))))
            }
            None => {
                self.end(inner, None);
                Poll::Ready(None)
            }
        }
    }

    fn end(&self, inner: &mut Inner, trailers: Option<HeaderMap>) {
        self.complete.set(true);
        inner.trailers = trailers;
        wake(inner);
    }
}

fn wake(inner: &mut Inner) {
    for waker in inner.waiting.drain(..) {
        waker.wake();
    }
}

/// The body of one try.
pub struct RequestBody(Kind);

enum Kind {
    Empty,
    Full(Bytes),
    Upload {
        upload: Rc<Upload>,
        reader: u32,
        /// Bytes of what is kept that this try has sent; `usize::MAX` when it
        /// has sent everything.
        sent: usize,
    },
}

impl std::fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Kind::Empty => "RequestBody(empty)",
            Kind::Full(_) => "RequestBody(full)",
            Kind::Upload { .. } => "RequestBody(upload)",
        })
    }
}

impl RequestBody {
    /// No body.
    pub(super) const fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// A body that is all here.
    pub(super) const fn full(bytes: Bytes) -> Self {
        Self(Kind::Full(bytes))
    }

    /// The next try of an upload, from its beginning.
    pub(super) fn upload(upload: &Rc<Upload>) -> Self {
        let reader = {
            let mut inner = upload.inner.borrow_mut();
            inner.reader = inner.reader.wrapping_add(1);
            inner.reader
        };
        Self(Kind::Upload {
            upload: Rc::clone(upload),
            reader,
            sent: 0,
        })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Upload {
                upload,
                reader,
                sent,
            } => upload.poll(*reader, sent, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Upload { upload, sent, .. } => {
                let inner = upload.inner.borrow();
                upload.complete.get()
                    && inner.trailers.is_none()
                    && match &inner.kept {
                        Some(kept) => *sent >= kept.len(),
                        None => true,
                    }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Upload { upload, .. } => upload.inner.borrow().hint,
        }
    }
}
