//! Reading single values: texts, numbers, durations, words.

use super::reader::{Fields, Reader, nearest};
use super::{Entries, Interval, Spanned, Text, Time, parse_duration};
use crate::policy::yaml::{Node, Value};

impl Reader<'_> {
    /// A string.
    pub fn text(&mut self, node: &Node) -> Option<Text> {
        if let Value::String(text) = &node.value {
            return Some(Spanned::new(text.clone(), node.span));
        }
        self.wrong_type(node, "a string");
        None
    }

    /// A string field.
    pub fn text_field(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Text> {
        self.field(fields, name, Self::text)
    }

    /// A list of strings.
    pub fn texts(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Vec<Text> {
        self.list(fields, name, Self::text)
    }

    /// A map of strings.
    pub fn text_map(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Entries<Text> {
        self.map(fields, name, Self::text)
    }

    /// A boolean.
    pub fn boolean(&mut self, node: &Node) -> Option<Spanned<bool>> {
        if let Value::Bool(value) = node.value {
            return Some(Spanned::new(value, node.span));
        }
        self.wrong_type(node, "true or false");
        None
    }

    /// A whole number that fits the type of the field.
    pub fn integer<T: TryFrom<i64> + Bounds>(&mut self, node: &Node) -> Option<Spanned<T>> {
        let value = match node.value {
            Value::Integer(value) => value,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "only whole numbers within 53 bits pass"
            )]
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => value as i64,
            Value::Float(value) if value.abs() >= 9e15 => i64::MAX,
            _ => {
                self.wrong_type(node, "a whole number");
                return None;
            }
        };
        if let Ok(value) = T::try_from(value) {
            return Some(Spanned::new(value, node.span));
        }
        let message = format!(
            "`{}` is {}; it must be {}",
            self.field_path(),
            value,
            T::BOUNDS
        );
        self.error(
            "number-range",
            node.span,
            message,
            "choose a number in that range",
        );
        None
    }

    /// A number.
    pub fn number(&mut self, node: &Node) -> Option<Spanned<f64>> {
        let value = match node.value {
            #[expect(clippy::cast_precision_loss, reason = "percentages; far below 53 bits")]
            Value::Integer(value) => value as f64,
            Value::Float(value) if value.is_finite() => value,
            _ => {
                self.wrong_type(node, "a number");
                return None;
            }
        };
        Some(Spanned::new(value, node.span))
    }

    /// A duration of any size.
    pub fn any_time(&mut self, node: &Node) -> Option<Time> {
        let Value::String(text) = &node.value else {
            self.wrong_type(node, "a duration such as \"10s\"");
            return None;
        };
        if let Some(value) = parse_duration(text) {
            return Some(Spanned::new(value, node.span));
        }
        let unit = text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty();
        let help = if unit {
            format!("a unit is needed, such as `{text}s`")
        } else {
            "write a number and a unit, such as `300ms`, `1.5s` or `1h30m`".to_owned()
        };
        let message = format!(
            "`{}` is {text:?}, which is not a duration",
            self.field_path()
        );
        self.error("duration", node.span, message, help);
        None
    }

    /// A duration of at least 1ms and in whole milliseconds.
    pub fn time(&mut self, node: &Node) -> Option<Time> {
        let time = self.any_time(node)?;
        self.check_time(time)
    }

    /// A duration in whole milliseconds, or zero for none. What is less than a
    /// millisecond either way is zero, as Istio counts.
    pub fn time_or_off(&mut self, node: &Node) -> Option<Time> {
        let time = self.any_time(node)?;
        if time.nanoseconds.abs() < 1_000_000 {
            return Some(Spanned::new(Interval::default(), time.span));
        }
        self.check_time(time)
    }

    fn check_time(&mut self, time: Time) -> Option<Time> {
        let Interval { nanoseconds } = time.value;
        let problem = if nanoseconds < 1_000_000 {
            "at least 1ms"
        } else if nanoseconds % 1_000_000 != 0 {
            "in whole milliseconds"
        } else {
            return Some(time);
        };
        let message = format!("`{}` must be {problem}", self.field_path());
        let help = if nanoseconds == 0 {
            "to have none, leave the field out"
        } else {
            "write it as, for example, `250ms`"
        };
        self.error("duration-range", time.span, message, help);
        None
    }

    /// A duration field of at least 1ms.
    pub fn time_field(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Time> {
        self.field(fields, name, Self::time)
    }

    /// One of several words.
    pub fn word<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<Spanned<T>> {
        let text = self.text(node)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == &**text) {
            return Some(Spanned::new(*value, node.span));
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let help = match nearest(&text.to_uppercase(), names.iter().copied()) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => format!("one of {}", names.join(", ")),
        };
        let message = format!(
            "`{}` is {:?}; it must be one of {}",
            self.field_path(),
            &**text,
            names.join(", ")
        );
        self.error("enum", node.span, message, help);
        None
    }
}

/// Number types of the API, for messages.
pub trait Bounds {
    /// The range in words.
    const BOUNDS: &'static str;
}

impl Bounds for i32 {
    const BOUNDS: &'static str = "between -2147483648 and 2147483647";
}

impl Bounds for u32 {
    const BOUNDS: &'static str = "between 0 and 4294967295";
}

impl Bounds for u64 {
    const BOUNDS: &'static str = "0 or more";
}
