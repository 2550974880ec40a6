//! `apply`, `diff` and `delete`.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueHint};
use http::Method;
use similar::TextDiff;

use super::Failure;
use super::args::Kind;
use super::client::Client;
use super::output;
use super::yaml::yaml;
use crate::admin::view;
use crate::policy::load::files_of;

/// `-f`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct FilesArgs {
    /// File or directory of documents; - is standard input; may be given
    /// several times
    #[arg(
        short,
        long = "filename",
        required = true,
        value_name = "FILE|DIR",
        value_hint = ValueHint::AnyPath
    )]
    pub files: Vec<PathBuf>,
}

/// Arguments of `apply`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ApplyArgs {
    /// What to apply
    #[command(flatten)]
    pub files: FilesArgs,

    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `delete`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct DeleteArgs {
    /// Kind of document; also se, dr, vs
    #[arg(
        value_enum,
        ignore_case = true,
        requires = "name",
        required_unless_present = "files",
        conflicts_with = "files"
    )]
    pub kind: Option<Kind>,

    /// Name of the document
    pub name: Option<String>,

    /// Its namespace, if it is not the default of the agent
    #[arg(short, long, value_name = "NAME", requires = "kind")]
    pub namespace: Option<String>,

    /// Every document of a file or directory; - is standard input; may be
    /// given several times
    #[arg(
        short,
        long = "filename",
        value_name = "FILE|DIR",
        value_hint = ValueHint::AnyPath
    )]
    pub files: Vec<PathBuf>,

    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// A text for the agent, and what its user calls it.
struct Input {
    name: String,
    text: Vec<u8>,
}

fn inputs(paths: &[PathBuf]) -> Result<Vec<Input>, Failure> {
    let unreadable = |path: &Path, error: &std::io::Error| {
        Failure::Said(format!("cannot read {}: {error}", path.display()))
    };
    let mut inputs = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut text);
            read.map_err(|error| unreadable(path, &error))?;
            let name = "<stdin>".to_owned();
            inputs.push(Input { name, text });
            continue;
        }
        let files = files_of(path).map_err(|error| unreadable(path, &error))?;
        if files.is_empty() {
            return Err(Failure::Said(format!(
                "{} has no *.yaml, *.yml or *.json file",
                path.display()
            )));
        }
        for file in files {
            let text = fs::read(&file).map_err(|error| unreadable(&file, &error))?;
            let name = file.display().to_string();
            inputs.push(Input { name, text });
        }
    }
    Ok(inputs)
}

async fn ask(
    client: &Client,
    method: Method,
    input: Input,
    dry_run: bool,
) -> Result<Vec<view::Change>, Failure> {
    let Input { name, text } = input;
    let parameters = [("dry-run", dry_run.then_some("true"))];
    let mut changes: Vec<view::Change> = client
        .json(method, "/v1/documents", &parameters, text)
        .await?;
    // The agent does not know what the text is called here.
    let problems = changes.iter_mut().flat_map(|change| &mut change.problems);
    for problem in problems.filter(|problem| problem.source.starts_with('<')) {
        problem.source.clone_from(&name);
    }
    Ok(changes)
}

/// `kind/name outcome`, as kubectl writes it; of a text that is no document,
/// its place.
fn line(change: &view::Change, dry_run: bool) -> String {
    let what = match (change.id.kind.as_str(), change.problems.first()) {
        ("", Some(problem)) => format!("{}:{}", problem.source, problem.line),
        (kind, _) => format!("{}/{}", kind.to_ascii_lowercase(), change.id.name),
    };
    let tail = if dry_run { " (dry run)" } else { "" };
    format!("{what} {}{tail}", change.outcome)
}

fn problem(problem: &view::Problem) -> String {
    let mut text = problem.source.clone();
    if problem.line > 0 {
        let _ = write!(text, ":{}:{}", problem.line, problem.column);
    }
    if !text.is_empty() {
        text.push_str(": ");
    }
    let _ = write!(text, "{}: {}", problem.severity, problem.message);
    text
}

fn tell(change: &view::Change) {
    // Notes are about what has nothing to do with us.
    let problems = change.problems.iter().filter(|p| p.severity != "note");
    for one in problems {
        anstream::eprintln!("{}", problem(one));
    }
}

async fn change(
    client: &Client,
    method: Method,
    inputs: Vec<Input>,
    dry_run: bool,
) -> Result<ExitCode, Failure> {
    let mut rejected = false;
    for input in inputs {
        let name = input.name.clone();
        let changes = ask(client, method.clone(), input, dry_run).await?;
        if changes.is_empty() {
            anstream::eprintln!("{name}: no document of the policy");
        }
        for change in &changes {
            tell(change);
            output::text(&format!("{}\n", line(change, dry_run)))?;
            rejected |= change.outcome == "rejected";
        }
    }
    Ok(exit(rejected))
}

fn exit(rejected: bool) -> ExitCode {
    if rejected {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// `apply`. Each file is taken for itself, whatever becomes of the others.
pub(super) async fn apply(args: &ApplyArgs, client: &Client) -> Result<ExitCode, Failure> {
    let inputs = inputs(&args.files.files)?;
    change(client, Method::POST, inputs, args.dry_run).await
}

/// `delete`.
pub(super) async fn delete(args: &DeleteArgs, client: &Client) -> Result<ExitCode, Failure> {
    let inputs = match (args.kind, &args.name) {
        (Some(kind), Some(name)) => vec![named(kind, name, args.namespace.as_deref())],
        _ => inputs(&args.files)?,
    };
    change(client, Method::DELETE, inputs, args.dry_run).await
}

/// A document with nothing but its name.
fn named(kind: Kind, name: &str, namespace: Option<&str>) -> Input {
    let version = match kind {
        Kind::Secret => "v1",
        _ => "networking.istio.io/v1",
    };
    let mut metadata = serde_json::json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    let document = serde_json::json!({
        "apiVersion": version,
        "kind": kind.name(),
        "metadata": metadata,
    });
    Input {
        name: String::new(),
        text: document.to_string().into_bytes(),
    }
}

/// `diff`.
pub(super) async fn diff(args: &FilesArgs, client: &Client) -> Result<ExitCode, Failure> {
    let mut rejected = false;
    for input in inputs(&args.files)? {
        for change in ask(client, Method::POST, input, true).await? {
            tell(&change);
            if change.outcome == "rejected" {
                anstream::eprintln!("{}", line(&change, false));
                rejected = true;
            } else if change.outcome != "unchanged" {
                output::text(&unified(&change))?;
            }
        }
    }
    Ok(exit(rejected))
}

/// A unified diff of both versions, in YAML with the fields in their order.
pub(super) fn unified(change: &view::Change) -> String {
    let text = |object: &Option<serde_json::Value>| object.as_ref().map(yaml).unwrap_or_default();
    let (before, after) = (text(&change.before), text(&change.after));
    let id = &change.id;
    let name = format!(
        "{}/{}/{}",
        id.kind.to_ascii_lowercase(),
        id.namespace,
        id.name
    );
    if before == after {
        // The data of a Secret is not shown, and a document may change its
        // source alone.
        let why = if id.kind == "Secret" {
            "its data, which is not shown"
        } else {
            "where it comes from"
        };
        return format!("# {name}: what changes is {why}\n");
    }
    let old = match &change.before {
        Some(_) => format!("in force/{name}"),
        None => "/dev/null".to_owned(),
    };
    let diff = TextDiff::from_lines(&before, &after);
    let mut out = String::new();
    let text = diff
        .unified_diff()
        .header(&old, &format!("new/{name}"))
        .to_string();
    for line in text.split_inclusive('\n') {
        // Removed for a stream that shows no colours.
        let colour = match line.as_bytes().first() {
            Some(b'-') => "\x1b[31m",
            Some(b'+') => "\x1b[32m",
            Some(b'@') => "\x1b[36m",
            _ => "",
        };
        let plain = line.trim_end_matches('\n');
        let reset = if colour.is_empty() { "" } else { "\x1b[0m" };
        let _ = writeln!(out, "{colour}{plain}{reset}");
    }
    out
}
