//! Documents whose verdict Istio's own validator gave, one by one, through the
//! same code as `egressctl validate`.
//!
//! They are not part of this repository: they are read from
//! `../../shared/conformance` beside it, and the test says so when that is not
//! there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use egress_agent::policy::Options;
use egress_agent::policy::diagnostic::{Diagnostic, Severity};
use egress_agent::policy::document::Outcome;
use egress_agent::policy::load::load_paths;

fn folder(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared")
        .join(name);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

fn show(list: &[Diagnostic]) -> String {
    list.iter().fold(String::new(), |mut out, diagnostic| {
        let _ = writeln!(out, "    {diagnostic}");
        out
    })
}

#[test]
fn every_document_gets_the_known_verdict() {
    let Some(root) = folder("conformance") else {
        return;
    };
    let table = fs::read_to_string(root.join("EXPECT.tsv")).unwrap();
    let options = Options::default();
    let (mut failed, mut count) = (String::new(), 0);
    for line in table.lines().skip(1) {
        let mut columns = line.split('\t');
        let file = columns.next().unwrap();
        let verdict = columns.next().unwrap();
        let _kinds = columns.next();
        let warns = columns.next().unwrap() == "yes";
        let loaded = load_paths(&[root.join(file)], &options);
        count += 1;
        let rejected = |outcome: &Outcome| matches!(outcome, Outcome::Rejected(_));
        let right = match verdict {
            "valid" => loaded.is_valid(),
            // Each of a file's documents is refused.
            _ => loaded.outcomes.iter().all(rejected) && !loaded.outcomes.is_empty(),
        };
        let warned = loaded
            .diagnostics
            .iter()
            .any(|d| d.severity == Severity::Warning);
        if !right {
            let _ = writeln!(
                failed,
                "{file}: expected {verdict}\n{}",
                show(&loaded.diagnostics)
            );
        } else if verdict == "valid" && warns && !warned {
            let _ = writeln!(failed, "{file}: expected a warning");
        }
    }
    assert!(failed.is_empty(), "{failed}");
    println!("{count} files");
    assert!(count > 700, "{count}");
}

#[test]
fn every_message_names_the_field_the_rule_and_the_mend() {
    let Some(root) = folder("conformance") else {
        return;
    };
    let options = Options::default();
    let loaded = load_paths(&[root.join("invalid"), root.join("valid")], &options);
    assert!(loaded.diagnostics.len() > 500);
    for diagnostic in &loaded.diagnostics {
        let words = diagnostic.message.split_whitespace().count();
        assert!(words >= 3, "too short: {diagnostic}");
        assert!(diagnostic.help.is_some(), "no help: {diagnostic}");
        let location = diagnostic.location.as_ref().unwrap();
        assert!(location.span.is_known(), "no place: {diagnostic}");
        let text = diagnostic.message.to_lowercase();
        assert!(text != "invalid", "{diagnostic}");
    }
}

#[test]
fn the_input_policies_load_with_the_warnings_they_deserve() {
    let Some(root) = folder("policies") else {
        return;
    };
    let loaded = load_paths(&[root], &Options::default());
    assert!(loaded.is_valid(), "{}", show(&loaded.diagnostics));
    assert_eq!(loaded.documents.list.len(), 24);
    let warned = |file: &str, rule: &str| {
        loaded.diagnostics.iter().any(|d| {
            d.rule == rule
                && d.severity == Severity::Warning
                && d.location
                    .as_ref()
                    .is_some_and(|l| l.source.name.contains(file))
        })
    };
    assert!(warned("01-", "port-any-address"));
    assert!(warned("10-", "misplaced"));
}
