//! Kubernetes objects arrive as JSON values with no place.

use super::{Key, Node, Value};
use crate::policy::diagnostic::Span;

/// A JSON value as a node; its places are unknown.
pub fn from_json(json: &serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => number
            .as_i64()
            .map(Value::Integer)
            .or_else(|| number.as_f64().map(Value::Float))
            .unwrap_or(Value::Null),
        Json::String(text) => Value::String(text.as_str().into()),
        Json::Array(items) => Value::Sequence(items.iter().map(from_json).collect()),
        Json::Object(entries) => Value::Mapping(
            entries
                .iter()
                .map(|(name, value)| {
                    let key = Key {
                        name: name.as_str().into(),
                        span: Span::default(),
                    };
                    (key, from_json(value))
                })
                .collect(),
        ),
    };
    Node {
        span: Span::default(),
        value,
    }
}
