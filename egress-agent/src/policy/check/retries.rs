//! Rules of `retries`.

use super::route::set;
use crate::policy::schema::reader::{Reader, nearest};
use crate::policy::schema::route::{HttpRoute, Retries};

/// Words of `retryOn`, without status codes.
pub const RETRY_WORDS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Whether a status code is registered (IANA), as far as Go names it.
pub fn is_registered_status(code: i64) -> bool {
    matches!(
        code,
        100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429
            | 431 | 451 | 500..=508 | 510 | 511
    )
}

pub(super) fn check_retries(reader: &mut Reader<'_>, retries: &Retries, route: &HttpRoute) {
    let attempts = retries.attempts.map_or(0, |attempts| attempts.value);
    let span = retries
        .attempts
        .map_or(retries.span, |attempts| attempts.span);
    if attempts < 0 {
        let message = format!("`attempts` is {attempts}; it must not be negative");
        reader.error("number-range", span, message, "write 0 for no retries");
    }
    let more = retries.per_try_timeout.is_some()
        || set(&retries.retry_on)
        || retries.retry_remote_localities.is_some();
    if attempts == 0 && more {
        let message =
            "`attempts` is 0, so there are no retries that the other settings could shape";
        reader.error(
            "retry-attempts",
            span,
            message,
            "write `attempts`, or remove the others",
        );
    }
    if let (Some(each), Some(all)) = (retries.per_try_timeout, route.timeout)
        && each.value >= all.value
    {
        let message = "`perTryTimeout` is not below `timeout`, so it never acts";
        reader.warn(
            "retry-timeout",
            each.span,
            message,
            "make it smaller than `timeout`",
        );
    }
    let Some(words) = retries.retry_on.as_ref().filter(|text| !text.is_empty()) else {
        return;
    };
    for word in words.split(',') {
        let code = word.parse::<i64>().unwrap_or(0);
        if RETRY_WORDS.contains(&word) {
            if matches!(
                word,
                "retriable-headers" | "envoy-ratelimited" | "http3-post-connect-failure"
            ) {
                reader.within("retryOn", |reader| {
                    reader.no_meaning(words.span, word, "nothing here sends it");
                });
            }
        } else if !is_registered_status(code) {
            let message = format!("{word:?} is not a reason to retry");
            let trimmed = word.trim();
            let help = if RETRY_WORDS.contains(&trimmed) || trimmed != word {
                "no blanks between the words".to_owned()
            } else {
                let nearest = nearest(word, RETRY_WORDS.into_iter());
                nearest.map_or_else(
                    || format!("a status code, or one of {}", RETRY_WORDS.join(", ")),
                    |nearest| format!("did you mean `{nearest}`?"),
                )
            };
            reader.within("retryOn", |reader| {
                reader.error("retry-on", words.span, message, help);
            });
        }
    }
}
