//! Puts the three sources together, at the start and again at each reload.

use std::io;
use std::path::{Path, PathBuf};

use clap::ArgMatches;

use super::error::{Problem, SettingsError};
use super::layer::{Layer, Origin, Reader, text};
use super::table::PREFIX;
use super::value::nearest;
use super::{DEFAULT_FILE, Settings, TABLE, file};

/// Variables of ours that are not settings of the agent.
const OTHER_VARIABLES: &[&str] = &["EGRESS_SETTINGS"];

/// A settings file is a page or two; more is a mistake.
const FILE_LIMIT: u64 = 1 << 20;

/// Where settings come from. Flags and environment stay as they were at the
/// start; the file is read anew by each [`Sources::load`].
#[derive(Clone, Debug)]
pub struct Sources {
    flags: Layer,
    environment: Layer,
    /// Named by the operator: it must exist.
    named: Option<PathBuf>,
    notes: Vec<String>,
}

/// Settings that were read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The settings file, if there was one.
    pub file: Option<PathBuf>,
    /// What an operator should know but that stops nothing.
    pub notes: Vec<String>,
    /// `policy` is the default, so that its directory may be absent.
    pub default_policy: bool,
}

impl Sources {
    /// From parsed flags (of [`command`](super::command::command)) and the
    /// environment.
    pub fn new(
        matches: &ArgMatches,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut sources = Self {
            flags: Layer::new(),
            environment: Layer::new(),
            named: matches.get_one::<PathBuf>("settings").cloned(),
            notes: Vec::new(),
        };
        for setting in TABLE {
            if let Some(values) = matches.get_many::<String>(setting.key) {
                let list = values.map(|value| text(value)).collect();
                sources.flags.insert(setting.key, list);
            }
        }
        for (name, value) in environment {
            sources.variable(&name, &value);
        }
        sources
    }

    fn variable(&mut self, name: &str, value: &str) {
        if !name.starts_with(PREFIX) {
            return;
        }
        if let Some(setting) = TABLE.iter().find(|setting| setting.variable() == name) {
            // An empty variable is an unset one, as with most programs.
            if value.is_empty() {
                return;
            }
            let list = match setting.separator {
                Some(separator) => value
                    .split(separator)
                    .filter(|part| !part.is_empty())
                    .map(text)
                    .collect(),
                None => vec![text(value)],
            };
            self.environment.insert(setting.key, list);
        } else if name == "EGRESS_SETTINGS" {
            if !value.is_empty() && self.named.is_none() {
                self.named = Some(PathBuf::from(value));
            }
        } else {
            // Others may well use the prefix (Kubernetes sets variables for
            // every Service), so only what looks like a slip is told.
            let names: Vec<String> = TABLE.iter().map(super::table::Setting::variable).collect();
            let known = names
                .iter()
                .map(String::as_str)
                .chain(OTHER_VARIABLES.iter().copied());
            let bare = |text: &str| text.trim_start_matches(PREFIX).to_owned();
            let near = nearest(
                &bare(name),
                known.map(|known| known.trim_start_matches(PREFIX)),
            );
            if let Some(near) = near {
                self.notes.push(format!(
                    "environment variable {name} is not a setting; did you mean {PREFIX}{near}?"
                ));
            }
        }
    }

    /// Reads the file and puts all together.
    pub fn load(&self) -> Result<Loaded, SettingsError> {
        let mut problems = Vec::new();
        let path = self
            .named
            .clone()
            .unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let source = match read_file(&path) {
            Ok(source) => Some(source),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.named.is_none() => None,
            Err(error) => {
                problems.push(Problem::Unreadable {
                    path: path.clone(),
                    error,
                });
                None
            }
        };
        let layer = source
            .as_deref()
            .map(|source| file::read(source, &mut problems))
            .unwrap_or_default();
        let mut reader = Reader {
            file: &layer,
            environment: &self.environment,
            flags: &self.flags,
            problems,
        };
        let settings = reader.settings();
        let default_policy = reader.origin("policy") == Origin::Default;
        match settings {
            Some(settings) if reader.problems.is_empty() => Ok(Loaded {
                settings,
                file: source.map(|_| path),
                notes: self.notes.clone(),
                default_policy,
            }),
            _ => Err(SettingsError {
                problems: reader.problems,
                file: source.map(|source| (path, source)),
            }),
        }
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > FILE_LIMIT {
        return Err(io::Error::other(format!(
            "it has {length} bytes, more than {FILE_LIMIT}"
        )));
    }
    std::fs::read_to_string(path)
}
