//! Writes values as YAML, in the block style that people read.

use std::fmt::Write;

use serde_json::Value;

/// One YAML document.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut text, value, 0),
        Value::Array(list) if !list.is_empty() => sequence(&mut text, value, 0),
        other => {
            scalar(&mut text, other);
            text.push('\n');
        }
    }
    text
}

fn mapping(text: &mut String, value: &Value, indent: usize) {
    let Value::Object(map) = value else { return };
    for (n, (key, value)) in map.iter().enumerate() {
        // The first key of a mapping in a sequence follows its dash.
        if n > 0 || !text.ends_with("- ") {
            blanks(text, indent);
        }
        string(text, key);
        text.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                text.push('\n');
                mapping(text, value, indent + 2);
            }
            Value::Array(inner) if !inner.is_empty() => {
                text.push('\n');
                sequence(text, value, indent);
            }
            other => {
                text.push(' ');
                scalar(text, other);
                text.push('\n');
            }
        }
    }
}

fn sequence(text: &mut String, value: &Value, indent: usize) {
    let Value::Array(list) = value else { return };
    for (n, value) in list.iter().enumerate() {
        if n > 0 || !text.ends_with("- ") {
            blanks(text, indent);
        }
        text.push_str("- ");
        match value {
            Value::Object(inner) if !inner.is_empty() => mapping(text, value, indent + 2),
            Value::Array(inner) if !inner.is_empty() => sequence(text, value, indent + 2),
            other => {
                scalar(text, other);
                text.push('\n');
            }
        }
    }
}

fn blanks(text: &mut String, count: usize) {
    text.extend(std::iter::repeat_n(' ', count));
}

fn scalar(text: &mut String, value: &Value) {
    match value {
        Value::String(word) => string(text, word),
        // Empty collections, numbers, booleans and null are the same as in JSON.
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

/// Plain where no reader can take it for anything else, else in quotes, whose
/// escapes are those of JSON.
fn string(text: &mut String, word: &str) {
    if plain(word) {
        text.push_str(word);
    } else {
        text.push('"');
        for c in word.chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                // Not printable in YAML 1.2 section 5.1, or a line break to
                // readers of YAML 1.1.
                c if c.is_control()
                    || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}') =>
                {
                    let _ = write!(text, "\\u{:04X}", u32::from(c));
                }
                c => text.push(c),
            }
        }
        text.push('"');
    }
}

fn plain(word: &str) -> bool {
    const WORDS: [&str; 10] = [
        "true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan",
    ];
    let inner = |c: char| c.is_ascii_alphanumeric() || "_-./ ".contains(c);
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '/')
        && word.chars().all(inner)
        && !word.ends_with(' ')
        && !WORDS.contains(&word.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use std::collections::HashMap;

    use proptest::prelude::*;
    use saphyr_parser::{Event, Parser, ScalarStyle};
    use serde_json::json;

    use super::*;

    /// Reads YAML back with a parser that is not ours.
    fn read(text: &str) -> Value {
        let mut events = Parser::new_from_str(text)
            .map(|event| event.unwrap().0)
            .filter(|event| {
                !matches!(
                    event,
                    Event::StreamStart
                        | Event::DocumentStart(_)
                        | Event::DocumentEnd
                        | Event::StreamEnd
                )
            });
        let value = node(&mut events).unwrap();
        assert_eq!(events.next(), None);
        value
    }

    fn node<'a>(events: &mut impl Iterator<Item = Event<'a>>) -> Option<Value> {
        Some(match events.next().unwrap() {
            Event::Scalar(text, ScalarStyle::Plain, ..) => {
                serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.into_owned()))
            }
            Event::Scalar(text, ..) => Value::String(text.into_owned()),
            Event::SequenceStart(..) => {
                Value::Array(std::iter::from_fn(|| node(&mut *events)).collect())
            }
            Event::MappingStart(..) => {
                let mut map = serde_json::Map::new();
                while let Some(key) = node(&mut *events) {
                    map.insert(
                        key.as_str().unwrap().to_owned(),
                        node(&mut *events).unwrap(),
                    );
                }
                Value::Object(map)
            }
            Event::SequenceEnd | Event::MappingEnd => return None,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn reads_like_what_people_write() {
        let value = json!({
            "kind": "ServiceEntry",
            "spec": {"hosts": ["a.example.com", "*.b"], "ports": [{"number": 443, "name": "tls"}], "none": []},
            "text": "two\nlines: \"x\"",
            "answer": "no",
        });
        assert_eq!(
            yaml(&value),
            "kind: ServiceEntry\n\
             spec:\n\
             \x20 hosts:\n\
             \x20 - a.example.com\n\
             \x20 - \"*.b\"\n\
             \x20 ports:\n\
             \x20 - number: 443\n\
             \x20   name: tls\n\
             \x20 none: []\n\
             text: \"two\\nlines: \\\"x\\\"\"\n\
             answer: \"no\"\n"
        );
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            let map = prop::collection::hash_map(any::<String>(), inner.clone(), 0..5)
                .prop_map(|map: HashMap<String, Value>| map.into_iter().collect());
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(Value::Array),
                map.prop_map(Value::Object),
            ]
        })
    }

    proptest! {
        #[test]
        fn another_parser_reads_the_same(value in values()) {
            prop_assert_eq!(read(&yaml(&value)), value);
        }
    }
}
