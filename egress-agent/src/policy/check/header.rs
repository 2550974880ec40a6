//! Names and values of headers that a route matches or changes.

use crate::policy::diagnostic::Span;
use crate::policy::schema::reader::Reader;

/// A header name as Istio spells it: RFC 7230's, and a comma, which slips in
/// through the range `+-.` of its expression.
pub fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_`|~".contains(&b))
}

/// A name that `headers` of a match may have: a header's, or a pseudo-header's.
pub fn is_match_name(name: &str) -> bool {
    is_header_name(name)
        || matches!(
            name,
            ":method" | ":scheme" | ":authority" | ":path" | ":status"
        )
}

/// `host` or `:authority`, whose change is a rewrite of the authority.
pub fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// `@request.auth.claims.NAME` or `@request.auth.claims[NAME]`: JWT claims,
/// which only gateways know.
pub fn is_claim(name: &str) -> bool {
    const PREFIX: &str = "@request.auth.claims";
    let Some(head) = name.get(..PREFIX.len()) else {
        return false;
    };
    let rest = &name[PREFIX.len()..];
    head.eq_ignore_ascii_case(PREFIX)
        && ((rest.starts_with('.') && rest.len() > 1)
            || (rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2))
}

/// What is done to a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `set` or `add` of a request: may name the authority.
    RequestValue,
    /// `remove`, or anything on a response.
    Other,
}

/// Reports a header that cannot be changed so.
pub fn check_operation(reader: &mut Reader<'_>, name: &str, span: Span, operation: Operation) {
    let allowed = operation == Operation::RequestValue && is_authority(name);
    let (problem, help) = if name.is_empty() {
        (
            "a header name must not be empty".to_owned(),
            "name the header",
        )
    } else if name.starts_with(':') && !allowed {
        (
            format!("{name:?} cannot be changed: it is part of the request line"),
            "use `rewrite` to change the path or authority",
        )
    } else if name.eq_ignore_ascii_case("host") && !allowed {
        (
            "the Host header cannot be removed, or set on a response".to_owned(),
            "use `rewrite.authority`, or `set` of the request",
        )
    } else if !allowed && http::HeaderName::try_from(name).is_err() {
        // Istio lets such a name pass; no request could carry it.
        let message = format!("{name:?} is not a header name, so this has no effect");
        reader.warn("header-name", span, message, "write an HTTP header name");
        return;
    } else {
        return;
    };
    reader.error("header-name", span, problem, help);
}

/// Reports a value that is not a template: control characters, or a percent
/// sign that starts no variable.
pub fn check_value(reader: &mut Reader<'_>, value: &str, span: Span) {
    let control = |c: char| matches!(c, '\0'..='\u{8}' | '\u{a}'..='\u{1f}' | '\u{7f}');
    if value.contains(control) {
        let message = "a header value must not hold control characters";
        reader.error("header-value", span, message, "remove them");
    } else if let Err(problem) = template(value) {
        let message = format!("the header value {value:?} is not a template: {problem}");
        let help = "write `%%` for a percent sign, and close each `%VARIABLE%`";
        reader.error("header-value", span, message, help);
    }
}

/// Walks a template as Envoy's header formatter does: `%NAME%`,
/// `%NAME(argument)%` or `%NAME(["a", "b"])%`.
fn template(value: &str) -> Result<(), &'static str> {
    enum State {
        Literal,
        Name,
        Arguments,
        ArrayItem,
        Text,
        AfterItem,
        AfterArray,
        End,
    }
    let bytes = value.as_bytes();
    let mut state = State::Literal;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let next = bytes.get(at + 1);
        let space = byte == b' ';
        state = match state {
            State::Literal => match (byte, next) {
                (b'%', None) => return Err("it ends in a single percent sign"),
                (b'%', Some(b'%')) => {
                    at += 1;
                    State::Literal
                }
                (b'%', _) => State::Name,
                _ => State::Literal,
            },
            State::Name => match byte {
                b'%' => State::Literal,
                b'(' => State::Arguments,
                _ => State::Name,
            },
            State::Arguments => match byte {
                b'[' => State::ArrayItem,
                _ if space => State::Arguments,
                _ => State::Text,
            },
            State::ArrayItem => match byte {
                b'"' => State::Text,
                _ if space => State::ArrayItem,
                _ => return Err("a quoted string is expected in the list"),
            },
            State::Text => match byte {
                b'\\' if next.is_none() => return Err("it ends in a backslash"),
                b'\\' => {
                    at += 1;
                    State::Text
                }
                b')' => State::End,
                b'"' => State::AfterItem,
                _ => State::Text,
            },
            State::AfterItem => match byte {
                b',' => State::ArrayItem,
                b']' => State::AfterArray,
                _ if space => State::AfterItem,
                _ => return Err("`,` or `]` is expected after the string"),
            },
            State::AfterArray => match byte {
                b')' => State::End,
                _ if space => State::AfterArray,
                _ => return Err("`)` is expected after the list"),
            },
            State::End => match byte {
                b'%' => State::Literal,
                _ if space => State::End,
                _ => return Err("`%` is expected after `)`"),
            },
        };
        at += 1;
    }
    match state {
        State::Literal => Ok(()),
        _ => Err("a variable is not closed"),
    }
}
