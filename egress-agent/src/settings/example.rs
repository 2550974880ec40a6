//! The settings file with every setting, its meaning and its default.

use std::fmt::Write;

use super::TABLE;
use super::table::{Setting, When};

/// Width of comment lines.
const WIDTH: usize = 78;

/// A settings file in which every setting stands as a comment with its
/// default, ready to be edited. `config/egress-agent.toml` is this text.
pub fn example() -> String {
    let mut text = String::from(
        "# Settings of egress-agent. Every key is also a flag (--state-dir) and an\n\
         # environment variable (EGRESS_STATE_DIR): a flag goes before a variable, a\n\
         # variable before this file. What stands here as a comment is the default.\n",
    );
    let mut section = "";
    for setting in TABLE {
        if setting.section != section {
            section = setting.section;
            let _ = write!(text, "\n## {section}\n");
        }
        text.push('\n');
        entry(&mut text, setting);
    }
    text
}

fn entry(text: &mut String, setting: &Setting) {
    for (n, paragraph) in setting.paragraphs().iter().enumerate() {
        if n > 0 {
            text.push_str("#\n");
        }
        wrap(text, paragraph);
    }
    if setting.when == When::Start {
        text.push_str("# A change takes effect at the next start.\n");
    }
    let _ = match (setting.key, setting.default, setting.separator) {
        ("workload", ..) => writeln!(text, "{WORKLOAD}"),
        ("mesh-identity", ..) => writeln!(text, "#mesh-identity = \"/etc/egress/identity\""),
        ("cgroup", ..) => writeln!(text, "#cgroup = \"/sys/fs/cgroup/system.slice\""),
        ("locality", ..) => writeln!(text, "#locality = \"eu-west-1/eu-west-1a\""),
        ("kubeconfig", ..) => writeln!(text, "#kubeconfig = \"/etc/egress/kubeconfig\""),
        ("node-name", ..) => writeln!(text, "#node-name = \"node-1\""),
        ("dns-upstream", ..) => writeln!(
            text,
            "#dns-upstream = [\"192.0.2.53\", \"[2001:db8::53]:53\"]"
        ),
        ("dns-search", ..) => writeln!(text, "#dns-search = [\"corp.example.com\"]"),
        ("dns-upstream-in", ..) => writeln!(
            text,
            "#dns-upstream-in = [\"payments=10.0.0.2\", \"legacy=10.9.0.2:5353@/run/netns/legacy\"]"
        ),
        ("dns-search-in", ..) => {
            writeln!(text, "#dns-search-in = [\"payments=corp.example.com\"]")
        }
        ("outbound-in", ..) => writeln!(text, "#outbound-in = [\"payments=registry-only\"]"),
        ("outbound-allow", ..) => writeln!(
            text,
            "#outbound-allow = [\"192.0.2.0/24\", \"192.0.2.1:123\", \"[2001:db8::/32]:443\"]"
        ),
        (key, Some(default), Some(_)) => writeln!(text, "#{key} = [\"{default}\"]"),
        (key, None, Some(_)) => writeln!(text, "#{key} = []"),
        // Numbers and switches read better without quotes.
        (key, Some(default), None) if default.bytes().all(|b| b.is_ascii_digit()) => {
            writeln!(text, "#{key} = {default}")
        }
        (key, Some(default), None) => writeln!(text, "#{key} = \"{default}\""),
        (key, None, None) => writeln!(text, "#{key} = \"\""),
    };
}

/// Tables end what stands before them in TOML, so these are written inline.
const WORKLOAD: &str = "\
#workload = [
#  { cgroup = \"system.slice/payments-*.service\", namespace = \"payments\", labels = { app = \"payments\" } },
#  { cgroup = \"batch.slice\", namespace = \"batch\" },
#]";

fn wrap(text: &mut String, paragraph: &str) {
    let mut line = String::from("#");
    for word in paragraph.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}
