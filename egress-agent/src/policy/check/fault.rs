//! Rules of `fault` and of mirrors.

use super::action::check_status;
use crate::policy::diagnostic::Span;
use crate::policy::schema::Spanned;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::route::{Abort, Fault, HttpRoute, Percent};

fn check_share(reader: &mut Reader<'_>, percent: &Percent) {
    let value = percent.get();
    let span = percent.value.map_or(percent.span, |value| value.span);
    if !(0.0..=100.0).contains(&value) || (value > 0.0 && value < 0.0001) {
        let message = format!("{value} is not a percentage");
        reader.error("percentage", span, message, "write 0, or 0.0001 to 100");
    }
}

pub(super) fn check_fault(reader: &mut Reader<'_>, fault: &Fault) {
    if fault.delay.is_none() && fault.abort.is_none() {
        let message = "`fault` does nothing";
        reader.error(
            "empty",
            fault.span,
            message,
            "add `delay` or `abort`, or remove it",
        );
    }
    if let Some(delay) = &fault.delay {
        reader.within("delay", |reader| {
            if let Some(percentage) = &delay.percentage {
                check_share(reader, percentage);
            } else if let Some(old) = delay.percent {
                reader.warn(
                    "old-form",
                    old.span,
                    "`percent` is the old form of `percentage.value`",
                    "write `percentage: {value: …}`",
                );
            }
            if let Some(exponential) = delay.exponential_delay {
                let message = "`exponentialDelay` is not supported";
                reader.error("fault-delay", exponential.span, message, "use `fixedDelay`");
                if delay.fixed_delay.is_some() {
                    reader.error(
                        "one-of",
                        delay.span,
                        "two delays at once",
                        "keep `fixedDelay`",
                    );
                }
            }
            check_never(reader, delay.percentage.as_ref(), delay.percent, delay.span);
        });
    }
    if let Some(abort) = &fault.abort {
        reader.within("abort", |reader| check_abort(reader, abort));
    }
}

/// A share that was left out is none at all.
fn check_never(
    reader: &mut Reader<'_>,
    percentage: Option<&Percent>,
    old: Option<Spanned<i32>>,
    span: Span,
) {
    let old = old.is_some_and(|old| old.value > 0);
    if percentage.is_none_or(|percentage| percentage.get() == 0.0) && !old {
        let message = "no `percentage`, so no request is affected";
        reader.warn(
            "fault-percentage",
            span,
            message,
            "add `percentage: {value: 100}`",
        );
    }
}

fn check_abort(reader: &mut Reader<'_>, abort: &Abort) {
    if let Some(percentage) = &abort.percentage {
        check_share(reader, percentage);
    }
    let kinds = [
        abort.http_status.is_some(),
        abort.grpc_status.is_some(),
        abort.http2_error.is_some(),
    ];
    match kinds.iter().filter(|kind| **kind).count() {
        0 => {
            let message = "`abort` names no status, so it does nothing";
            reader.warn(
                "fault-abort",
                abort.span,
                message,
                "add `httpStatus` or `grpcStatus`",
            );
        }
        1 => check_never(reader, abort.percentage.as_ref(), None, abort.span),
        _ => reader.error(
            "one-of",
            abort.span,
            "`abort` takes one status",
            "keep one of httpStatus and grpcStatus",
        ),
    }
    if let Some(status) = abort.http_status {
        check_status(reader, i64::from(status.value), status.span);
    }
    if let Some(status) = &abort.grpc_status
        && grpc_status(status).is_none()
    {
        let message = format!("{:?} is not the name of a gRPC status", &***status);
        reader.error(
            "grpc-status",
            status.span,
            message,
            "write a name such as UNAVAILABLE or NOT_FOUND",
        );
    }
    if let Some(error) = &abort.http2_error {
        let message = "`http2Error` is not supported";
        reader.error(
            "fault-abort",
            error.span,
            message,
            "use `httpStatus` or `grpcStatus`",
        );
    }
}

/// The number of a gRPC status by its name.
pub fn grpc_status(name: &str) -> Option<u8> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let index = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(index).ok()
}

pub(super) fn check_mirrors(reader: &mut Reader<'_>, route: &HttpRoute) {
    if let Some(old) = route.mirror_percent {
        let message = "`mirrorPercent` is the old form of `mirrorPercentage`";
        reader.warn(
            "old-form",
            old.span,
            message,
            "write `mirrorPercentage: {value: …}`",
        );
        if old.value > 100 {
            let message = format!("`mirrorPercent` is {}, not a percentage", old.value);
            reader.error("percentage", old.span, message, "write 0 to 100");
        }
    }
    let shares = route
        .mirrors
        .iter()
        .filter_map(|mirror| mirror.percentage.as_ref());
    for share in route.mirror_percentage.iter().chain(shares) {
        if !(0.0..=100.0).contains(&share.get()) {
            let message = format!("{} is not a percentage", share.get());
            let span = share.value.map_or(share.span, |value| value.span);
            reader.error("percentage", span, message, "write 0 to 100");
        }
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        if mirror.destination.is_none() {
            reader.within("mirrors", |reader| {
                reader.at_index(index, |reader| reader.required(mirror.span, "destination"));
            });
        }
    }
}
