//! Watches: the streams of changes, with bookmarks and `410 Gone`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::body::{Answer, failure, whole};
use super::request::{Place, selected};
use super::state::{Manners, Shared};

fn gone(version: u64) -> Value {
    failure(
        410,
        "Expired",
        &format!("too old resource version: {version}"),
    )
}

pub(super) fn open(
    shared: &Arc<Shared>,
    place: Place,
    parameters: &BTreeMap<String, String>,
    manners: &Manners,
) -> Response<Answer> {
    let from: u64 = parameters
        .get("resourceVersion")
        .and_then(|version| version.parse().ok())
        .unwrap_or(0);
    let too_old = from < shared.state().compacted;
    if too_old && manners.gone_at_once {
        return whole(StatusCode::GONE, &gone(from));
    }
    let (pieces, stream) = mpsc::channel(16);
    let teller = Teller {
        shared: Arc::clone(shared),
        pieces,
        slow: manners.slow,
        era: shared.state().era,
    };
    let wants_bookmarks = parameters
        .get("allowWatchBookmarks")
        .is_some_and(|wanted| wanted == "true");
    let bookmarks = wants_bookmarks.then_some(manners.bookmarks);
    let limit = parameters
        .get("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok())
        .map_or(Duration::from_mins(5), Duration::from_secs);
    let selector = parameters.get("fieldSelector").cloned();
    if manners.end_at_once {
        drop(teller);
    } else {
        teller.shared.state().streams += 1;
        tokio::spawn(async move {
            let told = async {
                if too_old {
                    let event = json!({ "type": "ERROR", "object": gone(from) });
                    teller.say(&event).await;
                } else {
                    teller
                        .tell(&place, selector.as_ref(), from, bookmarks)
                        .await;
                }
            };
            let _ = tokio::time::timeout(limit, told).await;
            teller.shared.state().streams -= 1;
        });
    }
    let mut response = Response::new(Answer::Stream(stream));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, json);
    response
}

struct Teller {
    shared: Arc<Shared>,
    pieces: mpsc::Sender<std::io::Result<Bytes>>,
    slow: Option<Duration>,
    era: u64,
}

impl Teller {
    fn is_cut(&self) -> bool {
        self.shared.state().era != self.era
    }

    /// Writes one event; whether the client is still there.
    async fn say(&self, event: &Value) -> bool {
        let line = Bytes::from(format!("{event}\n"));
        let Some(pause) = self.slow else {
            return self.pieces.send(Ok(line)).await.is_ok();
        };
        for piece in line.chunks(7) {
            if self.is_cut() {
                self.break_off().await;
                return false;
            }
            tokio::time::sleep(pause).await;
            if self
                .pieces
                .send(Ok(Bytes::copy_from_slice(piece)))
                .await
                .is_err()
            {
                return false;
            }
        }
        true
    }

    async fn break_off(&self) {
        let error = std::io::Error::other("cut");
        let _ = self.pieces.send(Err(error)).await;
    }

    async fn tell(
        &self,
        place: &Place,
        selector: Option<&String>,
        from: u64,
        bookmarks: Option<Duration>,
    ) {
        let mut changed = self.shared.changed.subscribe();
        let mut at = from;
        let mut bookmark = tokio::time::interval(bookmarks.unwrap_or(Duration::from_hours(1)));
        bookmark.tick().await;
        loop {
            changed.mark_unchanged();
            let (events, version, compacted) = {
                let state = self.shared.state();
                let events: Vec<Value> = state
                    .history
                    .iter()
                    .filter(|change| change.version > at)
                    .filter(|change| {
                        change.key.0 == place.plural
                            && (place.namespace.is_empty() || change.key.1 == place.namespace)
                            && selected(selector, &change.object)
                    })
                    .map(|change| json!({ "type": change.kind, "object": change.object }))
                    .collect();
                (events, state.version, state.compacted)
            };
            // What was forgotten before it was told cannot be told any more.
            if at < compacted {
                let event = json!({ "type": "ERROR", "object": gone(at) });
                self.say(&event).await;
                return;
            }
            for event in &events {
                if !self.say(event).await {
                    return;
                }
            }
            at = version;
            if self.is_cut() {
                // Half a line, as a server that dies leaves it.
                let _ = self
                    .pieces
                    .send(Ok(Bytes::from_static(b"{\"type\":\"MODI")))
                    .await;
                self.break_off().await;
                return;
            }
            tokio::select! {
                result = changed.changed() => if result.is_err() {
                    return;
                },
                _ = bookmark.tick() => if bookmarks.is_some() {
                    let object = json!({
                        "apiVersion": place.api_version, "kind": "Bookmark",
                        "metadata": { "resourceVersion": at.to_string() },
                    });
                    if !self.say(&json!({ "type": "BOOKMARK", "object": object })).await {
                        return;
                    }
                },
                () = self.pieces.closed() => return,
            }
        }
    }
}
