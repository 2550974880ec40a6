//! `egressctl validate`: every problem in files and directories, offline.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum, ValueHint};
use serde::Serialize;

use crate::policy::compile::{Ids, compile};
use crate::policy::diagnostic::{Diagnostic, Severity};
use crate::policy::document::Outcome;
use crate::policy::load::load_paths;
use crate::policy::render::render;
use crate::policy::{Options, UnknownFields};

/// Arguments of `egressctl validate`.
#[derive(Args, Clone, Debug)]
pub struct ValidateArgs {
    /// Files and directories to check; - is standard input
    #[arg(required = true, value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,

    /// What to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,

    /// What the documents are read with
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// How documents are read without an agent.
#[derive(Args, Clone, Debug, Default)]
pub struct ReadingArgs {
    /// Namespace of documents that name none
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub default_namespace: String,

    /// Istio's root namespace
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    pub root_namespace: String,

    /// Only warn about unknown fields
    #[arg(long)]
    pub allow_unknown_fields: bool,
}

/// Forms of output.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Each problem with its source line
    #[default]
    Text,
    /// One line a problem: file:line:column: message
    Short,
    /// For editors and CI
    Json,
}

impl ReadingArgs {
    /// As options of reading and compiling.
    pub fn options(&self) -> Options {
        Options {
            default_namespace: self.default_namespace.as_str().into(),
            root_namespace: self.root_namespace.as_str().into(),
            unknown_fields: if self.allow_unknown_fields {
                UnknownFields::Warn
            } else {
                UnknownFields::Error
            },
            ..Options::default()
        }
    }
}

/// What was found.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether nothing was refused.
    pub valid: bool,
    /// Documents that were found valid.
    pub documents: usize,
    /// Documents that were refused.
    pub rejected: usize,
    /// Documents of other kinds.
    pub skipped: usize,
    /// Problems, in the order of files and lines.
    pub problems: Vec<Diagnostic>,
}

/// Checks the documents, alone and together.
pub fn check(args: &ValidateArgs) -> Report {
    let options = args.reading.options();
    let mut loaded = load_paths(&args.paths, &options);
    let valid = loaded.is_valid();
    let (_, across) = compile(&mut Ids::default(), &loaded.documents, &options);
    loaded.diagnostics.extend(across);
    let count = |fits: fn(&Outcome) -> bool| loaded.outcomes.iter().filter(|o| fits(o)).count();
    let place = |d: &Diagnostic| {
        let location = d.location.as_ref();
        location.map(|l| (l.source.name.clone(), l.line(), l.span.column))
    };
    let report = Report {
        valid,
        documents: count(|outcome| matches!(outcome, Outcome::Valid(_))),
        rejected: count(|outcome| matches!(outcome, Outcome::Rejected(_))),
        skipped: count(|outcome| matches!(outcome, Outcome::Skipped)),
        problems: Vec::new(),
    };
    loaded.diagnostics.sort_by_cached_key(place);
    Report {
        problems: loaded.diagnostics,
        ..report
    }
}

/// Runs the command. Exit code 0: valid; 1: not valid.
pub fn run(args: &ValidateArgs) -> ExitCode {
    let report = check(args);
    let valid = report.valid;
    match print(args.output, &report) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            anstream::eprintln!("egressctl: {error}");
            ExitCode::FAILURE
        }
        _ if valid => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn print(format: Format, report: &Report) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(report)?)?,
        Format::Text => {
            for problem in &report.problems {
                // Styles that the terminal cannot show are taken out again.
                writeln!(out, "{}\n", render(problem, true))?;
            }
            writeln!(out, "{}", summary(report))?;
        }
        Format::Short => {
            for problem in &report.problems {
                writeln!(out, "{problem}")?;
            }
        }
    }
    out.flush()
}

fn summary(report: &Report) -> String {
    let count = |severity| {
        report
            .problems
            .iter()
            .filter(|p| p.severity == severity)
            .count()
    };
    let plural = |count: usize, word: &str| match count {
        1 => format!("1 {word}"),
        count => format!("{count} {word}s"),
    };
    let mut text = format!(
        "{}: {}, {}",
        plural(report.documents + report.rejected, "document"),
        plural(count(Severity::Error), "error"),
        plural(count(Severity::Warning), "warning"),
    );
    if report.skipped > 0 {
        text += &format!("; {} of other kinds passed over", report.skipped);
    }
    text
}
