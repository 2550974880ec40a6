//! `cargo xtask bench`: egress beside no proxy at all, Envoy, HAProxy and
//! nginx, on the same fixed work, in namespaces of its own.

mod account;
mod arena;
mod bare;
mod bytes;
mod cpus;
mod direct;
mod dns;
mod extra;
mod idle;
mod limits;
mod load;
mod logs;
mod machine;
mod measure;
mod peer;
mod probe;
mod progress;
mod report;
mod restart;
mod scale;
mod serve;
mod services;
mod statistics;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::arena::Arena;
use crate::cpus::Cpus;
use crate::measure::Measured;
use crate::peer::{Name, Records};
use crate::progress::Progress;
use crate::report::Report;
use crate::workloads::Workload;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure.
    Run(Arguments),
    /// The load generator, for the bench itself.
    #[command(hide = true)]
    Load { description: String },
    /// DNS queries one at a time, for the bench itself.
    #[command(hide = true)]
    DnsLatency { description: String },
    /// A client of small measurements, for the bench itself.
    #[command(hide = true)]
    Probe,
    /// A proxy that only passes on, for the bench itself.
    #[command(hide = true)]
    Bare { description: String },
    /// A reader of an access log, for the bench itself.
    #[command(hide = true)]
    Drain { pipe: PathBuf },
    /// A watch for stalls of one CPU, for the bench itself.
    #[command(hide = true)]
    Watch,
    /// The services, for the bench itself.
    #[command(hide = true)]
    Serve { description: String },
}

#[derive(Args)]
struct Arguments {
    /// Workloads by name, or by the beginning of the names of several; all
    /// without.
    workloads: Vec<String>,
    /// Less work and fewer workloads: under three minutes.
    #[arg(long)]
    quick: bool,
    /// Rounds of each workload over each path.
    #[arg(long)]
    rounds: Option<usize>,
    /// Leave these paths out.
    #[arg(long, value_parser = path, value_delimiter = ',')]
    without: Vec<Name>,
    /// Measure two floors, too: a proxy on hyper that only passes HTTP/1.1 on, and
    /// one that passes on bytes without a look at them.
    #[arg(long)]
    bare: bool,
    /// Give proxies CPUs of their own, half of them: steadier figures, to compare
    /// two builds with.
    #[arg(long)]
    apart: bool,
    /// The agent is that build; for the report alone.
    #[arg(long, hide = true)]
    profile_guided: bool,
    /// Let nginx and HAProxy write their own short log lines, and give requests
    /// no ids.
    #[arg(long)]
    own_logs: bool,
    /// Part of the usual work of each round.
    #[arg(long)]
    share: Option<f64>,
    /// Folder of the report.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// List the workloads.
    #[arg(long)]
    list: bool,
}

/// Exit code when the machine was too noisy for any verdict.
const TOO_NOISY: u8 = 3;

fn path(name: &str) -> Result<Name, String> {
    Name::ALL
        .into_iter()
        .find(|path| path.title().eq_ignore_ascii_case(name))
        .ok_or_else(|| "one of direct, egress, Envoy, HAProxy, nginx, bare, bytes".to_owned())
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(arguments) => run(&arguments),
        Command::Load { description } => load::run(&description).map(|()| ExitCode::SUCCESS),
        Command::DnsLatency { description } => {
            dns::run_latency(&description).map(|()| ExitCode::SUCCESS)
        }
        Command::Probe => probe::run().map(|()| ExitCode::SUCCESS),
        Command::Bare { description } => bare::run(&description).map(|()| ExitCode::SUCCESS),
        Command::Drain { pipe } => logs::drain(&pipe).map(|()| ExitCode::SUCCESS),
        Command::Watch => load::watch().map(|()| ExitCode::SUCCESS),
        Command::Serve { description } => serve::run(&description).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    /// Those named; without names all, or those of a quick run.
    fn wants(&self, name: &str, quick: bool) -> bool {
        if self.workloads.is_empty() {
            return quick || !self.quick;
        }
        let known = || workloads::ALL.iter().map(|one| one.name);
        self.workloads.iter().any(|wanted| {
            // `http1-1k` is not `http1-1k-2000`, too.
            name == wanted
                || (name.starts_with(wanted.as_str()) && !known().any(|one| one == wanted))
        })
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        for workload in workloads::ALL {
            println!("{:<16} {}", workload.name, workload.title);
        }
        for extra in extra::ALL {
            println!("{:<16} {}", extra.name, extra.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    limits::raise_open_files()?;
    let cpus = Cpus::new(arguments.apart)?;
    let chosen: Vec<_> = workloads::ALL
        .iter()
        .filter(|workload| arguments.wants(workload.name, workload.quick))
        .collect();
    let extra: Vec<_> = extra::ALL
        .into_iter()
        .filter(|extra| arguments.wants(extra.name, extra.quick))
        .collect();
    ensure!(
        !chosen.is_empty() || !extra.is_empty(),
        "no workload has such a name; see --list"
    );
    let rounds = arguments
        .rounds
        .unwrap_or(if arguments.quick { 3 } else { 7 });
    let share = arguments
        .share
        .unwrap_or(if arguments.quick { 0.3 } else { 1.0 });

    let measured = if chosen.is_empty() {
        Vec::new()
    } else {
        measure_beside_peers(arguments, &chosen, rounds, share, cpus.clone())?
    };

    let amount = extra::Amount { rounds, share };
    let report = Report {
        command: command_line(),
        rounds,
        cpus: cpus.describe(),
        measured,
        extra: extra.iter().map(|extra| extra.run(amount)).collect(),
    };
    println!("{}", report.write(&arguments.out)?);
    eprintln!(
        "written to {}: bench.md, bench.json, *.svg",
        arguments.out.display()
    );
    let (noisy, all) = report.noise();
    if noisy > 0 {
        eprintln!(
            "{noisy} of {all} verdicts are not given: the machine was too noisy to tell. Run it \
             again when nothing else runs, or with more --rounds."
        );
    }
    Ok(if all > 0 && noisy == all {
        ExitCode::from(TOO_NOISY)
    } else {
        ExitCode::SUCCESS
    })
}

fn measure_beside_peers(
    arguments: &Arguments,
    chosen: &[&Workload],
    rounds: usize,
    share: f64,
    cpus: Cpus,
) -> Result<Vec<Measured>> {
    let mut arena = Arena::new(cpus)?;
    if arguments.own_logs {
        arena.records = Records::Own;
    }
    let mut peers = Vec::new();
    for name in Name::ALL {
        if !arguments.without.contains(&name) && (arguments.bare || !name.is_floor()) {
            eprintln!("starting {}", name.title());
            peers.push(peer::start(&arena, name, &services::ALL)?);
        }
    }
    let mut progress = Progress::new(chosen.len() * rounds * peers.len());
    Ok(chosen
        .iter()
        .map(|workload| measure::workload(&arena, &peers, workload, rounds, share, &mut progress))
        .collect())
}

/// As the user would type it.
fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let mut line = String::from("cargo xtask bench");
    for argument in arguments {
        line.push(' ');
        line.push_str(&argument);
    }
    line
}
