//! `egressctl explain`: what happens to a destination, and why.
//!
//! A destination that nothing registers is a plain answer, so the exit code is
//! 0; scripts read `registered` of `-o json`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueHint};
use serde_json::Value;

use super::client::Client;
use super::validate::{Form, ReadingArgs};
use super::{Failure, output};
use crate::policy::compile::{Ids, compile};
use crate::policy::explain::text::text;
use crate::policy::explain::{AsWritten, Explanation, From, Query, Target, explain};
use crate::policy::load::load_paths;
use crate::policy::snapshot;

/// Arguments of `egressctl explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Destination: a URL, HOST:PORT, or a HOST with one port
    #[arg(value_name = "URL|HOST:PORT", value_hint = ValueHint::Url)]
    pub target: String,

    /// Who goes there: a process id, a cgroup path, or
    /// NAMESPACE[,LABEL=VALUE]...
    #[arg(long, value_name = "PID|CGROUP|NAMESPACE")]
    pub from: Option<String>,

    /// Read these files and directories instead of asking the agent; may be
    /// given several times
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub policy: Vec<PathBuf>,

    /// Let the agent connect to the endpoints with the policy's identity, and
    /// show what the handshakes came to; not a byte of an application is sent
    #[arg(long, conflicts_with = "policy")]
    pub connect: bool,

    /// Method of the request, for HTTP routes
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    pub request: String,

    /// Header of the request, for HTTP routes; may be given several times
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,

    /// Form of the output
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t = Form::Text)]
    pub output: Form,

    /// How documents are read
    #[command(flatten, next_help_heading = "With --policy")]
    pub reading: ReadingArgs,
}

impl ExplainArgs {
    /// Documents are read, and no agent is asked.
    pub(super) fn offline(&self) -> bool {
        !self.policy.is_empty()
    }

    /// The question, with everything checked but the caller.
    fn query(&self, client: snapshot::Client) -> Result<Query, Failure> {
        let wrong = |error: crate::policy::explain::QueryError| Failure::Usage(error.to_string());
        let target = Target::parse(&self.target).map_err(wrong)?;
        let query = Query::new(target, client)
            .method(&self.request)
            .map_err(wrong)?;
        self.header
            .iter()
            .try_fold(query, |query, line| query.header(line))
            .map_err(wrong)
    }

    fn from(&self) -> Result<Option<From>, Failure> {
        let parsed = self.from.as_deref().map(From::parse).transpose();
        parsed.map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// Explains from documents.
///
/// # Errors
/// When the question is none, or nothing can be read.
pub(super) fn offline(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let client = match args.from()? {
        Some(From::Client(client)) => client,
        None => snapshot::Client {
            namespace: args.reading.namespace.as_str().into(),
            labels: Arc::default(),
        },
        Some(From::Process(_) | From::Cgroup(_)) => {
            return Err(Failure::Usage(
                "only the agent knows the namespaces of processes and cgroups: with --policy, name a namespace".into(),
            ));
        }
    };
    let query = args.query(client)?;
    let options = args.reading.options();
    let loaded = load_paths(&args.policy, &options);
    if let Some(problem) = loaded
        .diagnostics
        .iter()
        .find(|d| d.is_error() && d.rule == "file")
    {
        return Err(Failure::Usage(problem.to_string()));
    }
    let refused = loaded.diagnostics.iter().filter(|d| d.is_error()).count();
    if refused > 0 {
        // As in the agent: what is refused is missing, the rest acts.
        anstream::eprintln!(
            "egressctl: {refused} errors in the documents; those that are refused do not act (see egressctl validate)"
        );
    }
    let (snapshot, _) = compile(&mut Ids::default(), &loaded.documents, &options);
    let explanation = explain(&snapshot, &query, &AsWritten);
    let value =
        serde_json::to_value(&explanation).map_err(|error| Failure::Output(error.into()))?;
    print(args.output, value)
}

/// Asks the agent.
///
/// # Errors
/// When the question is none, or the agent does not answer.
pub(super) async fn online(args: &ExplainArgs, client: &Client) -> Result<ExitCode, Failure> {
    args.from()?;
    // Faults of the command line are found here, not by the agent.
    args.query(snapshot::Client {
        namespace: Arc::from(""),
        labels: Arc::default(),
    })?;
    let headers = args.header.join("\n");
    let parameters = [
        ("target", Some(args.target.as_str())),
        ("from", args.from.as_deref()),
        (
            "method",
            Some(args.request.as_str()).filter(|method| *method != "GET"),
        ),
        (
            "headers",
            Some(headers.as_str()).filter(|lines| !lines.is_empty()),
        ),
        ("connect", args.connect.then_some("true")),
    ];
    let value: Value = client.get("/v1/explain", &parameters).await?;
    print(args.output, value)
}

/// JSON is passed on as the agent gave it, also what is newer than we are.
fn print(form: Form, value: Value) -> Result<ExitCode, Failure> {
    output::text(&match form {
        Form::Json => format!("{value:#}\n"),
        Form::Text => {
            let explanation: Explanation = serde_json::from_value(value).map_err(|error| {
                Failure::Said(format!("cannot understand the agent's answer: {error}"))
            })?;
            text(&explanation)
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
