//! `egressctl validate` as people and pipelines run it.
//!
//! The documents with a known verdict are not part of this repository: they
//! are read from `../../shared` beside it, and the tests say so when that is
//! not there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn validate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_egressctl"))
        .arg("validate")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared")
        .join(name);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

const GOOD: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: db
spec:
  hosts: [db.example.com]
  ports: [{number: 5432, name: tcp, protocol: TCP}]
  resolution: DNS
";

fn rule(field: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: db\nspec:\n  host: db.example.com\n  trafficPolicy:\n    {field}: {{mode: SIMPLE}}\n"
    )
}

#[test]
fn good_documents_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), GOOD).unwrap();
    fs::write(folder.path().join("b.yml"), rule("tls")).unwrap();
    fs::write(folder.path().join("notes.txt"), "not: [ours").unwrap();
    let out = validate(&[folder.path().to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
    assert!(text(&out.stdout).ends_with("2 documents, 0 errors, 0 warnings\n"));
}

#[test]
fn a_rule_is_not_blamed_for_an_entry_that_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.yaml");
    let refused = GOOD.replace("ports:", "prots:");
    fs::write(&file, format!("{refused}---\n{}", rule("tls"))).unwrap();
    let said = text(&validate(&[file.to_str().unwrap()]).stdout);
    assert!(said.contains("warning[rule-without-service]"), "{said}");
    assert!(
        said.contains("mend the documents that are refused first"),
        "{said}"
    );
}

#[test]
fn files_may_be_named_as_for_apply() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (entry, rule) = (write("a.yaml", GOOD), write("b.yaml", &rule("tls")));
    let out = validate(&["-f", &entry, "--filename", &rule]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stdout).ends_with("2 documents, 0 errors, 0 warnings\n"));
    let out = validate(&[&entry, "-f", &rule]);
    assert!(text(&out.stdout).ends_with("2 documents, 0 errors, 0 warnings\n"));
}

#[test]
fn a_mistyped_field_is_shown_in_its_place_with_the_right_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rule.yaml");
    fs::write(&file, format!("{GOOD}---\n{}", rule("tsl"))).unwrap();
    let file = file.to_str().unwrap();
    let out = validate(&[file]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{said}");
    for part in [
        "error[unknown-field]: unknown field `spec.trafficPolicy.tsl`",
        &format!("--> {file}:17:5"),
        "17 |     tsl: {mode: SIMPLE}\n",
        "   |     ^^^\n",
        "help: did you mean `tls`?",
        "2 documents, ",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "colours into a pipe: {said:?}");
}

#[test]
fn colours_can_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rule.yaml");
    fs::write(&file, rule("tsl")).unwrap();
    let out = validate(&[file.to_str().unwrap(), "--color", "always"]);
    assert!(text(&out.stdout).contains('\u{1b}'));
}

#[test]
fn documents_that_do_not_fit_each_other_are_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rule.yaml"), rule("tls")).unwrap();
    let out = validate(&[folder.path().to_str().unwrap()]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains("warning[rule-without-service]"), "{said}");
    assert!(
        said.ends_with("1 document, 0 errors, 1 warning\n"),
        "{said}"
    );
}

#[test]
fn json_has_every_problem_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rule.yaml");
    fs::write(&file, rule("tsl")).unwrap();
    let out = validate(&[file.to_str().unwrap(), "-o", "json"]);
    assert_eq!(out.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["valid"], false);
    assert_eq!(report["documents"], 1);
    assert_eq!(report["rejected"], 1);
    let problem = &report["problems"][0];
    assert_eq!(problem["severity"], "error");
    assert_eq!(problem["rule"], "unknown-field");
    assert_eq!(problem["location"]["file"], file.to_str().unwrap());
    assert_eq!(problem["location"]["line"], 8);
    assert_eq!(problem["location"]["column"], 5);
    assert_eq!(
        report["errors"],
        report["problems"].as_array().unwrap().len()
    );
}

#[test]
fn standard_input_is_read() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egressctl"))
        .args(["validate", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(rule("tsl").as_bytes())
        .unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stdout).contains("<stdin>:8:5"));
}

#[test]
fn what_cannot_be_read_or_is_not_there_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // Nothing was named.
    assert_eq!(validate(&[]).status.code(), Some(2));
    // A mistyped path.
    let out = validate(&[&path("absent.yaml")]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stdout).contains("absent.yaml"));
    // A directory without documents, as after a wrong checkout.
    let out = validate(&[&path("")]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stdout).contains("warning[empty-directory]"));
    // It only warns beside one that has some.
    fs::create_dir_all(path("empty")).unwrap();
    fs::write(path("a.yaml"), GOOD).unwrap();
    let out = validate(&[&path("a.yaml"), &path("empty")]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
    assert!(text(&out.stdout).contains("warning[empty-directory]"));
    // A file that cannot be read does not hide what is wrong with others.
    fs::write(path("b.yaml"), rule("tsl")).unwrap();
    let out = validate(&[&path("b.yaml"), &path("absent.yaml")]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stdout).contains("unknown-field"));
}

#[test]
fn the_input_policies_are_valid() {
    let Some(folder) = shared("policies") else {
        return;
    };
    let out = validate(&[folder.to_str().unwrap()]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains("24 documents, 0 errors"), "{said}");
}

/// What is wrong with the verdict on a file, if anything.
fn differs(root: &Path, file: &str, verdict: &str) -> Option<String> {
    let out = validate(&[root.join(file).to_str().unwrap(), "-o", "json"]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let right = match verdict {
        "valid" => out.status.code() == Some(0) && report["valid"] == true,
        // Every document of such a file is refused.
        _ => {
            out.status.code() == Some(1)
                && report["rejected"] == report["documents"]
                && report["rejected"] != 0
                && report["skipped"] == 0
        }
    };
    (!right).then(|| format!("{file}: not {verdict}\n{report:#}\n"))
}

#[test]
fn known_documents_get_the_known_verdict() {
    let Some(root) = shared("conformance") else {
        return;
    };
    let table = fs::read_to_string(root.join("EXPECT.tsv")).unwrap();
    let rows: Vec<(&str, &str)> = table
        .lines()
        .skip(1)
        .map(|line| {
            let mut columns = line.split('\t');
            (columns.next().unwrap(), columns.next().unwrap())
        })
        .collect();
    assert!(rows.len() > 700, "{}", rows.len());
    let failed: String = rows
        .iter()
        .filter_map(|(file, verdict)| differs(&root, file, verdict))
        .collect();
    assert!(failed.is_empty(), "{failed}");
    println!("{} files", rows.len());
}

#[test]
fn the_examples_are_valid_without_a_warning() {
    // Each by itself: two of them may speak of one host.
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples");
    let mut files = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        let out = validate(&[path.to_str().unwrap(), "-o", "json"]);
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(out.status.code(), Some(0), "{report:#}");
        assert_eq!(report["warnings"], 0, "{report:#}");
        assert!(report["documents"].as_u64().unwrap() >= 2, "{report:#}");
        files += 1;
    }
    assert!(files >= 6, "{files}");
}
