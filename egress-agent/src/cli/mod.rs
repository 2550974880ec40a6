//! `egressctl`: asks the agent over its admin socket, and checks and explains
//! policy without one.
//!
//! Exit codes: 0 done, 1 failed or not valid, 2 wrong command line.

use std::process::ExitCode;

use clap::Parser;

pub mod apply;
pub mod args;
mod client;
pub mod explain;
mod generate;
mod observe;
mod output;
mod show;
mod stats;
mod status;
mod suggest;
mod table;
#[cfg(test)]
mod tests;
pub mod validate;
mod yaml;

use args::{Arguments, Command};
use client::{Client, ClientError};

/// Runs `egressctl` with the arguments of the process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.color.choice().write_global();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            anstream::eprintln!("egressctl: {error}");
            match error {
                Failure::Usage(_) => ExitCode::from(validate::USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let done = Ok(ExitCode::SUCCESS);
    match &arguments.command {
        Command::Completion { shell, program } => {
            generate::completion(*shell, *program)?;
            return done;
        }
        Command::Man { directory } => {
            generate::manual(directory.as_deref())?;
            return done;
        }
        Command::Validate(args) => return validate::run(args),
        Command::Explain(args) if args.offline() => return explain::offline(args),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = Client::new(&arguments.admin);
    runtime.block_on(online(&arguments.command, &client))
}

async fn online(command: &Command, client: &Client) -> Result<ExitCode, Failure> {
    match command {
        Command::Status { output } => status::status(client, *output).await?,
        Command::Get { kind, name, select } => {
            show::documents(client, *kind, name.as_deref(), select).await?;
        }
        Command::ProxyConfig { what, host, select } => {
            show::proxy_config(client, *what, host.as_deref(), select).await?;
        }
        Command::Stats { filter, output } => {
            stats::stats(client, filter.as_deref(), *output).await?;
        }
        Command::Observe(args) => observe::observe(client, args).await?,
        Command::Log { filter } => status::log(client, filter.as_deref()).await?,
        Command::Drain { wait } => status::drain(client, *wait).await?,
        Command::Explain(args) => return explain::online(args, client).await,
        Command::Apply(args) => return apply::apply(args, client).await,
        Command::Diff(args) => return apply::diff(args, client).await,
        Command::Delete(args) => return apply::delete(args, client).await,
        // Answered before an agent is needed.
        Command::Completion { .. } | Command::Man { .. } | Command::Validate(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The agent could not be asked, or refused.
    Client(ClientError),
    /// Output could not be written.
    Output(std::io::Error),
    /// What was asked for does not exist, or a value is wrong.
    Said(String),
    /// The command line is wrong.
    Usage(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client(error) => error.fmt(f),
            Self::Output(error) => write!(f, "cannot write: {error}"),
            Self::Said(text) | Self::Usage(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}
