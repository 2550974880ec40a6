//! The body of a request on its way.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use tokio::task::spawn_local;

use super::super::{Payload, trailers};

/// A body that is being sent. Dropped, the stream is reset.
pub(super) struct Uploading(Rc<State>);

#[derive(Default)]
struct State {
    /// Nobody waits for the response any more.
    cancelled: Cell<bool>,
    /// The body itself failed, not the service.
    failed: Cell<bool>,
    /// Who sends what was not here at once.
    task: RefCell<Option<Waker>>,
}

impl Uploading {
    pub(super) fn start<B: Payload>(body: B, stream: SendStream<Bytes>) -> Self {
        let state = Rc::new(State::default());
        let mut pipe = Pipe {
            body,
            stream,
            held: None,
            state: Rc::clone(&state),
        };
        // Most bodies are here whole: no task for them.
        let mut cx = Context::from_waker(Waker::noop());
        if pipe.poll(&mut cx).is_pending() {
            spawn_local(poll_fn(move |cx| pipe.poll(cx)));
        }
        Self(state)
    }

    /// There is a response: what is left of the body is sent beside it. Returns
    /// whether the body has failed so far.
    pub(super) fn goes_on(self) -> bool {
        self.0.task.take();
        self.0.failed.get()
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        // None: there is a response, or all is sent.
        if let Some(task) = self.0.task.take() {
            self.0.cancelled.set(true);
            task.wake();
        }
    }
}

struct Pipe<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Waits for room in the windows; whether it is the last.
    held: Option<(Bytes, bool)>,
    state: Rc<State>,
}

impl<B: Payload> Pipe<B> {
    /// Ready when there is nothing more to send, or nobody to send it to.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.cancelled.get() {
            self.stream.send_reset(Reason::CANCEL);
            return Poll::Ready(());
        }
        let poll = self.send(cx);
        if poll.is_pending() {
            self.state.task.replace(Some(cx.waker().clone()));
        } else {
            self.state.task.take();
        }
        poll
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // Also while the client sends nothing, the service may have had
            // enough, or the connection may end.
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            if let Some((data, last)) = self.held.take() {
                while self.stream.capacity() == 0 {
                    match self.stream.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                        Poll::Pending => {
                            self.held = Some((data, last));
                            return Poll::Pending;
                        }
                    }
                }
                if self.stream.send_data(data, last).is_err() || last {
                    return Poll::Ready(());
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let last = self.body.is_end_stream();
                        if !data.is_empty() {
                            // Only once there is something to send, and no more
                            // than says so: what one stream reserves of the
                            // connection's window, no other has.
                            self.stream.reserve_capacity(1);
                            self.held = Some((data, last));
                        } else if last {
                            let _ = self.stream.send_data(data, true);
                            return Poll::Ready(());
                        }
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        // Fails where the stream has ended.
                        let _ = self.stream.send_trailers(trailers::allowed(trailers));
                        return Poll::Ready(());
                    }
                },
                Some(Err(_)) => {
                    self.state.failed.set(true);
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                None => {
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            }
        }
    }
}
