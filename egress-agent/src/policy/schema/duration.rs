//! Durations as Go's `time.ParseDuration` reads them, which is what Istio's
//! API uses: `300ms`, `1.5s`, `1h30m`; `0` needs no unit.

use super::Interval;

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration. `None`: it is none.
pub fn parse_duration(text: &str) -> Option<Interval> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(Interval::default());
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(whole_len);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(after.bytes().take_while(u8::is_ascii_digit).count()),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_len = after.find(|c: char| c == '.' || c.is_ascii_digit());
        let (unit, after) = after.split_at(unit_len.unwrap_or(after.len()));
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let whole: i64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total = total.checked_add(whole.checked_mul(scale)?)?;
        total = total.checked_add(part(fraction, scale))?;
        rest = after;
    }
    Some(Interval {
        nanoseconds: if negative { -total } else { total },
    })
}

/// `0.fraction × scale`, digits past what a unit can hold dropped.
fn part(fraction: &str, scale: i64) -> i64 {
    let mut numerator: i128 = 0;
    let mut denominator: i128 = 1;
    for digit in fraction.bytes().take(18) {
        numerator = numerator * 10 + i128::from(digit - b'0');
        denominator *= 10;
    }
    i64::try_from(numerator * i128::from(scale) / denominator).unwrap_or(0)
}

/// Writes a duration so that [`parse_duration`] reads it back the same.
pub fn format_duration(interval: Interval) -> String {
    let value = interval.nanoseconds;
    for (unit, scale) in [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)] {
        if value % scale == 0 {
            return format!("{}{unit}", value / scale);
        }
    }
    format!("{value}ns")
}
