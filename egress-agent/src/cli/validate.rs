//! `egressctl validate`: every problem in files and directories, offline.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum, ValueHint};
use serde::Serialize;

use super::{Failure, output};
use crate::policy::compile::{Ids, compile};
use crate::policy::diagnostic::{Diagnostic, Severity, Source, Span};
use crate::policy::document::Outcome;
use crate::policy::load::{Loaded, load_paths};
use crate::policy::render::render;
use crate::policy::schema::meta::Kind;
use crate::policy::{Options, UnknownFields};
use crate::settings::value::{self, Scalar};

/// Exit code of a wrong command line, and of files that cannot be read: what
/// could not be looked at must not count as valid, nor as looked at.
pub(super) const USAGE: u8 = 2;

/// Rules that speak of a host which no document registers.
const UNREGISTERED: [&str; 3] = [
    "rule-without-service",
    "host-unregistered",
    "destination-unknown",
];

/// Arguments of `egressctl validate`.
#[derive(Args, Clone, Debug)]
pub struct ValidateArgs {
    /// Files, and directories of *.yaml, *.yml and *.json files; - is standard
    /// input
    #[arg(
        required_unless_present = "files",
        value_name = "FILE|DIR",
        value_hint = ValueHint::AnyPath
    )]
    pub paths: Vec<PathBuf>,

    /// The same, as `apply` takes it; may be given several times
    #[arg(
        short,
        long = "filename",
        value_name = "FILE|DIR",
        value_hint = ValueHint::AnyPath
    )]
    pub files: Vec<PathBuf>,

    /// Form of the output
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t = Form::Text)]
    pub output: Form,

    /// How documents are read
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// How documents are read without an agent; the agent's settings of the same
/// names.
#[derive(Args, Clone, Debug)]
pub struct ReadingArgs {
    /// Namespace of documents that name none
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// Namespace whose exported DestinationRules apply to all others
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    pub root_namespace: String,

    /// Domain that completes a host without a dot
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// What an unknown field is: an error, or a warning
    #[arg(long, value_name = "error|warn", default_value = "error", value_parser = unknown_fields)]
    pub unknown_fields: value::UnknownFields,
}

fn unknown_fields(text: &str) -> Result<value::UnknownFields, String> {
    value::UnknownFields::parse(text).map_err(|fault| fault.message)
}

/// Forms of output.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// For people
    Text,
    /// For programs
    Json,
}

impl ReadingArgs {
    /// As options of reading and compiling.
    pub fn options(&self) -> Options {
        Options {
            default_namespace: self.namespace.as_str().into(),
            root_namespace: self.root_namespace.as_str().into(),
            cluster_domain: self.cluster_domain.as_str().into(),
            unknown_fields: match self.unknown_fields {
                value::UnknownFields::Error => UnknownFields::Error,
                value::UnknownFields::Warn => UnknownFields::Warn,
            },
            ..Options::default()
        }
    }
}

/// What was found.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Nothing was refused, and everything could be read.
    pub valid: bool,
    /// Files that were read.
    pub files: usize,
    /// Documents of kinds that are taken, valid or not.
    pub documents: usize,
    /// Those that are refused.
    pub rejected: usize,
    /// Documents of other kinds.
    pub skipped: usize,
    /// Problems that documents are refused for.
    pub errors: usize,
    /// Problems that they are not refused for.
    pub warnings: usize,
    /// Problems, in the order of files and lines.
    pub problems: Vec<Diagnostic>,
    /// Something could not be read, or there was nothing to read.
    #[serde(skip)]
    unreadable: bool,
}

impl Report {
    /// 0: valid. 1: something is refused. 2: something cannot be read, or
    /// there is no file at all.
    pub fn exit_code(&self) -> u8 {
        match (self.unreadable, self.valid) {
            (true, _) => USAGE,
            (false, false) => 1,
            (false, true) => 0,
        }
    }
}

/// Checks the documents, alone and together.
pub fn check(args: &ValidateArgs) -> Report {
    let options = args.reading.options();
    let paths = [args.paths.as_slice(), &args.files].concat();
    let mut loaded = load_paths(&paths, &options);
    let empty = empty_directories(&paths, &loaded);
    let standard_input = paths.iter().any(|path| path.as_os_str() == "-");
    let nothing = loaded.files.is_empty() && !standard_input;
    loaded.diagnostics.extend(empty);
    let (_, mut across) = compile(&mut Ids::default(), &loaded.documents, &options);
    tell_of_refused(&mut across, &loaded.outcomes);
    loaded.diagnostics.extend(across);
    let problems = in_order(loaded.diagnostics);
    let outcomes = |fits: fn(&Outcome) -> bool| loaded.outcomes.iter().filter(|o| fits(o)).count();
    let count = |severity| problems.iter().filter(|p| p.severity == severity).count();
    let rejected = outcomes(|outcome| matches!(outcome, Outcome::Rejected(_)));
    let unreadable = nothing || problems.iter().any(|p| p.is_error() && p.rule == "file");
    let errors = count(Severity::Error);
    Report {
        valid: errors == 0 && !unreadable,
        files: loaded.files.len(),
        documents: rejected + outcomes(|outcome| matches!(outcome, Outcome::Valid(_))),
        rejected,
        skipped: outcomes(|outcome| matches!(outcome, Outcome::Skipped)),
        errors,
        warnings: count(Severity::Warning),
        problems,
        unreadable,
    }
}

/// A host may be missing only because the ServiceEntry that registers it is
/// refused.
fn tell_of_refused(across: &mut [Diagnostic], outcomes: &[Outcome]) {
    let registers = |outcome: &&Outcome| match outcome {
        Outcome::Rejected(Some(id)) => id.kind == Kind::ServiceEntry,
        Outcome::Rejected(None) => true,
        Outcome::Valid(_) | Outcome::Skipped => false,
    };
    if !outcomes.iter().any(|outcome| registers(&outcome)) {
        return;
    }
    for problem in across {
        if UNREGISTERED.contains(&problem.rule)
            && let Some(help) = &mut problem.help
        {
            *help = format!("mend the documents that are refused first; then {help}").into();
        }
    }
}

/// By file and line, so that what a document and what its neighbours make
/// wrong stand together.
fn in_order(mut problems: Vec<Diagnostic>) -> Vec<Diagnostic> {
    problems.sort_by_cached_key(|problem| {
        let location = problem.location.as_ref();
        location.map(|l| (l.source.name.clone(), l.line(), l.span.column))
    });
    problems
}

/// Directories that hold no file of ours: as with kubectl, not what was meant.
fn empty_directories(paths: &[PathBuf], loaded: &Loaded) -> Vec<Diagnostic> {
    let empty = paths
        .iter()
        .filter(|path| path.is_dir() && !loaded.files.iter().any(|file| file.starts_with(path)));
    let warning = |path: &PathBuf| {
        let source = Source::nameless(&path.display().to_string());
        let message = "the directory holds no .yaml, .yml or .json file";
        Diagnostic::new(Severity::Warning, "empty-directory", message)
            .help("check the path; hidden files and directories are passed over")
            .at(&source, Span::default())
    };
    empty.map(warning).collect()
}

/// Runs the command.
///
/// # Errors
/// When the report cannot be written.
pub(super) fn run(args: &ValidateArgs) -> Result<ExitCode, Failure> {
    let report = check(args);
    output::text(&match args.output {
        Form::Json => format!("{:#}\n", serde_json::to_value(&report).map_err(json)?),
        Form::Text => text(&report),
    })?;
    Ok(ExitCode::from(report.exit_code()))
}

fn json(error: serde_json::Error) -> Failure {
    Failure::Output(error.into())
}

/// The report for people, with styles.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let _ = writeln!(text, "{}\n", render(problem, true));
    }
    let _ = writeln!(text, "{}", summary(report));
    text
}

/// `3 documents, 1 error, 2 warnings`.
fn summary(report: &Report) -> String {
    let mut text = format!(
        "{}, {}, {}",
        plural(report.documents, "document"),
        plural(report.errors, "error"),
        plural(report.warnings, "warning"),
    );
    if report.skipped > 0 {
        let _ = write!(
            text,
            "; {} of other kinds passed over",
            plural(report.skipped, "document")
        );
    }
    text
}

fn plural(count: usize, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        count => format!("{count} {word}s"),
    }
}
