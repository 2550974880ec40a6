//! Query strings, as `application/x-www-form-urlencoded` writes them.

use std::fmt::Write;

/// The parameters of a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what follows `?`. Bytes that are no UTF-8 become U+FFFD.
    pub fn parse(text: &str) -> Self {
        let pairs = text
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                (decode(key), decode(value))
            })
            .collect();
        Self(pairs)
    }

    /// The first value of a parameter; an empty one is none.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, value)| name == key && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// The first parameter that is not among these.
    pub fn unknown(&self, known: &[&str]) -> Option<&str> {
        self.0
            .iter()
            .map(|(name, _)| name.as_str())
            .find(|name| !known.contains(name))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => {
                let digit = |b: &u8| (*b as char).to_digit(16).and_then(|n| u8::try_from(n).ok());
                if let (Some(high), Some(low)) = (digit(high), digit(low)) {
                    bytes.push(high << 4 | low);
                    rest = after;
                } else {
                    bytes.push(b'%');
                }
            }
            (&other, _) => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes a value so that it can stand in a query string.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte as char);
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn broken_escapes_stay_as_they_are() {
        let query = Query::parse("a=%zz&b=%4&c&=d&e=1+2%20");
        assert_eq!(query.get("a"), Some("%zz"));
        assert_eq!(query.get("b"), Some("%4"));
        assert_eq!(query.get("c"), None);
        assert_eq!(query.get("e"), Some("1 2 "));
        assert_eq!(query.unknown(&["a", "b", "c", "", "e"]), None);
        assert_eq!(query.unknown(&["a"]), Some("b"));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(text in "\\PC*") {
            let query = Query::parse(&format!("x=1&key={}", encode(&text)));
            prop_assert_eq!(query.get("key").unwrap_or_default(), text);
        }

        #[test]
        fn no_input_panics(text in ".*") {
            let _ = Query::parse(&text);
        }
    }
}
