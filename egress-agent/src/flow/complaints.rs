//! Failures told in the log, each cause once a minute.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::capture::Caller;
use crate::policy::snapshot::{Service, ServiceId};

/// How often one cause of failure is told.
const PAUSE: Duration = Duration::from_mins(1);
/// Causes remembered for that.
const CAUSES: usize = 1_024;

/// What one worker has told lately. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Complaints(Rc<RefCell<HashMap<u64, Instant>>>);

impl Complaints {
    /// Tells a failure, unless that service's same cause was told a moment ago.
    pub(super) fn tell(&self, service: &Service, host: &str, caller: &Caller, cause: &str) {
        if !self.is_news(service.id, cause) {
            return;
        }
        tracing::warn!(
            host,
            port = service.key.port,
            pid = caller.pid,
            comm = %caller.comm,
            "{cause}"
        );
    }

    fn is_news(&self, service: ServiceId, cause: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        service.hash(&mut hasher);
        cause.hash(&mut hasher);
        let key = hasher.finish();
        let now = Instant::now();
        let recent = |last: &Instant| now.duration_since(*last) < PAUSE;
        let mut told = self.0.borrow_mut();
        if told.get(&key).is_some_and(recent) {
            return false;
        }
        if told.len() >= CAUSES {
            told.retain(|_, last| recent(last));
            if told.len() >= CAUSES {
                return false;
            }
        }
        told.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_cause_is_told_once_a_minute_for_each_service() {
        let complaints = Complaints::default();
        let clone = complaints.clone();
        assert!(complaints.is_news(ServiceId(1), "refused"));
        assert!(!clone.is_news(ServiceId(1), "refused"));
        assert!(complaints.is_news(ServiceId(1), "expired"));
        assert!(complaints.is_news(ServiceId(2), "refused"));
        tokio::time::advance(PAUSE).await;
        assert!(complaints.is_news(ServiceId(1), "refused"));
    }

    #[tokio::test(start_paused = true)]
    async fn ever_new_causes_neither_fill_the_log_nor_memory() {
        let complaints = Complaints::default();
        let told = (0..2 * CAUSES)
            .filter(|number| complaints.is_news(ServiceId(1), &number.to_string()))
            .count();
        assert_eq!(told, CAUSES);
        tokio::time::advance(PAUSE).await;
        assert!(complaints.is_news(ServiceId(1), "another"));
        assert_eq!(complaints.0.borrow().len(), 1);
    }
}
