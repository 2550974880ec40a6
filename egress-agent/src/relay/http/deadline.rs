//! `timeout` and `perTryTimeout`.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::upload::Upload;

/// A timeout that starts when the client has sent the whole request.
pub(super) struct Deadline {
    after: Duration,
    upload: Option<Rc<Upload>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub(super) fn new(after: Duration, upload: Option<&Rc<Upload>>) -> Self {
        Self {
            after,
            upload: upload.cloned(),
            sleep: None,
        }
    }

    /// Ready when it has passed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleep.is_none() {
            if let Some(upload) = &self.upload {
                ready!(upload.poll_ended(cx));
            }
            self.upload = None;
        }
        let after = self.after;
        self.sleep
            .get_or_insert_with(|| Box::pin(sleep(after)))
            .as_mut()
            .poll(cx)
    }

    /// Runs `work` until the deadline; `None` when that comes first.
    pub(super) async fn limit<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll(cx).map(|()| None),
        })
        .await
    }
}
