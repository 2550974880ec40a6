//! The command line of `egressctl`.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use super::apply::{ApplyArgs, DeleteArgs, FilesArgs};
use super::explain::ExplainArgs;
use super::validate::ValidateArgs;
use crate::settings::value::{AdminSocket, Scalar};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// The command line of `egressctl`.
#[derive(Parser, Debug)]
#[command(
    name = "egressctl",
    version,
    about = "Asks and directs the egress agent of this node",
    long_about = "Asks and directs the egress agent of this node, and checks and explains its policy.",
    after_help = "Exit codes: 0 done, 1 failed or not valid, 2 wrong command line.",
    styles = STYLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// Admin socket of the agent
    #[arg(
        long,
        global = true,
        env = "EGRESS_ADMIN",
        value_name = "unix:PATH",
        default_value = "unix:/run/egress/admin.sock",
        value_parser = admin_socket,
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub admin: AdminSocket,

    /// When to use colours
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value_t = Color::Auto,
        help_heading = "Global options"
    )]
    pub color: Color,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

fn admin_socket(text: &str) -> Result<AdminSocket, String> {
    AdminSocket::parse(text).map_err(|fault| fault.message)
}

/// When to use colours.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Color {
    pub(super) const fn choice(self) -> anstream::ColorChoice {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
    }
}

/// How results are written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// The columns that matter most
    Table,
    /// All columns
    Wide,
    /// YAML
    Yaml,
    /// JSON
    Json,
}

/// `-o`.
#[derive(Args, Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutputArgument {
    /// Form of the output
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t = Output::Table)]
    pub output: Output,
}

/// `-n` and `-o`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct Select {
    /// Only this namespace
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Form of the output
    #[command(flatten)]
    pub output: OutputArgument,
}

/// Arguments of `observe`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ObserveArgs {
    /// Write ServiceEntry documents for them to standard output
    #[arg(long)]
    pub suggest: bool,

    /// Only what was refused
    #[arg(long)]
    pub refused: bool,

    /// Forget what was seen so far
    #[arg(long, conflicts_with_all = ["suggest", "refused"])]
    pub clear: bool,

    /// Which, and in which form
    #[command(flatten)]
    pub select: Select,
}

/// A kind of policy document.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Hosts that are registered
    #[value(
        name = "serviceentry",
        alias = "serviceentries",
        alias = "se",
        alias = "ServiceEntry"
    )]
    ServiceEntry,
    /// How a host is reached
    #[value(
        name = "destinationrule",
        alias = "destinationrules",
        alias = "dr",
        alias = "DestinationRule"
    )]
    DestinationRule,
    /// How requests are routed
    #[value(
        name = "virtualservice",
        alias = "virtualservices",
        alias = "vs",
        alias = "VirtualService"
    )]
    VirtualService,
    /// What a credentialName names
    #[value(name = "secret", alias = "secrets", alias = "Secret")]
    Secret,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ServiceEntry => "ServiceEntry",
            Self::DestinationRule => "DestinationRule",
            Self::VirtualService => "VirtualService",
            Self::Secret => "Secret",
        }
    }
}

/// What `proxy-config` shows.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyConfig {
    /// Hosts and ports in force, and whether the kernel or the agent serves them
    #[value(alias = "service", alias = "clusters", alias = "cluster")]
    Services,
    /// Addresses of each service, with health and load
    #[value(alias = "endpoint")]
    Endpoints,
    /// Certificates and their validity; never keys
    #[value(alias = "secret")]
    Secrets,
    /// Names, their virtual addresses and what they resolve to
    Dns,
}

/// A program that completions are written for.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// The command line
    Egressctl,
    /// The daemon
    EgressAgent,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check policy documents without an agent
    #[command(
        long_about = "Check policy documents without an agent: each for itself, and whether they fit each other.",
        after_help = "Exit codes: 0 valid (there may be warnings), 1 not valid, 2 a path cannot be read or holds nothing.\n\nExamples:\n  egressctl validate /etc/egress/policy\n  egressctl validate api.yaml -o json\n  kubectl get se,dr,vs -A -o yaml | egressctl validate -"
    )]
    Validate(ValidateArgs),

    /// Say what happens to connections or requests to a destination, and why
    #[command(
        long_about = "Say what happens to connections or requests to a destination, and why. Asks the agent; with --policy, reads documents instead and needs no agent.",
        after_help = "A destination that nothing registers is a plain answer, too: exit code 0.\n\nExamples:\n  egressctl explain https://api.example.com/v1/charges\n  egressctl explain db.example.com:5432 --from $$\n  egressctl explain http://api.example.com --policy ./policy --from payments"
    )]
    Explain(ExplainArgs),

    /// Show how the agent, its policy and its kernel side are
    #[command(after_help = "Examples:\n  egressctl status\n  egressctl status -o json")]
    Status {
        /// Form of the output
        #[command(flatten)]
        output: OutputArgument,
    },

    /// List policy documents, their problems, and which version is in force
    #[command(
        after_help = "Examples:\n  egressctl get\n  egressctl get se -n payments\n  egressctl get dr payments-api -o yaml"
    )]
    Get {
        /// Kind of document; also se, dr, vs
        #[arg(value_enum, ignore_case = true)]
        kind: Option<Kind>,
        /// Name of one document
        #[arg(requires = "kind")]
        name: Option<String>,
        /// Which, and in which form
        #[command(flatten)]
        select: Select,
    },

    /// Show what the agent made of the policy
    #[command(
        visible_alias = "pc",
        after_help = "Examples:\n  egressctl proxy-config services\n  egressctl pc endpoints db.example.com -o wide\n  egressctl pc dns"
    )]
    ProxyConfig {
        /// What to show
        #[arg(value_enum)]
        what: ProxyConfig,
        /// Only this host, or hosts that contain this text
        #[arg(value_hint = ValueHint::Hostname)]
        host: Option<String>,
        /// Which, and in which form
        #[command(flatten)]
        select: Select,
    },

    /// Show metrics
    #[command(
        after_help = "Examples:\n  egressctl stats\n  egressctl stats 'tcp.*opened'\n  egressctl stats egress_ -o json"
    )]
    Stats {
        /// Regular expression for `name{labels}`
        filter: Option<String>,
        /// Form of the output
        #[command(flatten)]
        output: OutputArgument,
    },

    /// List destinations that nothing registers, by caller and name
    #[command(
        long_about = "List destinations that nothing registers, by caller and name, as far as the kernel remembers: the 16384 used last. Names are those of DNS answers that the agent passed on.",
        after_help = "Examples:\n  egressctl observe\n  egressctl observe --refused -o wide\n  egressctl observe --suggest -n payments > suggested.yaml"
    )]
    Observe(ObserveArgs),

    /// Show or change the log filter, until the agent reloads or restarts
    #[command(
        after_help = "Examples:\n  egressctl log\n  egressctl log debug\n  egressctl log info,egress_agent::dns=trace"
    )]
    Log {
        /// New filter, such as `debug` or `info,egress_agent::dns=debug`
        filter: Option<String>,
    },

    /// Stop the agent once open connections have ended, or the drain deadline
    /// has passed
    Drain {
        /// Wait until the agent has stopped
        #[arg(short, long)]
        wait: bool,
    },

    /// Put policy documents in force, and keep them across restarts
    #[command(
        after_help = "Exit codes: 0 all accepted, 1 some rejected.\n\nExamples:\n  egressctl apply -f api.yaml\n  egressctl apply -f policy/ --dry-run\n  kubectl get se,dr,vs -A -o yaml | egressctl apply -f -"
    )]
    Apply(ApplyArgs),

    /// Show what `apply` would change
    #[command(
        after_help = "Exit codes: 0 all would be accepted, 1 some rejected.\n\nExamples:\n  egressctl diff -f api.yaml"
    )]
    Diff(FilesArgs),

    /// Remove policy documents that were applied
    #[command(
        after_help = "A document that comes from a watched file is removed in that file.\n\nExamples:\n  egressctl delete se payments-api -n payments\n  egressctl delete -f api.yaml"
    )]
    Delete(DeleteArgs),

    /// Write a completion script for a shell to standard output
    #[command(
        after_help = "Examples:\n  egressctl completion bash > /etc/bash_completion.d/egressctl\n  egressctl completion zsh egress-agent"
    )]
    Completion {
        /// Shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
        /// Program to complete
        #[arg(value_enum, default_value_t = Program::Egressctl)]
        program: Program,
    },

    /// Write manual pages
    #[command(
        after_help = "Examples:\n  egressctl man | man -l -\n  egressctl man /usr/share/man/man1"
    )]
    Man {
        /// Directory for all pages; without it, egressctl(1) goes to standard output
        #[arg(value_hint = ValueHint::DirPath)]
        directory: Option<PathBuf>,
    },
}
