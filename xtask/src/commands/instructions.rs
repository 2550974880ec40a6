//! `cargo xtask bench --instructions`: how many instructions the steps of
//! `egress-agent/benches/micro` take, counted by callgrind, beside a stored
//! baseline. Unlike times, they are the same on a busy machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::cargo::{cargo, target_directory, workspace_root};
use crate::failure::Failure;
use crate::host;
use crate::packages;

/// More than this many per cent above the baseline is a failure.
const TOLERANCE: f64 = 5.0;
/// What callgrind counts within.
const COUNTED: &str = "--toggle-collect=*egress_counted_steps*";
/// How to accept what was counted.
const RENEW: &str = "cargo xtask bench --instructions --save-baseline";

/// Instructions of one step, by body.
type Counts = BTreeMap<String, u64>;

/// What counts can only be compared with: the same compiler for the same kind
/// of machine.
#[derive(PartialEq, Eq, Debug)]
struct Made {
    rustc: String,
    machine: String,
}

/// Counts, and compares with the baseline or stores it.
pub(crate) fn run(save: bool) -> Outcome {
    if host::find_program("valgrind").is_none() {
        packages::install(
            &packages::missing(&["valgrind"]),
            "install valgrind by your system's means, then run this again",
        )?;
    }
    let program = build()?;
    let mut counts = Counts::new();
    for line in output(Command::new(&program).arg("--list-bodies"))?.lines() {
        let Some((name, times)) = line.split_once(' ') else {
            continue;
        };
        let times: u64 = times.parse().unwrap_or(1).max(1);
        counts.insert(name.to_owned(), count(&program, name)? / times);
    }
    let made = Made::now()?;
    let path = workspace_root().join("bench/instructions.json");
    if save {
        let text = format!("{:#}\n", to_json(&made, &counts));
        std::fs::write(&path, text).map_err(|e| Failure::io(path.display(), &e))?;
        println!("{} has {} counts", path.display(), counts.len());
        return Ok(ExitCode::SUCCESS);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Failure::io(path.display(), &e))?;
    let (then, baseline) = from_json(&text)
        .ok_or_else(|| Failure::with_remedy(format!("{} cannot be read", path.display()), RENEW))?;
    let report = Report::new(&counts, &baseline);
    print!("{}", report.text);
    if then != made {
        println!(
            "not compared: the baseline is of {} on {}, this is {} on {}; renew it with `{RENEW}`",
            then.rustc, then.machine, made.rustc, made.machine
        );
        return Ok(ExitCode::SUCCESS);
    }
    if report.worse.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::with_remedy(
        format!(
            "more than {TOLERANCE} % more instructions than the baseline: {}",
            report.worse.join(", ")
        ),
        format!("if that is worth it, renew the baseline with `{RENEW}` and commit it"),
    ))
}

/// Builds the bodies, without what they do not touch, in a profile of its own:
/// optimised, in a form that a change elsewhere does not lay out anew.
fn build() -> Result<PathBuf, Failure> {
    let mut command = cargo(["build", "--package", "egress-agent", "--bench", "micro"]);
    command
        .args(["--profile", "instructions", "--no-default-features"])
        .args(["--message-format", "json-render-diagnostics"])
        // The kernel programs are not counted.
        .env("EGRESS_SKIP_BPF", "1")
        .env("CARGO_TARGET_DIR", target_directory().join("instructions"));
    eprintln!("building the micro-benchmarks ...");
    let text = output(&mut command)?;
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "micro")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| Failure::new("cargo did not say where the micro-benchmarks are"))
}

/// Instructions of all steps of one body.
fn count(program: &PathBuf, name: &str) -> Result<u64, Failure> {
    let finished = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(COUNTED)
        .arg(program)
        .args(["--count", name])
        .output()
        .map_err(|e| Failure::io("valgrind", &e))?;
    let told = String::from_utf8_lossy(&finished.stderr);
    if !finished.status.success() {
        return Err(Failure::new(format!(
            "{name} failed under callgrind:\n{told}"
        )));
    }
    collected(&told)
        .filter(|count| *count > 0)
        .ok_or_else(|| Failure::new(format!("callgrind counted nothing of {name}:\n{told}")))
}

/// From callgrind's `==7== Collected : 1234`.
fn collected(told: &str) -> Option<u64> {
    let line = told.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn output(command: &mut Command) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let finished = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| Failure::io(&name, &e))?;
    if !finished.status.success() {
        return Err(Failure::new(format!("{name} failed ({})", finished.status)));
    }
    Ok(String::from_utf8_lossy(&finished.stdout).into_owned())
}

impl Made {
    fn now() -> Result<Self, Failure> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let version = output(Command::new(rustc).arg("--version"))?;
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        // Libraries choose code by this.
        let wide = flags.split_whitespace().any(|flag| flag == "avx2");
        Ok(Self {
            rustc: version.trim().to_owned(),
            machine: format!(
                "{}{}",
                std::env::consts::ARCH,
                if wide { " with AVX2" } else { "" }
            ),
        })
    }
}

fn to_json(made: &Made, counts: &Counts) -> Value {
    let counts: Map<String, Value> = counts
        .iter()
        .map(|(name, count)| (name.clone(), json!(count)))
        .collect();
    json!({ "rustc": made.rustc, "machine": made.machine, "instructions": counts })
}

fn from_json(text: &str) -> Option<(Made, Counts)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let made = Made {
        rustc: value["rustc"].as_str()?.to_owned(),
        machine: value["machine"].as_str()?.to_owned(),
    };
    let counts = value["instructions"].as_object()?;
    let counts = counts
        .iter()
        .map(|(name, count)| Some((name.clone(), count.as_u64()?)))
        .collect::<Option<_>>()?;
    Some((made, counts))
}

struct Report {
    text: String,
    /// Bodies that take too many more.
    worse: Vec<String>,
}

impl Report {
    #[expect(
        clippy::cast_precision_loss,
        reason = "instruction counts stay far below 2^52"
    )]
    fn new(counts: &Counts, baseline: &Counts) -> Self {
        let mut text = format!("{:28}{:>14}{:>14}\n", "instructions", "now", "baseline");
        let mut worse = Vec::new();
        for (name, &now) in counts {
            let Some(&then) = baseline.get(name) else {
                text.push_str(&format!("{name:28}{now:>14}{:>14}  new\n", "-"));
                continue;
            };
            // In this order, so that whole percentages come out whole.
            let change = (now as f64 - then as f64) * 100.0 / then.max(1) as f64;
            text.push_str(&format!("{name:28}{now:>14}{then:>14}  {change:+.1} %\n"));
            if change > TOLERANCE {
                worse.push(format!("{name} ({change:+.1} %)"));
            }
        }
        for name in baseline.keys().filter(|name| !counts.contains_key(*name)) {
            text.push_str(&format!("{name:28} is in the baseline alone\n"));
        }
        Self { text, worse }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn counts(list: &[(&str, u64)]) -> Counts {
        list.iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    }

    #[test]
    fn only_what_is_more_than_the_tolerance_is_worse() {
        let baseline = counts(&[("a", 1000), ("b", 1000), ("c", 1000), ("gone", 1)]);
        let now = counts(&[("a", 1050), ("b", 1051), ("c", 500), ("new", 9)]);
        let report = Report::new(&now, &baseline);
        assert_eq!(report.worse, ["b (+5.1 %)"]);
        assert!(report.text.contains("gone"), "{}", report.text);
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let made = Made {
            rustc: "rustc 1.95.0".to_owned(),
            machine: "x86_64".to_owned(),
        };
        let counts = counts(&[("a", 7)]);
        let text = to_json(&made, &counts).to_string();
        assert_eq!(from_json(&text).unwrap(), (made, counts));
        assert!(from_json("{}").is_none());
    }

    #[test]
    fn the_last_number_of_callgrind_counts() {
        let told = "==7== Events    : Ir\n==7== Collected : 5263\n==7== \n";
        assert_eq!(collected(told), Some(5263));
        assert_eq!(collected("==7=="), None);
    }
}
