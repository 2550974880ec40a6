//! The command line of `egress-agent`, made from the table of settings.

use clap::builder::{PathBufValueParser, ValueParser};
use clap::{Arg, ArgAction, Command};

use super::table::Setting;
use super::{DEFAULT_FILE, TABLE};

/// The command line.
pub fn command() -> Command {
    let settings = Arg::new("settings")
        .long("settings")
        .value_name("FILE")
        .value_parser(ValueParser::new(PathBufValueParser::new()))
        .help(format!(
            "Settings file (TOML) [env: EGRESS_SETTINGS] [default: {DEFAULT_FILE}, if it exists]"
        ));
    let check = Arg::new("check")
        .long("check")
        .action(ArgAction::SetTrue)
        .help("Check settings and policy, print every problem, and exit")
        .long_help(
            "Check settings and policy, print every problem, and exit: 0 when both are good, \
             1 when the policy is not, 2 when the settings are not.",
        );
    let example = Arg::new("print-settings")
        .long("print-settings")
        .action(ArgAction::SetTrue)
        .help("Print a settings file with every setting, its meaning and its default");
    let cleanup = Arg::new("cleanup")
        .long("cleanup")
        .action(ArgAction::SetTrue)
        .help("Detach the kernel programs that an agent left pinned, and exit")
        .long_help(
            "Detach the kernel programs that an agent left pinned under --bpffs, remove their \
             maps, and exit. They stay when an agent ends, so that direct services go on and the \
             others do as their on-agent-failure says. Refused while an agent runs.",
        );
    Command::new("egress-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Transparent egress for Linux nodes: the agent")
        .long_about(
            "Gives every process of this node controlled, observable and secure access to \
             external services, by Istio ServiceEntry, DestinationRule and VirtualService \
             documents.",
        )
        .after_help(
            "Each option is also a key of the settings file, and an environment variable: \
             --state-dir is state-dir and EGRESS_STATE_DIR. A flag goes before a variable, a \
             variable before the file. --help tells more than -h.",
        )
        .after_long_help(AFTER)
        .arg(settings)
        .arg(check)
        .arg(example)
        .arg(cleanup)
        .args(TABLE.iter().map(argument))
}

const AFTER: &str = "\
Each option is also a key of the settings file and an environment variable: --state-dir is
`state-dir` and EGRESS_STATE_DIR. A flag goes before a variable, a variable before the file, and
a list replaces the list of a lower rank whole.

Started while another agent uses the same state directory, it takes over from that one: sockets
are shared, and the other one drains and ends.

Signals:
  SIGTERM, SIGINT  drain: take no new connection, wait for open ones up to the drain deadline,
                   exit 0; a second signal exits at once
  SIGHUP           read settings and policy again, open the access log again

Exit codes:
  0  drained and stopped, or --check found nothing
  1  could not start, a worker died, or --check found problems in the policy
  2  the settings or the command line are wrong

Examples:
  egress-agent --policy ./policies
  egress-agent --settings ./agent.toml --log debug --log-format json
  egress-agent --check";

fn argument(setting: &Setting) -> Arg {
    let paragraphs = setting.paragraphs();
    let default = setting
        .default
        .map(|default| format!(" [default: {default}]"))
        .unwrap_or_default();
    let variable = setting.variable();
    let first = paragraphs.first().cloned().unwrap_or_default();
    Arg::new(setting.key)
        .long(setting.key)
        .value_name(setting.value)
        .help_heading(setting.section)
        .action(if setting.separator.is_some() {
            ArgAction::Append
        } else {
            ArgAction::Set
        })
        .help(format!("{first}{default}"))
        .long_help(format!(
            "{}\n\n[env: {variable}]{default}",
            paragraphs.join("\n\n")
        ))
}
