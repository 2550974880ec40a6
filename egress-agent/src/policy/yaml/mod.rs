//! YAML (and with it JSON) as a tree whose every node knows its place.
//!
//! Scalars mean what they mean to Kubernetes, which reads YAML 1.1: `yes` and
//! `on` are booleans, `010` is eight. What is read is bounded in bytes, depth,
//! nodes and alias expansion.

mod json;
mod parse;
mod print;
mod scalar;
mod text;

#[cfg(test)]
mod tests;

use super::diagnostic::Span;

pub use json::from_json;
pub use parse::parse;
pub use print::to_yaml;
pub use text::{Limits, parts, text_of};

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it is.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction, or one past 64 bits.
    Float(f64),
    /// Text.
    String(Box<str>),
    /// A list.
    Sequence(Vec<Node>),
    /// An object; no key occurs twice.
    Mapping(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Text.
    pub name: Box<str>,
    /// Where it is.
    pub span: Span,
}

impl Node {
    /// What the value is called in a message.
    pub const fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::String(_) => "a string",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "an object",
        }
    }

    /// The value under a key.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Mapping(entries) => entries
                .iter()
                .find(|(key, _)| *key.name == *name)
                .map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}
