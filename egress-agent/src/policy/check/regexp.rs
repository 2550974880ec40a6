//! Regular expressions: RE2's language, which the `regex` crate nearly speaks.
//!
//! Sources: RE2's syntax page and Go's `regexp/syntax`, which Istio checks
//! with. What they write in another way than the crate is translated; what
//! only the crate knows is refused.

use std::fmt::Write;

use regex::{Regex, RegexBuilder};

/// Characters that a regular expression may have.
pub const MAX_LENGTH: usize = 1024;
/// RE2's bound on `{n}`.
const MAX_REPEAT: u32 = 1000;

/// Compiles an expression so that it matches whole strings only. The error
/// says what is wrong with it.
pub fn compile(text: &str) -> Result<Regex, String> {
    build(&format!(r"\A(?:{})\z", translated(text)?))
}

/// Compiles an expression that may match anywhere in a string.
pub fn compile_search(text: &str) -> Result<Regex, String> {
    build(&translated(text)?)
}

fn build(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(4 << 20)
        .dfa_size_limit(1 << 20)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "the regular expression is too large".to_owned(),
            error => {
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default();
                let reason = reason.strip_prefix("error: ").unwrap_or(reason);
                format!("not a regular expression: {reason}")
            }
        })
}

fn translated(text: &str) -> Result<String, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!(
            "the regular expression has {} characters; at most {MAX_LENGTH} are allowed",
            text.len()
        ));
    }
    let mut translator = Translator {
        rest: text,
        out: String::with_capacity(text.len() + 8),
        names: Vec::new(),
        open: vec![1],
        last: 1,
        repeated: false,
    };
    match translator.run() {
        Ok(()) => Ok(translator.out),
        Err(reason) => Err(format!("not a regular expression: {reason}")),
    }
}

/// Names of classes such as `[:alpha:]`.
const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

struct Translator<'t> {
    rest: &'t str,
    out: String,
    names: Vec<&'t str>,
    /// How often what is counted by repetitions is repeated at most, in each
    /// open group so far.
    open: Vec<u32>,
    /// The same of the last thing.
    last: u32,
    /// The last thing was a repetition.
    repeated: bool,
}

impl Translator<'_> {
    fn take(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn run(&mut self) -> Result<(), String> {
        while let Some(c) = self.take() {
            if matches!(c, '*' | '+' | '?') || (c == '{' && repetition(self.rest).is_some()) {
                self.repeat(c)?;
                continue;
            }
            self.repeated = false;
            self.last = 1;
            match c {
                '\\' => self.escape(false)?,
                '[' => self.class()?,
                '(' => self.group()?,
                ')' => {
                    // An unbalanced one would close the group around the whole.
                    if self.open.len() == 1 {
                        return Err("a `)` closes nothing".into());
                    }
                    self.last = self.open.pop().unwrap_or(1);
                    self.note();
                    self.out.push(')');
                    continue;
                }
                // A brace that is no repetition is a plain character.
                '{' | '}' => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                c => self.out.push(c),
            }
        }
        if self.open.len() > 1 {
            return Err("a `(` is not closed".into());
        }
        Ok(())
    }

    /// Notes the count of the last thing in the group around it.
    fn note(&mut self) {
        if let Some(around) = self.open.last_mut() {
            *around = self.last.max(*around);
        }
    }

    fn repeat(&mut self, c: char) -> Result<(), String> {
        if self.repeated {
            return Err("two repetition operators follow each other".into());
        }
        self.out.push(c);
        if c == '{' {
            let Some((low, high, len)) = repetition(self.rest) else {
                return Ok(());
            };
            let bound = high.unwrap_or(low);
            if low > MAX_REPEAT || bound > MAX_REPEAT || bound < low {
                return Err(format!(
                    "a repetition counts up to {MAX_REPEAT}, the smaller number first"
                ));
            }
            // Repetitions within each other count as a product.
            self.last = self.last.saturating_mul(bound.max(1));
            if self.last > MAX_REPEAT {
                return Err(format!(
                    "repetitions within each other count up to {MAX_REPEAT} together"
                ));
            }
            self.note();
            self.out.push_str(&self.rest[..len]);
            self.rest = &self.rest[len..];
        }
        if let Some(rest) = self.rest.strip_prefix('?') {
            self.out.push('?');
            self.rest = rest;
        }
        self.repeated = true;
        Ok(())
    }

    /// Behind an opening parenthesis.
    fn group(&mut self) -> Result<(), String> {
        self.open.push(1);
        let Some(inner) = self.rest.strip_prefix('?') else {
            self.out.push('(');
            return Ok(());
        };
        if let Some(named) = inner.strip_prefix("P<").or_else(|| {
            inner
                .strip_prefix('<')
                .filter(|n| !n.starts_with(['=', '!']))
        }) {
            let (name, rest) = named
                .split_once('>')
                .ok_or("a group's name is not closed")?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || !name.bytes().all(plain) || self.names.contains(&name) {
                return Err(format!("{name:?} cannot name a group here"));
            }
            self.names.push(name);
            self.out.push('(');
            self.rest = rest;
            return Ok(());
        }
        let end = inner.find([':', ')']).ok_or("a group is not closed")?;
        let flags = &inner[..end];
        let minus = flags.bytes().filter(|b| *b == b'-').count();
        if !flags.bytes().all(|b| b"imsU-".contains(&b)) || minus > 1 || flags.ends_with('-') {
            return Err(format!("RE2 has no `(?{flags}`"));
        }
        let colon = inner[end..].starts_with(':');
        if flags.is_empty() && !colon {
            return Err("`(?)` sets no flag".into());
        }
        if !colon {
            self.open.pop();
        }
        self.out.push_str("(?");
        self.out.push_str(&inner[..=end]);
        self.rest = &inner[end + 1..];
        Ok(())
    }

    /// Behind an opening bracket.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if let Some(rest) = self.rest.strip_prefix('^') {
            self.out.push('^');
            self.rest = rest;
        }
        let mut first = true;
        loop {
            let Some(c) = self.take() else {
                return Err("a `[` is not closed".into());
            };
            match c {
                ']' if !first => {
                    self.out.push(']');
                    return Ok(());
                }
                '\\' => self.escape(true)?,
                '[' if self.rest.starts_with(':') => {
                    let Some((name, rest)) = self.rest.split_once(":]") else {
                        self.out.push_str("\\[");
                        continue;
                    };
                    let plain = name.trim_start_matches([':', '^']);
                    if !POSIX.contains(&plain) {
                        return Err(format!("there is no class `[{name}:]`"));
                    }
                    self.out.push('[');
                    self.out.push_str(name);
                    self.out.push_str(":]");
                    self.rest = rest;
                }
                // Nested classes and set operations are the crate's own.
                ']' | '[' | '&' | '~' => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                '-' if self.rest.starts_with('-') => self.out.push_str("\\-"),
                c => self.out.push(c),
            }
            first = false;
        }
    }

    /// Behind a backslash.
    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let before = self.rest;
        let Some(c) = self.take() else {
            return Err("it ends in a backslash".into());
        };
        match c {
            // Perl's classes are ASCII in RE2.
            'd' | 'w' | 's' | 'D' | 'W' | 'S' => {
                let set = match c.to_ascii_lowercase() {
                    'd' => "0-9",
                    'w' => "0-9A-Za-z_",
                    _ => r"\t\n\x0c\r ",
                };
                let open = if c.is_ascii_uppercase() { "[^" } else { "[" };
                self.out.push_str(open);
                self.out.push_str(set);
                self.out.push(']');
            }
            'b' if !in_class => self.out.push_str(r"(?-u:\b)"),
            'B' if !in_class => self.out.push_str(r"\B"),
            'A' | 'z' if !in_class => {
                self.out.push('\\');
                self.out.push(c);
            }
            'Q' if !in_class => {
                let (literal, rest) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
                self.out.push_str(&regex::escape(literal));
                self.rest = rest;
            }
            'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'x' | 'p' | 'P' => {
                self.out.push('\\');
                self.out.push(c);
            }
            // Octal; a single digit but 0 would be a back reference.
            '0'..='7' if c == '0' || self.rest.starts_with(|c| ('0'..='7').contains(&c)) => {
                let len = before
                    .bytes()
                    .take(3)
                    .take_while(|b| (b'0'..=b'7').contains(b))
                    .count();
                let value = u32::from_str_radix(&before[..len], 8).unwrap_or_default();
                let _ = write!(self.out, r"\x{{{value:x}}}");
                self.rest = &before[len..];
            }
            '1'..='9' => return Err(format!("RE2 has no back references such as `\\{c}`")),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => {
                self.out
                    .push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
            }
            c => return Err(format!("RE2 has no escape `\\{c}`")),
        }
        Ok(())
    }
}

/// `n}`, `n,}` or `n,m}` at the start: the numbers, and the length.
fn repetition(text: &str) -> Option<(u32, Option<u32>, usize)> {
    let (inner, _) = text.split_once('}')?;
    let (low, high) = match inner.split_once(',') {
        Some((low, high)) => (low, Some(high)),
        None => (inner, None),
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u32>().unwrap_or(u32::MAX))
    };
    let high = match high {
        None | Some("") => None,
        Some(high) => Some(number(high)?),
    };
    Some((number(low)?, high, inner.len() + 1))
}

/// Turns RE2's `\1` of a substitution into the crate's `${1}`. Envoy's rewrite
/// knows `\0` to `\9` and `\\`.
pub fn replacement(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                Some('$') => out.push_str("$$"),
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            '$' => out.push_str("$$"),
            c => out.push(c),
        }
    }
    out
}
