//! Plain scalars as YAML 1.1 and Kubernetes' reader resolve them.

use super::Value;

/// What an unquoted scalar means.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Value::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let first = text.as_bytes().first().copied().unwrap_or_default();
    if (first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.'))
        && let Some(number) = number(text)
    {
        return number;
    }
    Value::String(text.into())
}

fn number(text: &str) -> Option<Value> {
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    let (negative, digits) = match plain.as_bytes().first() {
        Some(b'-') => (true, &plain[1..]),
        Some(b'+') => (false, &plain[1..]),
        _ => (false, plain.as_str()),
    };
    if let Some(value) = integer(digits) {
        let value = i128::from(value);
        let value = if negative { -value } else { value };
        return Some(
            i64::try_from(value).map_or_else(|_| Value::Float(to_float(&plain)), Value::Integer),
        );
    }
    is_float(digits).then(|| Value::Float(to_float(&plain)))
}

fn to_float(text: &str) -> f64 {
    text.parse().unwrap_or(f64::NAN)
}

/// Digits in base 10, or with the prefixes `0x`, `0o`, `0b`, `0`.
fn integer(digits: &str) -> Option<u64> {
    let bytes = digits.as_bytes();
    if !bytes.first()?.is_ascii_digit() {
        return None;
    }
    let (base, rest) = match bytes {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // A sign after the prefix is not a number.
    rest.bytes()
        .all(|b| b.is_ascii_alphanumeric())
        .then(|| u64::from_str_radix(rest, base).ok())?
}

/// `[0-9]+(.[0-9]*)?` or `.[0-9]+`, and an exponent.
fn is_float(digits: &str) -> bool {
    let (mantissa, exponent) = digits
        .split_once(['e', 'E'])
        .map_or((digits, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let exponent_fits = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['+', '-']).unwrap_or(e);
        !e.is_empty() && all(e)
    });
    all(whole) && all(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent_fits
}
