//! `timeout` and `perTryTimeout`.

use std::pin::Pin;
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
}
