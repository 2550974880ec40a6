//! `cargo xtask demo`: the main job as a short story on the terminal. All of
//! it happens in a lab of its own, and is gone at the end.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use lab::certificates::Authority;
use lab::dns::NameServer;
use lab::nginx::Nginx;
use lab::{Context, Lab, RESOLVER, Result, kernel, policy};

const HOST: &str = "api.payments.example";
const REAL: &str = "203.0.113.10";

fn main() -> ExitCode {
    match story() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn story() -> Result<()> {
    let started = Instant::now();
    let tell = Teller::new();
    tell.say("A network of its own (two namespaces, no way out), an external service that")?;
    tell.say("speaks nothing but TLS, a name server, and a cgroup for the applications.")?;
    let lab = Lab::new()?;
    let authority = Authority::new(&lab, "demo")?;
    let dns = NameServer::start(&lab, RESOLVER, &format!("{REAL} {HOST}\n"))?;
    let nginx = Nginx::new(&lab, "payments")
        .https(&format!("{REAL}:443"), &authority.issue(&[HOST])?)?
        .start()?;
    let url = format!("http://{HOST}/charges");

    tell.title("Without egress, an application that speaks plain HTTP gets nowhere")?;
    tell.command(&format!("curl {url}"))?;
    tell.output(&lab.curl(&[&url]).output()?.stderr)?;

    tell.title("The operator writes one policy file, as for Istio")?;
    let document = policy::tls_origination(HOST, &authority.path());
    lab.write_policy("payments", &document)?;
    tell.output(&document)?;

    tell.title("The agent starts, attached to the applications' cgroup")?;
    tell.command("egress-agent --policy policy/ --cgroup CGROUP")?;
    let agent = lab.agent().start()?;
    tell.output("ready")?;
    let hooks: Vec<String> = kernel::attached(&lab.client_cgroup())?
        .into_iter()
        .map(|(hook, _)| hook)
        .collect();
    tell.say(&format!(
        "The kernel has our programs on: {}",
        hooks.join(", ")
    ))?;

    tell.title("The same unmodified curl, the same plain URL")?;
    tell.command(&format!("curl {url}"))?;
    let answer = lab
        .curl(&[
            "--fail",
            "--write-out",
            "peer address that curl saw: %{remote_ip}:%{remote_port}\n",
            &url,
        ])
        .text()?;
    tell.output(&answer)?;

    tell.title("What the external service saw")?;
    let request = nginx.request(1)?;
    for (name, field) in [
        ("protocol", "protocol"),
        ("SNI", "sni"),
        ("client", "client"),
        ("request", "request"),
    ] {
        let value = request[field].as_str().context("nginx's log")?;
        tell.output(&format!("{name:<9} {value}"))?;
    }

    tell.title("Why: what egressctl says")?;
    tell.command(&format!("egressctl explain {url}"))?;
    tell.output(&lab.egressctl(&["explain", &url])?.text()?)?;

    tell.title("And the access log")?;
    let record = agent.record("the record of curl's connection", |_| true)?;
    tell.output(&record.to_string())?;

    tell.title("The agent stops; what is declared stays in force until it is withdrawn")?;
    agent.stop()?;
    let attached = || -> Result<()> {
        let count = kernel::attached(&lab.client_cgroup())?.len();
        tell.output(&format!("programs attached to the cgroup: {count}"))
    };
    attached()?;
    tell.command("egress-agent --cleanup")?;
    lab.clean_up()?;
    attached()?;
    drop((nginx, dns, lab));

    tell.title("With your own policy, on this host")?;
    tell.output(
        "cargo xtask run -- --policy FILE-OR-DIRECTORY            # captures every process\n\
         cargo xtask run -- --policy FILE-OR-DIRECTORY --cgroup PATH   # or one cgroup\n\
         cargo xtask run -- --help",
    )?;
    tell.say(&format!(
        "Told in {:.1} s; the lab is gone.",
        started.elapsed().as_secs_f64()
    ))
}

/// Prints; in bold and colour where that can be seen.
struct Teller {
    fancy: bool,
}

impl Teller {
    fn new() -> Self {
        let fancy = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { fancy }
    }

    fn say(&self, text: &str) -> Result<()> {
        self.print("", text, "")
    }

    fn title(&self, text: &str) -> Result<()> {
        self.print("\n\x1b[1m", &format!("# {text}"), "\x1b[0m")
    }

    fn command(&self, text: &str) -> Result<()> {
        self.print("\x1b[36m", &format!("    $ {text}"), "\x1b[0m")
    }

    /// What a program printed, set off.
    fn output(&self, text: &str) -> Result<()> {
        for line in text.trim_end().lines() {
            self.print("", &format!("    {line}"), "")?;
        }
        Ok(())
    }

    fn print(&self, before: &str, text: &str, after: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.fancy {
            writeln!(out, "{before}{text}{after}")?;
        } else {
            let line_break = if before.starts_with('\n') { "\n" } else { "" };
            writeln!(out, "{line_break}{text}")?;
        }
        out.flush()?;
        Ok(())
    }
}
