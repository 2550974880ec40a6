//! Values by source, and reading a setting from the highest that has it.

use std::collections::BTreeMap;

use super::error::Problem;
use super::table::Setting;
use super::value::{Form, Raw, Value};
use super::{Settings, TABLE};

/// Where values come from, in rising order of rank.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

/// Values of one source by key.
pub(super) type Layer = BTreeMap<&'static str, Vec<Raw>>;

/// Text from a flag, a variable or a default.
pub(super) fn text(text: &str) -> Raw {
    Raw {
        form: Form::Text(text.to_owned()),
        span: None,
    }
}

/// The setting of this key.
pub(super) fn setting(key: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.key == key)
}

/// Reads settings from layers and collects what is wrong.
pub(super) struct Reader<'a> {
    pub(super) file: &'a Layer,
    pub(super) environment: &'a Layer,
    pub(super) flags: &'a Layer,
    pub(super) problems: Vec<Problem>,
}

impl Reader<'_> {
    /// Where the value of `key` comes from.
    pub(super) fn origin(&self, key: &str) -> Origin {
        if self.flags.contains_key(key) {
            Origin::Flag
        } else if self.environment.contains_key(key) {
            Origin::Environment
        } else if self.file.contains_key(key) {
            Origin::File
        } else {
            Origin::Default
        }
    }

    /// Reads the setting `key`; a problem is noted and gives `None`.
    pub(super) fn read<T: Value>(&mut self, key: &'static str) -> Option<T> {
        let origin = self.origin(key);
        let given = match origin {
            Origin::Flag => self.flags.get(key),
            Origin::Environment => self.environment.get(key),
            Origin::File => self.file.get(key),
            Origin::Default => None,
        };
        let default: Vec<Raw>;
        let raw = if let Some(raw) = given {
            raw.as_slice()
        } else {
            let word = setting(key).and_then(|setting| setting.default);
            default = word.map(text).into_iter().collect();
            &default
        };
        match T::read(raw) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.complain(key, origin, fault.message, fault.span);
                None
            }
        }
    }

    /// Notes a problem of `key` where its value came from.
    pub(super) fn complain(
        &mut self,
        key: &str,
        origin: Origin,
        message: String,
        span: Option<std::ops::Range<usize>>,
    ) {
        let place = match origin {
            Origin::Flag => format!("flag --{key}"),
            Origin::Environment => {
                let variable = setting(key).map(Setting::variable).unwrap_or_default();
                format!("environment variable {variable}")
            }
            Origin::File | Origin::Default => format!("setting {key}"),
        };
        let span = span.or_else(|| {
            (origin == Origin::File)
                .then(|| self.file.get(key)?.first()?.span.clone())
                .flatten()
        });
        self.problems.push(match span {
            Some(span) if origin == Origin::File => Problem::InFile {
                message: format!("{key}: {message}"),
                span,
                help: None,
            },
            _ => Problem::Elsewhere { place, message },
        });
    }

    /// Reads everything and checks what spans several settings.
    pub(super) fn settings(&mut self) -> Option<Settings> {
        let settings = Settings::read(self)?;
        let limit = settings.heartbeat_limit.as_millis();
        if !(100..=60_000).contains(&limit) {
            let message = format!("{limit}ms is not from 100ms to 1m");
            self.complain(
                "heartbeat-limit",
                self.origin("heartbeat-limit"),
                message,
                None,
            );
            return None;
        }
        Some(settings)
    }
}
